"""DeepSeek-V2 and V3: latent attention, routed and shared experts, dense first layers."""

from __future__ import annotations

import numpy as np
import pytest

import hwmodels
from hwmodels.timing.attention_kernel import attention
from hwmodels.workload.architecture import from_config, from_table, get_architecture
from hwmodels.workload.footprint import footprint, kv_bytes_per_token
from hwmodels.workload.operators import attention_cost
from hwmodels.workload.step import step_operators
from hwmodels.workload.table import shipped_table
from qsim.errors import QsimError
from qsim.scheme import get_scheme

CONFIG = {  # deepseek-ai/DeepSeek-V2-Lite
    "model_type": "deepseek_v2", "hidden_size": 2048, "num_hidden_layers": 27, "num_attention_heads": 16,
    "num_key_value_heads": 16, "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_routed_experts": 64,
    "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1, "kv_lora_rank": 512,
    "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 102400,
    "max_position_embeddings": 163840,
}  # fmt: skip
V3 = CONFIG | {
    "model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128,
    "num_key_value_heads": 128, "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256,
    "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 3, "q_lora_rank": 1536,
    "vocab_size": 129280,
}  # fmt: skip


def total(ops: list, field: str, kinds: tuple[str, ...] = ("gemm", "attention", "small")) -> float:
    return sum(float(getattr(op.cost, field) * op.calls) for op in ops if op.kind in kinds)


def test_parameters_are_those_of_the_checkpoints() -> None:
    """Elements of all tensors of the checkpoints. V3's paper calls 37 billion active (arXiv 2412.19437, abstract): it
    leaves the embedding out."""
    assert get_architecture("deepseek-v2-lite").parameters == 15_706_484_224
    assert get_architecture("deepseek-v2").parameters == 235_741_434_880
    v3 = get_architecture("deepseek-v3")
    assert v3.parameters / 1e9 == pytest.approx(671, abs=0.5)
    assert (v3.active_parameters - v3.shape.embedding) / 1e9 == pytest.approx(37, abs=0.5)
    v2 = get_architecture("deepseek-v2")
    assert (v2.active_parameters - v2.shape.embedding) / 1e9 == pytest.approx(21, abs=0.5)


def test_a_config_gives_the_shipped_shapes() -> None:
    for config, name in ((CONFIG, "deepseek-v2-lite"), (V3, "deepseek-v3")):
        mine, shipped = from_config(config), get_architecture(name)
        assert mine.linear_shapes == shipped.linear_shapes
        assert mine.linear_counts == shipped.linear_counts
        assert mine.parameters == shipped.parameters


