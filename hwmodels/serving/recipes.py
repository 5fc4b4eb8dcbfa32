"""How the measured deployments were set up, as far as their public recipes and checkpoints say.

Rows of `serving.csv` name model, engine and version. Settings that move their times stand in the benchmark scripts of
InferenceX (github.com/SemiAnalysisAI/InferenceX, Apache-2.0, `benchmarks/single_node` and `nvidia-master.yaml`, as of
December 2025 to April 2026): the token budget of a step, the cache's format, the steps between two looks at the queue,
and whether a version was used with drafts of its own (multi-token prediction). What a checkpoint leaves in 16 bit is in
its config.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NONE, DRAFTED, UNKNOWN = "none", "drafted", "unknown"
"""Speculative decoding of a row: not used, used, or not told by its version."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of one model on one engine.

    Attributes:
        model, engine: of the row; weights, device, versions: of the row where the recipe is only for some: versions by
            their beginnings, `-` for a row without one.
        budget, budget_prompts, budget_requests: tokens of a step: at least `budget`, and so many times the nominal
            prompt plus so many times the concurrency; 0 leaves the engine's own.
        memory_share: of the device; 0 leaves the engine's own.
        eight_bit_cache: the KV cache is FP8.
        look_steps: decode steps between two looks at the queue, up to 15 in flight and above (SGLang's
            scheduler_recv_interval); a request waits for half of them in the mean.
        hold_steps, hold_from: prompts are held back so many steps (TensorRT-LLM's batch_wait_timeout_iters) from that
            concurrency on, at prompts and answers of 1024.
        speculation: `none`, `drafted` or `unknown`. drafts: tokens drafted in a step; with attention over ranks 1.
    """

    model: str
    engine: str
    weights: tuple[str, ...] = ()
    device: str = ""
    versions: tuple[str, ...] = ()
    budget: int = 0
    budget_prompts: float = 0.0
    budget_requests: float = 0.0
    memory_share: float = 0.0
    eight_bit_cache: bool = False
    look_steps: tuple[int, int] = (0, 0)
    hold_steps: int = 0
    hold_from: int = 0
    speculation: str = NONE
    drafts: int = 0

    def suits(self, row: Any) -> bool:
        """Whether it is the recipe of a row, given by its columns."""
        version = row("engine_version") or "-"
        return (
            (row("model"), row("engine")) == (self.model, self.engine)
            and (not self.weights or row("weights") in self.weights)
            and (not self.device or row("device") == self.device)
            and (not self.versions or version.startswith(self.versions))
        )

    def tokens(self, prompt: float, concurrency: int) -> int:
        """The budget of a step; 0 for the engine's own."""
        return max(self.budget, int(self.budget_prompts * prompt + self.budget_requests * concurrency))


_DEEPSEEK: dict[str, Any] = {"model": "deepseek-v3", "eight_bit_cache": True}
_TRTLLM = _DEEPSEEK | {
    "engine": "trtllm", "budget": 8192, "budget_prompts": 1.0, "budget_requests": 1.0, "memory_share": 0.8,
}  # fmt: skip
_QWEN: dict[str, Any] = {"model": "qwen3.5-397b-a17b", "engine": "sglang", "memory_share": 0.8}
_GLM: dict[str, Any] = {"model": "glm-5", "engine": "sglang", "memory_share": 0.85}
RECIPES = (
    Recipe(model="minimax-m2.5", engine="vllm", versions=("0.17",), memory_share=0.95),
    Recipe(model="minimax-m2.5", engine="vllm", eight_bit_cache=True, budget_prompts=2.0),
    Recipe(model="kimi-k2.5", engine="vllm", weights=("int4_wo",), memory_share=0.95),
    Recipe(model="gpt-oss-120b", engine="trtllm", budget=20000, memory_share=0.85),
    Recipe(**_TRTLLM, versions=("1.2.0rc6.post3",), speculation=DRAFTED, drafts=3),
    Recipe(**_TRTLLM, versions=("1.2.0rc6.post2",), weights=("fp8_block",), hold_steps=40, hold_from=64),
    Recipe(**_TRTLLM, versions=("1.2.0rc6.post2",)),
    Recipe(**_TRTLLM, speculation=UNKNOWN),
    Recipe(**_DEEPSEEK, engine="sglang", weights=("nvfp4",), budget=16384, memory_share=0.85, look_steps=(10, 30)),
    Recipe(**_DEEPSEEK, engine="sglang", versions=("0.5.5", "0.5.6"), budget=32768, memory_share=0.82,
           look_steps=(10, 30)),
    Recipe(**_DEEPSEEK, engine="sglang", budget=32768, memory_share=0.82, look_steps=(10, 30), speculation=UNKNOWN),
    Recipe(**_QWEN, device="H200", budget=16384, eight_bit_cache=True),
    Recipe(**_QWEN, weights=("bf16",), budget=32768, look_steps=(10, 30)),
    Recipe(**_QWEN, weights=("nvfp4",), budget=32768, look_steps=(10, 30), eight_bit_cache=True),
    Recipe(**_QWEN, budget=32768, look_steps=(10, 30), eight_bit_cache=True, speculation=UNKNOWN),
    Recipe(**_GLM, device="H200"),
    Recipe(**_GLM, weights=("nvfp4",), budget=32768, look_steps=(10, 10), eight_bit_cache=True),
    Recipe(**_GLM, budget=32768, eight_bit_cache=True),
)  # fmt: skip
"""The first that suits a row counts."""
KEPT = {("kimi-k2.5", "int4_wo"): "experts", ("gpt-oss-120b", "mxfp4"): "experts"}
"""Which layers a checkpoint quantises (`kept.QUANTIZED`), where not all: moonshotai/Kimi-K2.5 and openai/gpt-oss-120b.
NVIDIA's NVFP4 checkpoints of mixtures leave attention in 16 bit."""
GROUPS_OF_32 = ("kimi-k2.5",)
"""Checkpoints in 4-bit integers of groups of 32; others have groups of 128."""

GPT_OSS = {
    "model_type": "gpt_oss", "hidden_size": 2880, "num_hidden_layers": 36, "num_attention_heads": 64,
    "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 201088, "num_local_experts": 128,
    "num_experts_per_tok": 4, "intermediate_size": 2880, "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 18, "max_position_embeddings": 131072,
    "tie_word_embeddings": False, "attention_bias": True, "hidden_act": "silu", "_name_or_path": "gpt-oss-120b",
}  # fmt: skip
"""openai/gpt-oss-120b, config.json."""
GLM_5 = {
    "model_type": "glm_moe_dsa", "hidden_size": 6144, "num_hidden_layers": 78, "num_attention_heads": 64,
    "num_key_value_heads": 64, "q_lora_rank": 2048, "kv_lora_rank": 512, "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64, "qk_head_dim": 256, "v_head_dim": 256, "vocab_size": 154880, "n_routed_experts": 256,
    "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "intermediate_size": 12288,
    "first_k_dense_replace": 3, "index_head_dim": 128, "index_n_heads": 32, "index_topk": 2048,
    "max_position_embeddings": 202752, "tie_word_embeddings": False, "attention_bias": False, "hidden_act": "silu",
    "moe_layer_freq": 1, "_name_or_path": "glm-5",
}  # fmt: skip
"""zai-org/GLM-5, config.json."""
QWEN_3_5 = {
    "model_type": "qwen3_5_moe_text", "hidden_size": 4096, "num_hidden_layers": 60, "num_attention_heads": 32,
    "num_key_value_heads": 2, "head_dim": 256, "vocab_size": 248320, "num_experts": 512, "num_experts_per_tok": 10,
    "moe_intermediate_size": 1024, "shared_expert_intermediate_size": 1024, "linear_num_key_heads": 16,
    "linear_num_value_heads": 64, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4, "full_attention_interval": 4, "attn_output_gate": True,
    "max_position_embeddings": 262144, "tie_word_embeddings": False, "attention_bias": False, "hidden_act": "silu",
    "_name_or_path": "qwen3.5-397b-a17b",
}  # fmt: skip
"""Qwen/Qwen3.5-397B-A17B, the language model (model card: 60 layers, 512 experts, 10 and a shared one used)."""
MODELS: dict[str, Any] = {
    "kimi-k2.5": "kimi-k2", "minimax-m2.5": "minimax-m2", "gpt-oss-120b": GPT_OSS, "glm-5": GLM_5,
    "qwen3.5-397b-a17b": QWEN_3_5,
}  # fmt: skip
"""Models whose name in the file is not the name of an architecture."""


def recipe_of(row: Any) -> Recipe | None:
    """The recipe of a row, given as a function from a column to its text; None where no script is known."""
    return next((recipe for recipe in RECIPES if recipe.suits(row)), None)
