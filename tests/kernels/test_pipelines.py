"""The fused kernels of GPUs: every row of pipelines.toml against recorded bits, and what it refuses."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import sys
import tomllib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import qsim
from qsim.kernels import Pipeline, get_pipeline, list_pipelines, pipelines
from qsim.kernels.operands import quantized
from qsim.tensorcore import get_preset

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
F32 = np.float32


@functools.cache
def report():
    """reports/fused_bits.py, which knows how recordings are laid out."""
    sys.path.insert(0, str(ROOT / "reports"))
    try:
        spec = importlib.util.spec_from_file_location("fused_bits", ROOT / "reports" / "fused_bits.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "reports"))
    return module


@functools.cache
def recorded(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


@functools.cache
def packed(name, shape):
    return qsim.pack(report().weight(recorded("humming_bits"), name, shape))


HUMMING = ("w4a16_g128", "w4a16_g128_zp", "w3a16_g128", "w8a16_ch", "mxfp4_a16", "nvfp4_a16", "w8a8_int8", "w8a8_fp8",
           "w4a8_int8", "w4a8_fp8", "mxfp4_fp8")  # fmt: skip
CASES = [(512, m, d) for m in (1, 16, 72) for d in ("normal", "wide")]
CASES += [(4096, m, d) for m in (1, 16) for d in ("normal", "wide")]


def exact(x, weight, kernel="humming"):
    return report().codes_of(qsim.linear(x, weight, exact=True, kernel=kernel))


@pytest.mark.parametrize("name", HUMMING)
def test_humming_is_bit_for_bit_what_an_h200_returned(name):
    data = recorded("humming_bits")
    for k, m, distribution in CASES:
        shape = report().SHAPES[k]
        key = f"{name}.{shape}.{m}.{distribution}"
        weight, x = packed(name, shape), data[f"x.{k}.{m}.{distribution}"]
        y = exact(x, weight)
        np.testing.assert_array_equal(y, data[f"{key}.yi"], err_msg=key)
        np.testing.assert_array_equal(exact((x.astype(np.uint32) << 16).view(F32), weight), y)
        if f"{key}.q" not in data:
            continue
        codes, scales = quantized(get_pipeline(report().FORMATS[name][2]), x, weight.scheme.activation, k, None)
        np.testing.assert_array_equal(codes.view(np.uint8), data[f"{key}.q"], err_msg=key)
        np.testing.assert_array_equal(scales.view(np.uint32), data[f"{key}.qs"][:, 0], err_msg=key)
        given = data[f"{key}.q"], data[f"{key}.qs"].view(F32)
        np.testing.assert_array_equal(exact(given, weight), y)


KERNELS = ("tinygemm", "triton", "scaled.tensor", "scaled.tensor.slow", "scaled.row", "scaled.row.slow",
           "scaled.block.slow", "scaled.group.slow")  # fmt: skip


@functools.cache
def remade(n, k, m, distribution):
    return report().recorder().inputs(n, k, m, distribution)


def hash_of(kind, shape, m, distribution):
    n, k = map(int, shape.split("x"))
    _, y = report().run_kind(kind, remade(n, k, m, distribution))
    return y, hashlib.sha256(y.tobytes()).hexdigest()


@pytest.mark.parametrize("kind", KERNELS)
def test_library_kernels_are_bit_for_bit_what_an_h200_returned(kind):
    """The hash is of all outputs; only the rows of the first tokens are stored."""
    data = recorded("h200_kernels")
    cases = json.loads(data["notes"].tobytes())["kernels"]["cases"]
    for shape, m in (("256x512", 16), ("256x512", 72), ("384x4096", 16)):
        for distribution in ("normal", "wide"):
            key = f"{kind}.{shape}.{m}.{distribution}"
            y, digest = hash_of(kind, shape, m, distribution)
            np.testing.assert_array_equal(y[: len(data[key])], data[key], err_msg=key)
            assert digest == cases[key]["sha256"], key


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KERNELS)
def test_all_recordings_of_library_kernels(kind):
    cases = json.loads(recorded("h200_kernels")["notes"].tobytes())["kernels"]["cases"]
    for key, case in cases.items():
        named, shape, m, distribution = key.rsplit(".", 3)
        if named == kind:
            assert hash_of(kind, shape, int(m), distribution)[1] == case["sha256"], key


def test_two_bit_codes_and_other_shapes_are_in_a_second_recording():
    data, record = recorded("h200_kernels"), report().recorder()
    cases = json.loads(data["notes"].tobytes())["stream_k"]
    for key in ("w2a16_g128.384x4096.16", "w8a8_fp8.1024x8192.32", "w4a16_g128_zp.384x4096.72"):
        name, shape, m = key.split(".")
        made, _ = record.fused_inputs(name, *map(int, shape.split("x")), int(m))
        zeros = {"zero_points": made["zero"]} if "zero" in made else {}
        q = qsim.quantize.from_codes(made["codes"], report().FORMATS[name][0], made["weight_scale"], **zeros)
        y = exact(made["x"], qsim.pack(q))
        np.testing.assert_array_equal(y[:2], data[f"stream_k.{key}.invariant"])
        assert hashlib.sha256(y.tobytes()).hexdigest() == cases[key]["sha256_of_invariant"]


# ---- what the recordings do not show


def weight_of(scheme="W4A16", n=32, k=256):
    w = np.random.default_rng(3).standard_normal((n, k)).astype(F32)
    given = qsim.get_scheme(scheme)
    if given.weight.is_integer or given.weight.format.name == "float8_e4m3fn":
        part = {**vars(given.weight), "scale_format": qsim.get_format("bfloat16")}
        given = given.replace(weight=qsim.scheme.TensorScheme(**part))
    return qsim.quantize(w, given)


def test_activations_of_any_type_and_rank_are_rounded_to_bf16_once():
    weight = qsim.pack(weight_of())
    x = np.random.default_rng(4).standard_normal((2, 3, 256)).astype(F32)
    want = qsim.linear(qsim.encode(x, "bfloat16"), weight, exact=True, kernel="humming")
    assert want.shape == (2, 3, 32)
    assert want.dtype == F32
    assert not (want.view(np.uint32) & 0xFFFF).any()  # BF16 values
    for given in (x, x.astype(np.float64), x.astype(ml_dtypes.bfloat16)):
        np.testing.assert_array_equal(qsim.linear(given, weight, exact=True, kernel="humming"), want)
    assert qsim.linear(x[:0], weight, exact=True, kernel="humming").shape == (0, 3, 32)
    np.testing.assert_array_equal(qsim.linear(x[0, 0], weight, exact=True, kernel="humming.w4a16"), want[0, 0])


def test_a_token_of_zeros_gives_zeros_and_leaves_the_others_alone():
    for scheme in ("W4A8", "W4AFP8", "mxfp4-fp8"):
        weight = qsim.pack(weight_of(scheme))
        x = np.random.default_rng(5).standard_normal((3, 256)).astype(F32)
        want = qsim.linear(x, weight, exact=True, kernel="humming")
        x[1] = 0
        got = qsim.linear(x, weight, exact=True, kernel="humming")
        assert not got[1].any()
        np.testing.assert_array_equal(got[[0, 2]], want[[0, 2]])


def test_every_row_runs_a_scheme_and_is_close_to_the_product():
    """BF16 output and accumulators of 13 bits: some 2^-8 of the sum of the products' magnitudes at worst."""
    schemes = ("W4A16", "W4A16_ASYM", "w3a16-g128-sym", "w2a16-g128-sym", "w8a16-channel-sym", "MXFP4A16",
               "NVFP4A16", "w8a8-channel-token", "fp8-rowwise", "W4A8", "W4AFP8", "mxfp4-fp8", "fp8-tensor",
               "fp8-block128")  # fmt: skip
    x = np.random.default_rng(6).standard_normal((4, 512)).astype(F32)
    ran = set()
    for scheme in schemes:
        q = weight_of(scheme, n=128, k=512)
        for row in list_pipelines():
            if row.fits(q.scheme, 4):
                y = qsim.linear(x, qsim.pack(q), exact=True, kernel=row)
                w = q.dequantize()
                assert np.abs(y - x @ w.T).max() <= 2.0**-4 * (np.abs(x) @ np.abs(w).T).max(), (scheme, row.name)
                ran.add(row.name)
    assert ran == {row.name for row in list_pipelines()} - {
        "scaled_mm_precise.fp8_group128", "scaled_mm_precise.fp8_group128_tall",  # no scheme of that name
    }  # fmt: skip


