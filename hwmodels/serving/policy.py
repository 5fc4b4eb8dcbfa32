"""How an engine forms its steps, and the presets of three engines."""

from __future__ import annotations

from dataclasses import dataclass

from qsim.errors import QsimError, nearest

from ..checks import check_count, check_not_negative, check_number

SCHEDULES = ("mixed", "whole_prompts", "prefill_first")
VLLM_GRAPHS = (1, 2, 4, *range(8, 257, 8), *range(272, 513, 16))
TRTLLM_GRAPHS = (1, 2, 4, *range(8, 129, 8), 256, 512, 1024, 2048)


@dataclass(frozen=True, kw_only=True)
class Speculation:
    """Speculative decoding.

    Attributes:
        drafts: tokens drafted one after another in each step.
        acceptance: chance that a drafted token is accepted, given that those before it were.
        branches: alternatives of each drafted token that are verified at once (a tree); the chance that none of them is
            right falls as if they were independent.
        draft_share: time of drafting one token, as a share of a plain decode step of the same rows.
    """

    drafts: int = 3
    acceptance: float = 0.7
    branches: int = 1
    draft_share: float = 0.05

    def __post_init__(self) -> None:
        check_count(drafts=self.drafts, branches=self.branches)
        check_not_negative(acceptance=self.acceptance, draft_share=self.draft_share)
        check_number(acceptance=self.acceptance, draft_share=self.draft_share)
        if self.acceptance > 1:
            raise QsimError(f"acceptance is a share of at most 1: got {self.acceptance:g}")

    def __str__(self) -> str:
        tree = f", {self.branches} alternatives each" if self.branches > 1 else ""
        return f"{self.drafts} drafts{tree}, acceptance {self.acceptance:g}"

    @property
    def verified(self) -> float:
        """Tokens that a sequence brings to a step: the last one and all drafted ones."""
        return 1.0 + self.drafts * self.branches

    @property
    def gained(self) -> float:
        """Mean tokens that a sequence gets from a step (Leviathan et al., arXiv 2211.17192, equation 1)."""
        a = 1.0 - (1.0 - self.acceptance) ** self.branches
        return self.drafts + 1.0 if a >= 1.0 else (1.0 - a ** (self.drafts + 1)) / (1.0 - a)


@dataclass(frozen=True, kw_only=True)
class EnginePolicy:
    """An engine's scheduler.

    Attributes:
        name, version: of the engine; the version is for which the fields are its defaults.
        schedule: `mixed`: a step holds a token of every running sequence and pieces of prompts up to the budget
            (continuous batching with chunked prefill); `whole_prompts`: the same with whole prompts;
            `prefill_first`: waiting prompts are read in steps of their own, and decoding pauses.
        token_budget: tokens of a step.
        max_sequences: sequences that run at once.
        memory_share: of the device's memory that the engine takes.
        block_tokens: of a block of the KV cache; what a sequence needs is rounded up to blocks.
        watermark: share of the blocks that is kept free when a request is admitted.
        reserve_output: blocks for the whole answer are taken when a request is admitted, so that none is ever put
            back; otherwise blocks are taken as they are needed, and the request that came last is put back and computed
            again when there are none left (preemption).
        batch_wait_steps: steps that waiting prompts are held back while others decode, for more of them to come
            (TensorRT-LLM's batch_wait_timeout_iters).
        graph_rows: decode rows of the captured CUDA graphs: a pure decode step is padded to the next of them. Empty for
            none.
        overlap: the host prepares the next step while the device works.
        kernels: `vllm`, `sglang` or `fastest`: whose measured products run the linear layers, see `engine_kernels`.
        attention: attention family, "" for the device's own.
        offload_gbytes: host memory of an engine for the KV cache of sequences that were put back, which then are copied
            and not computed again, as far as it holds them.
        offload_gbytes_per_s: rate of that copy, of all devices of the engine together.
        speculation: speculative decoding, None for none.
    """

    name: str
    version: str = ""
    schedule: str = "mixed"
    token_budget: int = 8192
    max_sequences: int = 1024
    memory_share: float = 0.9
    block_tokens: int = 16
    watermark: float = 0.01
    reserve_output: bool = False
    batch_wait_steps: int = 0
    graph_rows: tuple[int, ...] = VLLM_GRAPHS
    overlap: bool = True
    kernels: str = "fastest"
    attention: str = ""
    offload_gbytes: float = 0.0
    offload_gbytes_per_s: float = 50.0
    speculation: Speculation | None = None

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise QsimError(nearest("schedule", self.schedule, SCHEDULES))
        check_count(token_budget=self.token_budget, max_sequences=self.max_sequences, block_tokens=self.block_tokens)
        check_not_negative(
            watermark=self.watermark,
            offload_gbytes=self.offload_gbytes,
            memory_share=self.memory_share,
            batch_wait_steps=self.batch_wait_steps,
        )
        if not 0 < self.memory_share <= 1 or not self.watermark < 1:
            raise QsimError(
                f"memory_share must be above 0 and at most 1, and watermark below 1: got {self.memory_share:g} and "
                f"{self.watermark:g}"
            )
        if not self.offload_gbytes_per_s > 0:
            raise QsimError(f"offload_gbytes_per_s must be positive: got {self.offload_gbytes_per_s:g}")
        if any(one >= other for one, other in zip(self.graph_rows, self.graph_rows[1:], strict=False)):
            raise QsimError("graph_rows must increase")
        if self.schedule == "mixed" and self.token_budget < 2:
            raise QsimError("token_budget must be at least 2 where prompts share steps with decode rows")


_PRESETS = {
    p.name: p
    for p in (
        EnginePolicy(name="vllm", version="0.14", kernels="vllm", attention="vllm"),
        EnginePolicy(
            name="sglang", version="0.5", schedule="prefill_first", kernels="sglang", attention="sglang",
            memory_share=0.88, block_tokens=1,
        ),
        EnginePolicy(
            name="trtllm", version="1.1", schedule="whole_prompts", token_budget=16384, max_sequences=2048,
            reserve_output=True, graph_rows=TRTLLM_GRAPHS, attention="trtllm13", block_tokens=32, watermark=0.0,
        ),
    )
}  # fmt: skip


def policy_names() -> tuple[str, ...]:
    """The presets."""
    return tuple(_PRESETS)


def get_policy(policy: str | EnginePolicy) -> EnginePolicy:
    """A preset by name; a policy is returned as it is.

    Raises:
        QsimError: an unknown name; the nearest are listed.
    """
    if isinstance(policy, EnginePolicy):
        return policy
    if policy not in _PRESETS:
        raise QsimError(nearest("engine policy", policy, _PRESETS))
    return _PRESETS[policy]
