"""FLOPs and bytes: exact, broadcastable, and equal to the packed tensors of qsim."""

from __future__ import annotations

import numpy as np
import pytest

from hwmodels.workload.architecture import architecture_names, from_config, get_architecture
from hwmodels.workload.footprint import kv_bytes_per_token
from hwmodels.workload.operators import attention_cost, gemm_cost, weight_nbytes
from hwmodels.workload.step import step_operators
from qsim.scheme import get_scheme, quantize

SCHEMES = ("w4a16-g128", "w4a16-g128-sym", "w3a16-g128", "w8a16-channel", "w8a8-channel-token", "fp8-tensor",
           "fp8-rowwise", "fp8-block128")  # fmt: skip


@pytest.mark.parametrize("name", SCHEMES)
def test_weight_bytes_equal_the_packed_tensor(name: str) -> None:
    w = np.random.default_rng(0).standard_normal((256, 384)).astype(np.float32)
    assert weight_nbytes(get_scheme(name), 256, 384) == quantize(w, name).nbytes


def test_block_formats_cost_codes_and_scales() -> None:
    """OCP MX: 32 codes and an E8M0 byte; NVFP4: 16 codes and an E4M3 byte, and one float32 a tensor."""
    assert weight_nbytes(get_scheme("mxfp4"), 256, 384) == 256 * 384 // 2 + 256 * 384 // 32
    assert weight_nbytes(get_scheme("nvfp4"), 256, 384) == 256 * 384 // 2 + 256 * 384 // 16 + 4


def test_group_formats_cost_what_the_reference_says() -> None:
    bits = lambda name: 8 * weight_nbytes(get_scheme(name), 4096, 4096) / 4096**2  # noqa: E731
    assert bits("w4a16-g128-sym") == pytest.approx(4.125)
    assert bits("w4a16-g128") == pytest.approx(4.15625)
    assert bits("mxfp4") == pytest.approx(4.25)
    assert bits("nvfp4") == pytest.approx(4.5, abs=1e-4)


def test_parameters_and_kv_bytes_match_the_published_accounting() -> None:
    for name, block, head, kv in (
        ("llama-2-7b", 6.476e9, 0.131e9, 0.524e6), ("llama-3-8b", 6.98e9, 0.525e9, 0.131e6),
        ("llama-2-13b", 12.69e9, 0.164e9, 0.819e6), ("llama-2-70b", 68.45e9, 0.262e9, 0.328e6),
        ("llama-3-70b", 68.45e9, 1.051e9, 0.328e6),
    ):  # fmt: skip
        arch = get_architecture(name)
        assert arch.block_parameters == pytest.approx(block, rel=1e-3)
        assert arch.head_parameters == pytest.approx(head, rel=4e-3)
        assert kv_bytes_per_token(arch, get_scheme("bf16")) == pytest.approx(kv, rel=2e-3)
        assert kv_bytes_per_token(arch, get_scheme("fp8-tensor-kvfp8")) == pytest.approx(kv / 2, rel=1e-3)


def test_totals_match_the_models_that_are_published() -> None:
    for name, billions in (("opt-13b", 12.85), ("mixtral-8x7b", 46.7), ("qwen2.5-7b", 7.62), ("qwen3-8b", 8.19),
                           ("llama-3.1-405b", 405.9), ("gpt-j-6b", 6.05), ("llama-3.2-1b", 1.236)):  # fmt: skip
        assert get_architecture(name).parameters / 1e9 == pytest.approx(billions, rel=2e-3)


def test_prefill_attention_is_causal() -> None:
    one = attention_cost("prefill", batch=2, context=1000, q_heads=8, kv_heads=8, head_dim=64)
    assert one.flop == 4 * 2 * 8 * 64 * (1000 * 1001 / 2)
    full = 4 * 2 * 8 * 64 * 1000 * 1000
    assert one.flop / full == pytest.approx(0.5, abs=1e-3)


def test_a_prefill_that_continues_a_cache_counts_the_past() -> None:
    whole = attention_cost("prefill", batch=1, context=1024, q_heads=8, kv_heads=8, head_dim=64)
    first = attention_cost("prefill", batch=1, context=512, q_heads=8, kv_heads=8, head_dim=64)
    second = attention_cost("prefill", batch=1, context=1024, seq=512, q_heads=8, kv_heads=8, head_dim=64)
    assert first.flop + second.flop == whole.flop


def test_grouped_heads_share_the_cache() -> None:
    mha = attention_cost("decode", batch=4, context=2048, q_heads=32, kv_heads=32, head_dim=128)
    gqa = attention_cost("decode", batch=4, context=2048, q_heads=32, kv_heads=8, head_dim=128)
    assert gqa.flop == mha.flop
    queries = 2 * 4 * 32 * 128 * 2
    assert (mha.traffic_bytes - queries) == 4 * (gqa.traffic_bytes - queries)
    assert gqa.traffic_bytes == 2 * 4 * 2048 * 8 * 128 * 2 + queries