@pytest.mark.oracle
@pytest.mark.parametrize("config", [CONFIG, V3], ids=["v2-lite", "v3"])
def test_parameters_equal_transformers(config) -> None:  # type: ignore[no-untyped-def]
    """Every tensor that transformers allocates for the same config (V3's balancing bias is a buffer there)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    mine = from_config(config)
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    count = sum(p.numel() for name, p in theirs.named_parameters())
    assert mine.parameters == count


def test_the_cache_holds_one_latent_vector_a_token() -> None:
    """70.272 KB a token (arXiv 2505.09343, table 1); every tensor-parallel device holds all of it."""
    v3, bf16 = get_architecture("deepseek-v3"), get_scheme("bf16")
    assert kv_bytes_per_token(v3, bf16) == 70_272
    device = hwmodels.get_device("h200")
    one, eight = (footprint(device, v3, bf16, batch=4, context=1000, tensor_parallel=n) for n in (1, 8))
    assert one.kv_cache_bytes == eight.kv_cache_bytes == 4 * 1000 * 70_272


def test_a_quantised_expansion_is_there_twice() -> None:
    """Engines absorb a 16-bit copy of it in decode."""
    v3, device = get_architecture("deepseek-v3"), hwmodels.get_device("h200")
    n, k = v3.linear_shapes["kv_b"]
    from hwmodels.workload.footprint import model_weight_bytes

    scheme = get_scheme("fp8-block128")
    got = footprint(device, v3, scheme, batch=1, context=1).weights_bytes
    assert got - model_weight_bytes(v3, scheme) == 61 * 2 * n * k
    bf16 = get_scheme("bf16")
    assert footprint(device, v3, bf16, batch=1, context=1).weights_bytes == model_weight_bytes(v3, bf16)


def test_flops_of_a_prefill() -> None:
    """Two per parameter and token, and causal attention of 192 + 128 elements per head."""
    v3, length = get_architecture("deepseek-v3"), 4096
    ops = list(step_operators(v3, get_scheme("bf16"), "prefill", batch=1, context=length))
    multiplied = v3.active_parameters - v3.shape.embedding - v3.head_parameters - v3.shape.other_parameters
    products = 2 * length * multiplied + 2 * v3.head_parameters
    assert total(ops, "flop", ("gemm",)) == pytest.approx(products, rel=1e-12)
    pairs = length * (length + 1) / 2
    assert total(ops, "flop", ("attention",)) == 61 * 2 * 128 * (192 + 128) * pairs


def test_absorbed_decode_computes_what_expansion_would() -> None:
    """One token: the operations of `absorb` are those of `kv_b` for one row; attention has 576 + 512 a head."""
    v3 = get_architecture("deepseek-v3")
    by_name = {op.name: op for op in step_operators(v3, get_scheme("bf16"), "decode", batch=7, context=300)}
    assert "kv_b" not in by_name
    assert by_name["absorb"].cost.flop == 2 * 7 * 128 * (128 + 128) * 512
    cost = by_name["attention"].cost
    assert cost.flop == 7 * 2 * 128 * 300 * (576 + 512)
    assert cost.traffic_bytes == 7 * 300 * 576 * 2 + 7 * 128 * (576 + 512) * 2


def test_equal_heads_cost_the_same_either_way() -> None:
    """value_dim = head_dim, not shared: the usual attention."""
    for phase in ("prefill", "decode"):
        sizes = {"batch": 2, "context": 500, "q_heads": 8, "kv_heads": 2, "head_dim": 64}
        assert attention_cost(phase, **sizes) == attention_cost(phase, **sizes, value_dim=64)


def test_experts_run_in_one_kernel() -> None:
    """One launch per layer, not one per expert; a grid equals its points."""
    moe, scheme = get_architecture("deepseek-v2-lite"), "bf16"
    small = hwmodels.predict("h200", moe, scheme, "decode", 1, 1024)
    by_name = {op.name: op for op in small.operators}
    assert by_name["gate_up"].calls == 26
    assert by_name["dense_gate_up"].calls == 1
    assert by_name["gate_up"].kernel == "torch_grouped_bf16"
    batch = np.array([1, 8, 64])
    grid = hwmodels.predict("h200", moe, scheme, "decode", batch, 1024)
    for i, b in enumerate(batch):
        one = hwmodels.predict("h200", moe, scheme, "decode", int(b), 1024)
        assert grid.time_s[i] == pytest.approx(float(one.time_s), rel=1e-12)
        assert one.low_s < one.time_s < one.high_s


def test_latent_decode_has_the_efficiency_that_flash_mla_publishes() -> None:
    """H800 SXM5 (an H100's 16-bit peak and memory): up to 3000 GB/s with few heads, 660 TFLOPS with 128."""
    how = {"value_dim": 512, "shared_kv": True, "fidelity": "transferred"}
    few = attention("h100-sxm", "decode", 512, 32768, 8, 1, 576, **how)  # type: ignore[arg-type]
    rate = 512 * 32768 * 576 * 2 / few.time_s / 1e9
    assert few.kind == "transferred"
    assert 2900 < rate < 3000
    many = attention("h100-sxm", "decode", 512, 32768, 1024, 1, 576, **how)  # type: ignore[arg-type]
    assert 640e12 < 2 * 512 * 32768 * 1024 * (576 + 512) / many.time_s < 660e12


@pytest.mark.parametrize(
    ("change", "says"),
    [({"rope_dim": 192}, "rope_dim"), ({"v_head_dim": 0}, "v_head_dim"), ({"dense_layers": 27}, "dense_layers"),
     ({"dense_ffn": 0}, "dense_ffn")],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(change: dict[str, int], says: str) -> None:
    with pytest.raises(QsimError, match=says):
        from_table({**shipped_table("deepseek-v2-lite"), **change}, "x.toml", "x")
