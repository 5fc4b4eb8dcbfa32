"""Architectures of every family: what a step computes and reads follows from the list of layers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import hwmodels
from hwmodels.workload.architecture import from_config, from_table, get_architecture
from hwmodels.workload.footprint import footprint, kv_bytes_per_token, model_weight_bytes
from hwmodels.workload.operators import attention_cost
from hwmodels.workload.step import step_operators
from hwmodels.workload.table import shipped_table
from qsim.errors import QsimError
from qsim.families import Experts, Recurrent
from qsim.scheme import get_scheme

DATA = Path(__file__).parents[1] / "families" / "data"
ROWS = list(csv.DictReader((DATA / "expected.csv").read_text().splitlines()))
KINDS = ("gemma-3-27b", "llama-4-maverick", "qwen3-next-80b-a3b", "falcon-h1-3b", "gemma-3n-e2b", "deepseek-v3.2",
         "nemotron-3-nano-30b-a3b", "mamba-2.8b", "phi-1.5", "recurrentgemma-2b", "llama-3.3-nemotron-super-49b",
         "gpt-oss-20b", "opt-350m", "jamba")  # fmt: skip
JAMBA = {"model_type": "jamba", "num_hidden_layers": 32}


def read(name: str) -> hwmodels.Architecture:
    return from_config(JAMBA) if name == "jamba" else get_architecture(DATA / f"{name}.json")


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_weights_and_cache_of_a_real_model_are_exact(row):
    arch = get_architecture(DATA / f"{row['name']}.json")
    assert (arch.parameters, arch.active_parameters) == (int(row["total_params"]), int(row["active_params"]))
    assert model_weight_bytes(arch, get_scheme("bf16")) == 2 * int(row["total_params"])
    for context in (2048, 32768, 131072):
        assert hwmodels.kv_cache_bytes(arch, "bf16", context) == int(row[f"kv_bytes_{context}"])
    assert hwmodels.state_bytes(arch, batch=3) == 3 * int(row["state_bytes"])


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_the_products_of_a_step_read_every_weight_once(row):
    """So many tokens that every expert is visited; gates of shared experts are fused with the experts."""
    arch = get_architecture(DATA / f"{row['name']}.json")
    shape = arch.shape
    gates = sum(m.inputs * n for m, n in shape.mlps if isinstance(m, Experts) and m.shared_gate)
    expected = 2 * (shape.quantisable_parameters + shape.router_parameters + shape.head.weights - gates)
    for phase, context in (("decode", 10), ("prefill", 10)):
        ops = step_operators(arch, get_scheme("bf16"), phase, batch=10**7, context=context)
        assert sum(float(op.weight_bytes) * op.calls for op in ops if op.kind == "gemm") == pytest.approx(expected)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("scheme", ["bf16", "fp8", "w4a16-g128", "nvfp4"])
def test_every_kind_of_layer_has_a_price(name, scheme):
    arch = read(name)
    for phase, batch, context in (("decode", np.array([1, 8]), 4096), ("prefill", 1, 4096)):
        p = hwmodels.predict("h100-sxm", arch, scheme, phase, batch, context)
        assert np.all(np.isfinite(p.time_s))
        assert np.all((p.low_s <= p.time_s) & (p.time_s <= p.high_s))
        names = [op.name for op in p.operators]
        assert len(names) == len(set(names))


def mask(context: int, window: int, chunked: bool) -> np.ndarray:
    """Which keys each query sees, one by one."""
    q, k = np.arange(context)[:, None], np.arange(context)[None, :]
    seen = k <= q
    return seen & (k // window == q // window if chunked else q - k < window)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("context", "seq", "window"), [(50, 50, 7), (50, 13, 7), (50, 50, 64), (64, 20, 16), (9, 1, 9)]
)
def test_a_window_costs_what_its_mask_leaves(chunked, context, seq, window):
    """Operations: 2 * 2 * head_dim for each pair of a query and a key that it sees."""
    cost = attention_cost("prefill", batch=3, context=context, seq=seq, q_heads=4, kv_heads=2, head_dim=8,
                          window=window, chunked=chunked)  # fmt: skip
    pairs = mask(context, window, chunked)[context - seq :].sum()
    assert cost.flop == 3 * 4 * pairs * 4 * 8
    past = min(context - seq, window)
    assert cost.traffic_bytes == 2 * 3 * seq * (4 + 2) * 16 + 2 * 3 * past * 2 * 16


def test_a_decode_step_reads_no_more_than_the_window():
    arch = get_architecture(DATA / "starcoder2-7b.json")
    read_bytes = [
        next(
            op
            for op in step_operators(arch, get_scheme("bf16"), "decode", batch=1, context=n)
            if op.kind == "attention"
        )
        for n in (4096, 100_000)
    ]
    assert float(read_bytes[0].cost.traffic_bytes) == float(read_bytes[1].cost.traffic_bytes)
    wide = from_config({**json.loads((DATA / "starcoder2-7b.json").read_text()), "sliding_window": None})
    times = [hwmodels.predict("h100-sxm", a, "bf16", "decode", 64, 100_000).time_s for a in (arch, wide)]
    assert times[1] > 1.5 * times[0]


def test_layers_of_a_kind_are_one_operator_with_a_count():
    gemma = {
        op.name: op for op in step_operators(read("gemma-3-27b"), get_scheme("bf16"), "decode", batch=1, context=9)
    }
    assert (gemma["sliding_attention"].calls, gemma["full_attention"].calls) == (52, 10)
    assert (gemma["gate_up"].calls, gemma["norm_mlp"].calls, gemma["norm_post"].calls) == (62, 62, 124)
    hybrid = {op.name: op for op in step_operators(read("qwen3-next-80b-a3b"), get_scheme("bf16"), "decode", batch=1,
                                                   context=9)}  # fmt: skip
    assert (hybrid["gated_delta_net_state"].calls, hybrid["full_attention"].calls, hybrid["gate_up"].calls) == (
        36,
        12,
        48,
    )
    parallel = {op.name for op in step_operators(read("phi-1.5"), get_scheme("bf16"), "decode", batch=1, context=9)}
    assert "norm_mlp" not in parallel
    nas = read("llama-3.3-nemotron-super-49b")
    ops = {op.name: op for op in step_operators(nas, get_scheme("bf16"), "decode", batch=1, context=9)}
    assert ops["attention"].calls == 49
    assert ops["norm_mlp"].calls == ops["residual"].calls == sum(bool(layer.mlps) for layer in nas.shape.layers)


def test_sparse_attention_reads_the_keys_of_all_tokens_and_the_latents_of_the_chosen():
    arch = read("deepseek-v3.2")
    for context in (1000, 100_000):
        ops = {op.name: op for op in step_operators(arch, get_scheme("bf16"), "decode", batch=2, context=context)}
        queries = 2 * 64 * 128 * 2
        assert float(ops["index_scores"].cost.traffic_bytes) == 2 * context * 128 * 2 + queries
        read_tokens = min(context, 2048)
        assert float(ops["attention"].cost.flop) == 2 * 2 * 128 * read_tokens * (576 + 512)


def test_the_state_of_a_recurrent_layer_is_read_and_written_by_every_decode_step():
    arch = read("mamba-2.8b")
    ops = {op.name: op for op in step_operators(arch, get_scheme("bf16"), "decode", batch=256, context=9)}
    assert float(ops["state"].cost.traffic_bytes) * 64 > 2 * 256 * arch.shape.state_bytes
    one, other = (hwmodels.predict("h100-sxm", arch, "bf16", "decode", 8, n) for n in (100, 100_000))
    assert one.time_s == other.time_s
    assert one.footprint.kv_cache_bytes == other.footprint.kv_cache_bytes == 8 * arch.shape.state_bytes


def test_what_has_no_price_is_refused_while_weights_and_cache_answer():
    arch = read("falcon-h1-3b")
    with pytest.raises(QsimError, match="tensor_parallel must be 1 for falcon-h1-3b"):
        hwmodels.predict("h100-sxm", arch, tensor_parallel=2)
    assert arch.parameters > 0
    half = hwmodels.kv_cache_bytes(arch, "bf16", 4096) / 2
    assert hwmodels.kv_cache_bytes(arch, "fp8-kv", 4096) == pytest.approx(half, rel=1e-3)  # and one scale for a tensor


def test_a_split_must_divide_the_heads_of_every_layer():
    arch = read("llama-3.3-nemotron-super-49b")
    assert arch.heads == 64
    assert hwmodels.predict("h100-sxm", arch, tensor_parallel=4).tensor_parallel == 4
    with pytest.raises(QsimError, match="must divide the 40 heads"):
        hwmodels.predict("h100-sxm", read("llama-4-maverick"), tensor_parallel=16)


def test_a_key_that_is_ignored_is_in_the_first_note():
    config = {**json.loads((DATA / "llama-3-8b.json").read_text()), "hyper_connections": 4}
    with pytest.raises(QsimError, match="hyper_connections = 4"):
        hwmodels.predict("h100-sxm", config)
    arch = get_architecture(config, strict=False)
    assert "hyper_connections = 4" in hwmodels.predict("h100-sxm", arch).notes[0]
    deepseek = hwmodels.predict("h200", DATA / "deepseek-v3.json", tensor_parallel=8)
    assert any("predict further tokens" in note for note in deepseek.notes)


def test_the_cache_scales_with_the_scheme_the_batch_and_arrays():
    arch = read("gemma-3-27b")
    contexts = np.array([100, 1024, 5000])
    grid = hwmodels.kv_cache_bytes(arch, "bf16", contexts, batch=3)
    assert grid.tolist() == [3 * arch.shape.cache_bytes(int(n)) for n in contexts]
    # beyond every window only the full layers grow
    assert kv_bytes_per_token(arch, get_scheme("bf16")) == 10 * 2 * 16 * 128 * 2
    device = hwmodels.get_device("h200")
    assert footprint(device, arch, get_scheme("bf16"), batch=3, context=5000).kv_cache_bytes == grid[2]
    for bad in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="context"):
            hwmodels.kv_cache_bytes(arch, "bf16", bad)


@pytest.mark.parametrize(
    ("model", "total", "active", "per_token"),
    [  # right values from the model cards and the classes; active without the embedding, KiB of K and V beyond windows
        ({"model_type": "llama4_text", "num_local_experts": 16}, 107.8, 16.1, 48),
        ({"model_type": "llama4_text", "num_local_experts": 128, "interleave_moe_layer_step": 2}, 400.7, 16.1, 48),
        ({"model_type": "qwen"}, 7.72, 7.10, 512),
        (JAMBA, 51.6, 12, 16),
        ({"model_type": "gemma2", "hidden_size": 3584, "num_hidden_layers": 42, "num_attention_heads": 16,
          "num_key_value_heads": 8, "intermediate_size": 14336}, 9.24, 9.24 - 0.918, 168),
    ],
    ids=["llama-4-scout", "llama-4-maverick", "qwen-7b", "jamba", "gemma-2-9b"],
)  # fmt: skip
def test_models_that_were_read_as_llama_have_their_own_size(model, total, active, per_token):
    arch = from_config(model)
    assert arch.parameters / 1e9 == pytest.approx(total, rel=5e-3)
    assert (arch.active_parameters - arch.shape.embedding) / 1e9 == pytest.approx(active, rel=2e-2)
    assert kv_bytes_per_token(arch, get_scheme("bf16")) == per_token * 1024


def test_a_table_is_refused_with_the_nearest_key():
    with pytest.raises(QsimError, match="kv_heads"):
        from_table({**shipped_table("llama-3-8b"), "kv_head": 8}, "x.toml", "x")
    for change in ({"layers": 0}, {"gated": 1}, {"vocab": "many"}, {"kv_heads": 5}, {"name": 3}):
        with pytest.raises(QsimError, match=r"x\.toml"):
            from_table({**shipped_table("llama-3-8b"), **change}, "x.toml", "x")


def test_devices_share_the_heads_of_a_gated_delta_net_and_refuse_states_without_heads():
    one, two = (
        hwmodels.predict("h200", read("qwen3-next-80b-a3b"), "bf16", "decode", 4, 1024, tensor_parallel=n)
        for n in (1, 2)
    )
    rows = [{op.name: op for op in p.operators} for p in (one, two)]
    state, name = next(n for n in rows[0] if n.endswith("state")), "all_reduce_o"
    assert rows[1][state].traffic_bytes == pytest.approx(rows[0][state].traffic_bytes / 2)
    assert not [n for n in rows[0] if n.endswith(name)]
    assert sum(op.calls for n, op in rows[1].items() if n.endswith(name)) == 48  # delta nets and attention
    assert two.footprint.weights_bytes == pytest.approx(one.footprint.weights_bytes / 2)
    assert two.time_s < one.time_s
    with pytest.raises(QsimError, match="the 16 heads of qwen3-next"):
        read("qwen3-next-80b-a3b").check_split(32)
    with pytest.raises(QsimError, match="how recurrent layers are split is not priced"):
        read("jamba").check_split(2)


def test_recurrent_layers_are_told_from_attention():
    assert read("jamba").is_recurrent
    assert sum(count for m, count in read("jamba").shape.mixers if isinstance(m, Recurrent)) == 28
    assert not read("gemma-3-27b").is_recurrent