def test_step_flops_are_two_per_parameter_and_token() -> None:
    arch = get_architecture("llama-3-8b")
    ops = list(step_operators(arch, get_scheme("bf16"), "decode", batch=3, context=10))
    gemm = sum(float(op.cost.flop * op.calls) for op in ops if op.kind == "gemm")
    assert gemm == 2 * 3 * (arch.block_parameters + arch.head_parameters)


def test_logits_are_made_for_the_last_token_only() -> None:
    ops = list(step_operators(get_architecture("llama-3-8b"), get_scheme("bf16"), "prefill", batch=2, context=512))
    head = next(op for op in ops if op.name == "lm_head")
    assert float(head.m) == 2
    assert float(head.cost.flop) == 2 * 2 * 128256 * 4096


def test_activation_quantisation_is_priced() -> None:
    arch = get_architecture("llama-3-8b")
    names = lambda s: [op.name for op in step_operators(arch, get_scheme(s), "decode", batch=1, context=64)]  # noqa: E731
    assert "quantize_o" in names("fp8-rowwise")
    assert "quantize_o" not in names("bf16")
    assert "quantize_o" not in names("fp8-static")


def test_one_call_is_a_scalar_or_a_grid() -> None:
    arch, scheme = get_architecture("llama-3-8b"), get_scheme("w4a16-g128")
    batch, context = np.array([1, 7, 64])[:, None], np.array([128, 5000])[None, :]
    grid = list(step_operators(arch, scheme, "prefill", batch=batch, context=context))
    for i in range(3):
        for j in range(2):
            one = step_operators(arch, scheme, "prefill", batch=int(batch[i, 0]), context=int(context[0, j]))
            for a, b in zip(grid, one, strict=True):
                flop = np.broadcast_to(a.cost.flop, (3, 2))[i, j]
                traffic = np.broadcast_to(a.cost.traffic_bytes, (3, 2))[i, j]
                assert (flop, traffic) == (
                    pytest.approx(float(b.cost.flop)),
                    pytest.approx(float(b.cost.traffic_bytes)),
                )


def test_experts_are_read_when_a_token_goes_there() -> None:
    arch = get_architecture("mixtral-8x7b")
    for batch, active in ((1, 2.0), (1000, 8.0)):
        ops = step_operators(arch, get_scheme("bf16"), "decode", batch=batch, context=10)
        gate = next(op for op in ops if op.name == "gate_up")
        assert gate.calls == 32
        assert gate.groups == pytest.approx(active, rel=1e-6)
        assert gate.cost.weight_bytes == pytest.approx(active * 2 * 2 * 14336 * 4096, rel=1e-6)
    flop = sum(
        float(op.cost.flop * op.calls)
        for op in step_operators(arch, get_scheme("bf16"), "decode", batch=1000, context=10)
        if op.name in ("gate_up", "down")
    )
    assert flop == pytest.approx(2 * 1000 * 2 * 32 * 3 * 14336 * 4096, rel=1e-6)


def test_gemm_cost_writes_the_output_once() -> None:
    cost = gemm_cost(16, 4096, 1024, weight_bytes=100.0, activation_bytes=2, output_bytes=4)
    assert cost.flop == 2 * 16 * 4096 * 1024
    assert cost.traffic_bytes == 100 + 2 * 16 * 1024 + 4 * 16 * 4096


def test_config_json_of_hugging_face(tmp_path) -> None:  # type: ignore[no-untyped-def]
    llama = {"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336,
             "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
             "tie_word_embeddings": False}  # fmt: skip
    assert from_config(llama).parameters == get_architecture("llama-3-8b").parameters
    opt = {"model_type": "opt", "num_hidden_layers": 40, "hidden_size": 5120, "ffn_dim": 20480,
           "num_attention_heads": 40, "vocab_size": 50272, "max_position_embeddings": 2048}  # fmt: skip
    assert from_config(opt).parameters == get_architecture("opt-13b").parameters
    moe = {**llama, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000}
    assert from_config(moe).block_parameters == get_architecture("mixtral-8x7b").block_parameters
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        get_architecture(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        get_architecture(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("change", "says"),
    [({"hidden_size": None}, "hidden_size"), ({"num_key_value_heads": 5}, "key_value_heads must divide"),
     ({"kv_lora_rank": 512}, "kv_lora_rank = 512"), ({"intermediate_size": -1}, "must be from 1")],
)  # fmt: skip
def test_configs_that_do_not_fit_are_refused(change: dict[str, object], says: str) -> None:
    config = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128,
              "num_attention_heads": 4, "vocab_size": 100, **change}  # fmt: skip
    with pytest.raises(ValueError, match=says):
        from_config(config)


def test_unknown_models_list_the_nearest() -> None:
    assert "llama-3-8b" in architecture_names()
    with pytest.raises(ValueError, match="llama-3-8b"):
        get_architecture("llama-3-8")
