"""`quantize_model`: what each layer is shown, folding, resuming, memory, bad input."""

from __future__ import annotations

import itertools
import json
import tracemalloc

import numpy as np
import pytest

from qsim.methods import apply_folds, get_method, gptq, quantize_model, read_records
from qsim.methods.calibration import calibration_of
from qsim.scheme import QuantizedTensor, get_scheme
from tests.models.small import random_model

F32 = np.float32
TOKENS = np.random.default_rng(7).integers(0, 96, (12, 32))
METHODS = [
    ("rtn", "w4a16-g32", {}),
    ("rtn", "mxfp4", {}),
    ("gptq", "w4a16-g32", {}),
    ("gptq", "w4a8-g32", {"act_order": True}),
    ("gptq", "w3a16-g32", {"correction": True, "act_order": "group_aware"}),
    ("awq", "w4a16-g32", {}),
    ("awq", "w3a16-g32-sym", {"formula": "duo", "clip": False}),
    ("smoothquant", "w8a8-channel-token", {}),
    ("smoothquant", "O3", {"alpha": None}),
    ("fp8", "fp8-tensor", {}),
    ("fp8", "fp8-static-kvfp8", {"percentile": 99.9}),
]
IDS = [f"{m}-{s}" for m, s, _ in METHODS]


def same(a: QuantizedTensor, b: QuantizedTensor) -> bool:
    return a == b


def assert_same(a, b):
    """Models equal bit for bit, records equal in all but times."""
    assert a.model.tensors.keys() == b.model.tensors.keys()
    for name, one in a.model.tensors.items():
        other = b.model.tensors[name]
        equal = one == other if isinstance(one, QuantizedTensor) else np.array_equal(one, other)
        assert equal, name
    for x, y in zip(a.layers, b.layers, strict=True):
        assert {k: v for k, v in x.to_dict().items() if k != "time_s"} == {
            k: v for k, v in y.to_dict().items() if k != "time_s"
        }


@pytest.mark.parametrize(("method", "scheme", "options"), METHODS, ids=IDS)
@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_every_method(method, scheme, options, kind, tmp_path):
    model = random_model(kind)
    seen = []
    result = quantize_model(model, method, scheme, TOKENS, micro_batch=5,
                            progress=lambda done, total, what: seen.append((done, total, what)), **options)  # fmt: skip
    names = list(model.linears())
    assert all(isinstance(result.model.tensors[f"{n}.weight"], QuantizedTensor) for n in names)
    assert [r.layer for r in result.layers] == names
    frame = result.records
    assert list(frame.layer) == names
    assert (frame.method == method).all()
    assert (frame.fallback == "").all()
    assert frame.output_error.between(0, 0.5).all()
    assert frame.rtn_output_error.between(0, 0.5).all()
    logits, exact = result.model.logits(TOKENS), model.logits(TOKENS)
    assert np.linalg.norm(logits - exact) < 0.9 * np.linalg.norm(exact)
    assert seen[-1][0] == pytest.approx(seen[-1][1])
    assert all(a[0] <= b[0] for a, b in itertools.pairwise(seen))
    assert {t for _, t, _ in seen} == {seen[0][1]}
    result.to_json(tmp_path)
    back = read_records(tmp_path)
    assert [r.to_dict() for r in back] == [r.to_dict() for r in result.layers]
    assert json.loads((tmp_path / "quantization_record.json").read_text())["calibration"]["tokens"] == TOKENS.size


# --- what a layer is shown ----------------------------------------------------------------------------------


def hessian_of(model, block, hidden, name):
    seen = []
    model.block(block, hidden, observe=lambda n, x: seen.append(x.copy()) if n == name else None)
    x = seen[0]
    return F32(2 / len(x)) * (x.T @ x)


def replaced(model, result, names):
    return model.replace(tensors={f"{n}.weight": result.model.tensors[f"{n}.weight"] for n in names})


@pytest.mark.parametrize("sequential", [True, False])
def test_gptq_sees_what_the_quantised_layers_before_give(sequential):
    model = random_model()
    how = get_scheme("w3a16-g32")
    result = quantize_model(model, "gptq", how, TOKENS, true_sequential=sequential)
    names = list(model.linears())
    hidden = model.embed(TOKENS)
    for block in range(2):
        groups, before = model.block_linears(block), []
        so_far = replaced(model, result, [n for n in names if f".{block}." not in n])
        for group in groups:
            context = replaced(so_far, result, before if sequential else [])
            for name in group:
                want, _ = gptq(model.tensors[f"{name}.weight"], hessian_of(context, block, hidden, name), how)
                got = result.model.tensors[f"{name}.weight"]
                assert (got.codes == want.codes).mean() > 0.99  # Hessians differ in the order of their sums
            before += group
        hidden = replaced(model, result, names).block(block, hidden)