def test_the_table_says_how_each_row_is_known():
    rows = list_pipelines()
    assert qsim.list_pipelines().names == rows.names
    assert len(rows) >= 25
    assert {r.status for r in rows} == {"established", "source", "assumed"}
    for row in rows:
        assert row.source
        assert qsim.get_instruction(row.instruction).status == "established"
        assert get_pipeline(row.name) is row
    humming = {row.name for row in list_pipelines("humming.")}
    assert {name for _, _, name in report().FORMATS.values()} == humming


REFUSED = [
    ({"kernel": "huming"}, "unknown kernel 'huming': the nearest are humming"),
    ({"kernel": 5}, "kernel must be a name or a Pipeline: got int"),
    ({"exact": False}, "kernel belongs to exact=True"),
    ({"instruction": "hopper.wgmma.f32.bf16"}, "kernel belongs to exact=True and decides the instruction"),
    ({"kernel": "deepgemm"}, r"does not run int4 group\(128\) by bfloat16: humming and cublaslt and tinygemm and"),
    (
        {"kernel": "humming.w3a16"},
        r"w3a16 does not run int4 .*; humming.w3a16 runs int3 group\(128\) by bfloat16",
    ),
    ({"x": np.ones((2, 128), F32)}, r"activations must have 256 columns: got shape \(2, 128\)"),
    ({"x": np.ones((2, 256), np.int32)}, "activations must be real floating-point numbers: got int32"),
    ({"x": (np.ones((2, 256), np.int8), np.ones(2, F32))}, "codes with scales belong to 8-bit ones"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_no_kernel_does_is_refused(change, message):
    arguments = {"x": np.ones((2, 256), F32), "exact": True, "kernel": "humming", **change}
    with pytest.raises(qsim.QsimError, match=message):
        qsim.linear(arguments.pop("x"), qsim.pack(weight_of()), **arguments)


def test_group_sizes_that_were_not_recorded_are_refused():
    x = np.ones((2, 256), F32)
    with pytest.raises(qsim.QsimError, match=r"humming does not run int4 group\(64\) by bfloat16: cublaslt does"):
        qsim.linear(x, qsim.pack(qsim.quantize(np.eye(256, dtype=F32), "w4a16-g64-sym")), exact=True, kernel="humming")
    group = report().scheme_of("fp8-group128")
    q = qsim.quantize(np.ones((128, 256), F32), group)
    with pytest.raises(qsim.QsimError, match="is known for this scheme for M from 1 to 16 and from 72: got 40 tokens"):
        qsim.linear(np.ones((40, 256), F32), qsim.pack(q), exact=True, kernel="scaled_mm_precise")


def test_scales_that_the_kernel_cannot_store_are_refused_with_what_to_do():
    w = np.random.default_rng(3).standard_normal((8, 256)).astype(F32)
    with pytest.raises(qsim.QsimError, match=r"humming.w4a16 reads bfloat16 scales of the weight: .* in row 0 is none"):
        qsim.linear(w, qsim.pack(qsim.quantize(w, "W4A16")), exact=True, kernel="humming")
    far = qsim.quantize.from_codes(np.ones((2, 64), np.uint8), "mxfp4-fp8", np.uint8([[100, 127]] * 2))
    with pytest.raises(qsim.QsimError, match="must have exponents at most 11 apart to be exact in E4M3: got 27"):
        qsim.linear(np.ones((1, 64), F32), qsim.pack(far), exact=True, kernel="humming")


def test_given_codes_and_scales_must_be_whole():
    weight = qsim.pack(weight_of("W4AFP8"))
    codes, scales = np.zeros((2, 256), np.uint8), np.ones((2, 1), F32)
    for given, message in (
        ((codes, scales, scales), "must be a pair of codes and scales: got 3 parts"),
        ((codes.astype(np.int8), scales), r"must be uint8 of shape \(M, 256\): got int8"),
        ((codes, scales[:1]), r"scales of activations must have the shape \(2, 1\): got \(1, 1\)"),
        ((codes + 0x7F, scales), "FP8 codes of activations must be finite"),
        ((codes, scales * np.inf), "scales of activations must be finite"),
    ):
        with pytest.raises(qsim.QsimError, match=message):
            qsim.linear(given, weight, exact=True, kernel="humming")
    with pytest.raises(qsim.QsimError, match="activations must be finite"):
        qsim.linear(np.full((2, 256), np.nan, F32), weight, exact=True, kernel="humming")
    with pytest.raises(qsim.QsimError, match="has no bias: pack without it and add it"):
        qsim.linear((codes, scales), qsim.pack(weight.source, np.zeros(32)), exact=True, kernel="humming")


def test_rows_and_presets_of_matmul_say_one_thing_once():
    text = (ROOT / "qsim" / "kernels" / "pipelines.toml").read_text(encoding="utf-8")
    named = {row["name"]: row for row in tomllib.loads(text)["pipeline"] if "preset" in row}
    assert {row["preset"] for row in named.values()} >= {
        "cublaslt_fp8_fast", "cublaslt_fp8_precise", "cublaslt_bf16", "deepgemm",
    }  # fmt: skip
    for name, row in named.items():
        preset, known = get_preset(row["preset"]), get_pipeline(name)
        assert (known.instruction, known.chain or None) == (preset.instruction, preset.promote_every)
        assert known.promotion == (preset.promotion if preset.promote_every else "")
        assert not {"instruction", "chain", "promotion"} & row.keys()
    with pytest.raises(qsim.QsimError, match="row: chain is said by preset 'deepgemm'; leave it out"):
        pipelines._of_preset("deepgemm", {"chain": 128}, "row")


def test_a_row_must_hold_together():
    fine = {"name": "x.y", "weight": ("int4",), "activation": "bfloat16", "operand": "fold",
            "instruction": "hopper.wgmma.f32.bf16", "status": "source", "source": "here",
            "epilogue": ("round to bfloat16",)}  # fmt: skip
    Pipeline(**fine)
    for change, message in (
        ({"operand": "folded"}, "x.y: operand must be one of codes, integers, fold"),
        ({"epilogue": ("times two", "round to bfloat16")}, "epilogue must be one of .* got 'times two'"),
        ({"epilogue": ()}, "the last step must round to its output, bfloat16"),
        ({"chain": 128}, "chain and promotion belong together"),
    ):
        with pytest.raises(qsim.QsimError, match=message):
            Pipeline(**{**fine, **change})