def test_other_methods_see_the_original_inputs():
    model = random_model()
    result = quantize_model(model, "rtn", "w4a16-g32", TOKENS)
    hidden = model.block(0, model.embed(TOKENS))
    for record in result.layers[7:]:
        h = hessian_of(model, 1, hidden, record.layer).astype(np.float64)
        w = model.tensors[f"{record.layer}.weight"].astype(np.float64)
        d = w - result.model.tensors[f"{record.layer}.weight"].dequantize()
        want = np.einsum("nk,nk->", d @ h, d) / np.einsum("nk,nk->", w @ h, w)
        assert record.output_error == pytest.approx(want, rel=1e-3)
        assert record.error_ratio == 1


def test_gptaq_compares_with_the_original_inputs():
    model = random_model()
    results = [quantize_model(model, "gptq", "w3a16-g32", TOKENS, correction=c) for c in (False, True)]
    first = [r.model.tensors["model.layers.0.self_attn.q_proj.weight"] for r in results]
    assert same(*first)  # nothing is quantised before it: there is nothing to correct
    later = [r.model.tensors["model.layers.1.mlp.down_proj.weight"] for r in results]
    assert not same(*later)


def test_micro_batches_do_not_matter():
    model = random_model()
    a, b = (quantize_model(model, "awq", "w4a16-g32", TOKENS, micro_batch=m) for m in (1, 12))
    for name in model.linears():
        x, y = (r.model.tensors[f"{name}.weight"].dequantize() for r in (a, b))
        assert np.isclose(x, y, rtol=1e-3, atol=1e-6).mean() > 0.99


# --- folding ------------------------------------------------------------------------------------------------


def folds_of(model, recipe, tokens=TOKENS):
    from qsim.methods.recipe import BlockView
    from qsim.methods.run import Run
    from qsim.methods.store import Store

    calibration = calibration_of(model, tokens)
    import tempfile
    from contextlib import ExitStack
    from pathlib import Path

    out = []
    with ExitStack() as stack:
        run = Run(model, recipe, calibration, list(model.linears()), Store(None, {}), True, None, None)
        run.open(Path(stack.enter_context(tempfile.TemporaryDirectory())), stack)
        for i in range(model.config.num_hidden_layers):
            hidden = run._view_hidden()
            inputs = run._observe(i, model.block_linears(i), None, advance=True)
            out += recipe.fold(BlockView(model=model, index=i, inputs=inputs, hidden=hidden))
    return out


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "llama-biases", "qwen3", "opt", "opt-plain-norms"])
@pytest.mark.parametrize("method", ["awq", "smoothquant"])
def test_folded_models_are_the_same_function(kind, method):
    model = random_model(kind)
    recipe = get_method(method).make(*(("w4a16-g32",) if method == "awq" else (None, {"alpha": 0.8})))
    folds = folds_of(model, recipe)
    folded = apply_folds(model, folds)
    exact = model.logits(TOKENS)
    assert np.abs(folded.logits(TOKENS) - exact).max() < 1e-4 * np.abs(exact).max()
    sources = {f.source.rpartition(".")[2] for f in folds}
    expected = {
        ("awq", "llama"): {"input_layernorm", "post_attention_layernorm", "up_proj"},  # GQA: no v -> o
        ("awq", "llama-tied"): {"input_layernorm", "post_attention_layernorm", "up_proj", "v_proj"},
        ("awq", "opt"): {"self_attn_layer_norm", "final_layer_norm", "v_proj", "fc1"},
        ("awq", "opt-plain-norms"): {"v_proj"},
        ("smoothquant", "llama"): {"input_layernorm", "post_attention_layernorm"},  # o_proj, down_proj stay
        ("smoothquant", "opt"): {"self_attn_layer_norm", "final_layer_norm"},
        ("smoothquant", "opt-plain-norms"): set(),
    }
    if (method, kind) in expected:
        assert sources == expected[method, kind]
    if kind == "llama":
        assert any(f.scale.max() / f.scale.min() > 1.2 for f in folds)


@pytest.mark.parametrize("method", ["awq", "smoothquant"])
def test_the_quantised_model_is_the_folded_one_rounded(method):
    model = random_model()
    recipe = get_method(method).make("w8a16-g32" if method == "awq" else None)
    folded = apply_folds(model, folds_of(model, recipe))
    result = quantize_model(model, method, recipe.scheme, TOKENS)
    for name, tensor in result.model.tensors.items():
        other = folded.tensors[name]
        if isinstance(tensor, QuantizedTensor):
            assert np.abs(tensor.dequantize() - other).max() < 0.04 * np.abs(other).max()
        else:
            np.testing.assert_allclose(tensor, other, rtol=1e-6)
    for record in result.layers:
        assert (record.channel_scale is not None) == (
            record.layer.endswith(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"))
            or (method == "awq" and record.layer.endswith("down_proj"))
        )
        if record.channel_scale is not None:
            assert record.details["objective"] <= record.details["rtn_objective"] if method == "awq" else True


# --- going on after an interruption -------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "scheme", "options"), METHODS, ids=IDS)
def test_resuming_gives_the_same_model(method, scheme, options, tmp_path):
    model = random_model()
    whole = quantize_model(model, method, scheme, TOKENS, **options)
    for stop in (2, 9):
        folder, solved = tmp_path / str(stop), []

        def interrupt(_done, _total, what, solved=solved, stop=stop):
            if "proj: " in what:
                solved.append(what)
                if len(solved) == stop:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            quantize_model(model, method, scheme, TOKENS, work_dir=folder, progress=interrupt, **options)
        assert len(list(folder.glob("layer.*.piece"))) == stop
        resumed = quantize_model(model, method, scheme, TOKENS, work_dir=folder, **options)
        assert resumed.resumed == stop
        assert_same(resumed, whole)
    finished = quantize_model(model, method, scheme, TOKENS, work_dir=folder, **options)
    assert finished.resumed == 14
    assert_same(finished, whole)


def test_folders_of_other_runs(tmp_path):
    model = random_model()
    quantize_model(model, "rtn", "w4a16-g32", work_dir=tmp_path / "a")
    for other, what in (
        ({"scheme": "w3a16-g32"}, "scheme"),
        ({"method": "gptq", "calibration": TOKENS}, "calibration, method, settings"),
        ({"model": random_model(seed=1)}, "model"),
        ({"mse": True}, "settings"),
    ):
        given = {"model": model, "method": "rtn", "scheme": "w4a16-g32", **other}
        with pytest.raises(ValueError, match=f"holds an unfinished run with another {what}: remove it"):
            quantize_model(**given, work_dir=tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty and not an unfinished quantisation"):
        quantize_model(model, "rtn", "w4a16-g32", work_dir=tmp_path / "b")
    assert (tmp_path / "b" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(("method", "scheme"), [("gptq", "w4a16-g32"), ("awq", "w4a16-g32")])
def test_side_by_side(method, scheme):
    model = random_model()
    one = quantize_model(model, method, scheme, TOKENS)
    two = quantize_model(model, method, scheme, TOKENS, n_jobs=2)
    assert_same(one, two)


# --- memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "scheme", "options"), [METHODS[i] for i in (0, 2, 4, 5, 7, 9)],
                         ids=[IDS[i] for i in (0, 2, 4, 5, 7, 9)])  # fmt: skip
def test_the_estimate_is_kept(method, scheme, options):
    model = random_model(hidden_size=256, intermediate_size=512, max_position_embeddings=128)
    tokens = np.random.default_rng(0).integers(0, 96, (64, 128))
    run = {"micro_batch": 2, **options}
    quantize_model(model, method, scheme, tokens[:2], **run)  # compiled, imported
    told = []
    tracemalloc.start()
    result = quantize_model(model, method, scheme, tokens, announce=told.append, **run)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert told == [result.estimate]
    assert peak < told[0].total_bytes
    assert peak > 0.2 * told[0].total_bytes
    assert told[0].disk_bytes == 64 * 128 * 256 * 4 * (2 if options.get("correction") else 1)


def test_memory_does_not_grow_with_the_text():
    model = random_model(hidden_size=256, intermediate_size=512, max_position_embeddings=128)
    rng = np.random.default_rng(0)
    peaks = []
    for windows in (2, 8, 60):
        tokens = rng.integers(0, 96, (windows, 128))
        tracemalloc.start()
        quantize_model(model, "gptq", "w4a16-g32", tokens, micro_batch=2)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.05 * peaks[1] + 2 * tokens.nbytes  # the ids themselves, nothing else


# --- schemes with more than weights -------------------------------------------------------------------------


def test_static_scales_and_cache():
    model = random_model()
    result = quantize_model(model, "fp8", "fp8-static-kvfp8", TOKENS, fp8_attention=True)
    hidden, seen = model.embed(TOKENS), {}
    model.block(0, hidden, observe=lambda n, x: seen.update({n: x.copy()}))
    q = result.model.tensors["model.layers.0.self_attn.o_proj.weight"]
    assert q.input_scale == pytest.approx(np.abs(seen["model.layers.0.self_attn.o_proj"]).max() / 448, rel=1e-6)
    x = seen["model.layers.0.self_attn.k_proj"]
    value = x @ model.tensors["model.layers.0.self_attn.v_proj.weight"].T
    v_scale = result.model.tensors["model.layers.0.self_attn.v_scale"]
    assert v_scale == pytest.approx(np.abs(value).max() / 448, rel=1e-5)
    cache = model.new_cache(12, 32)
    model.logits(TOKENS, cache=cache)
    keys = np.abs(cache.keys).max(axis=(1, 2, 3, 4))
    for i in range(2):  # no position's rotation clips
        k_scale = float(result.model.tensors[f"model.layers.{i}.self_attn.k_scale"][0])
        assert keys[i] <= 448 * k_scale * (1 + 1e-5)
        assert keys[i] > 448 * k_scale / 1.5
    assert result.model.kv_cache.format.name == "float8_e4m3fn"
    assert result.model.attention.operand_format == "float8_e4m3fn"
    assert (result.records.activation_clip_fraction == 0).all()
    clipped = quantize_model(model, "fp8", "fp8-static", TOKENS, percentile=99)
    assert clipped.records.activation_clip_fraction.between(1e-4, 0.02).all()
    assert (clipped.records.joint_error >= 0).all()


def test_static_scales_of_other_methods():
    model = random_model()
    for method, scheme in (("gptq", "w8a8-channel-tensor-static"), ("rtn", "w8a8-tensor-static")):
        result = quantize_model(model, method, scheme, TOKENS)
        assert all(result.model.tensors[f"{n}.weight"].input_scale > 0 for n in model.linears())
        assert (result.records.joint_error < 0.05).all()


def test_nvfp4_activations_get_the_scale_that_checkpoints_store(tmp_path):
    from qsim.checkpoints import read, write

    model = random_model()
    result = quantize_model(model, "rtn", "nvfp4", TOKENS)
    peaks = []
    model.block(0, model.embed(TOKENS), observe=lambda name, x: peaks.append(np.abs(x).max()))
    name = "model.layers.0.self_attn.q_proj"
    assert result.model.linears()[name].weight.input_scale == pytest.approx(peaks[0] / (448 * 6), rel=1e-6)
    write(result.model, tmp_path / "out", "compressed-tensors")
    back = read(tmp_path / "out")
    assert all(back.tensors[n] == t for n, t in result.model.tensors.items() if isinstance(t, QuantizedTensor))


def test_ignored_layers_stay_float():
    model = random_model()
    result = quantize_model(model, "awq", "w4a16-g32", TOKENS, ignore=["*.down_proj", "model.layers.0.self_attn.*"])
    for name in model.linears():
        kept = name.endswith("down_proj") or name.startswith("model.layers.0.self_attn")
        assert isinstance(result.model.tensors[f"{name}.weight"], np.ndarray) == kept
    assert len(result.layers) == 14 - 2 - 4
    exact = model.logits(TOKENS)
    assert np.linalg.norm(result.model.logits(TOKENS) - exact) < 0.5 * np.linalg.norm(exact)


def test_without_calibration():
    model = random_model()
    for method, scheme in (("rtn", "w4a16-g32"), ("rtn", "nvfp4"), ("fp8", "fp8-tensor"), ("fp8", "fp8-block128")):
        result = quantize_model(model, method, scheme)
        assert result.records.output_error.isna().all()
        assert (result.records.weight_mse > 0).all()
