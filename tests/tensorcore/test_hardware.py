"""The proof: every recorded output of real tensor cores, bit for bit."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from qsim.tensorcore import get_instruction, matmul, mma
from qsim.tensorcore.engine import Chain
from qsim.tensorcore.gemm import _prepare

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
RECORDINGS = Path(os.environ.get("QSIM_RECORDINGS") or GOLDEN / "none")
"""A folder with the whole recordings, `h200/` and `vectors/`, where somebody has them; what is committed is enough."""
VECTORS = RECORDINGS / "vectors"

CALLS = {
    "e4m3_fast_f32": ("xe", "we", {"preset": "cublaslt_fp8_fast"}),
    "e4m3_slow_f32": ("xe", "we", {"preset": "cublaslt_fp8_precise"}),
    "e4m3_fast_bf16": ("xe", "we", {"preset": "cublaslt_fp8_fast", "out_format": "bf16"}),
    "e5m2_fast_f32": ("x5", "we", {"preset": "cublaslt_fp8_fast", "instruction": "hopper.wgmma.f32.e5m2.e4m3"}),
    "bf16_f32": ("xb", "wb", {"preset": "cublaslt_bf16"}),
    "bf16_bf16": ("xb", "wb", {"preset": "cublaslt_bf16", "out_format": "bf16"}),
    "f16_f32": ("xh", "wh", {"preset": "cublaslt_fp16"}),
}


def recorded(file: str) -> list:
    """The committed copy, and the full recording where it is."""
    full = RECORDINGS / "h200" / file
    missing = pytest.mark.skip(reason="QSIM_RECORDINGS names no h200/; tests/golden holds the committed part")
    return [
        pytest.param(GOLDEN / file, id="golden"),
        pytest.param(full, id="full", marks=() if full.exists() else missing),
    ]


def instruction_of(array_name: str) -> str:
    operation, _, output, inputs = array_name.split("_")[:4]
    return f"hopper.{operation}.{output}.{'e4m3.e5m2' if inputs == 'e4m3e5m2' else inputs}"


@pytest.mark.parametrize("path", recorded("mma.npz"))
def test_every_recorded_instruction(path):
    with np.load(path) as data:
        names = sorted({key.rsplit(".", 1)[0] for key in data.files})
        assert len(names) == 25
        outputs = 0
        for name in names:
            ins = get_instruction(instruction_of(name))
            a, b, c, d = (data[f"{name}.{x}"] for x in "ABCD")
            if ins.output == "s32":
                a, b, c, d = a.view(np.int8), b.view(np.int8), c.view(np.int32), d.view(np.int32)
            mismatches = int((mma(ins, a, b, c) != d).sum())
            assert mismatches == 0, f"{name}: {mismatches} of {d.size}"
            outputs += d.size
            if ins.arithmetic == "truncated":
                chain, k_index = Chain(ins=ins), np.arange(a.shape[2])
                fast = np.stack(
                    [
                        chain.run(_prepare(chain, ins, x, "a", None), _prepare(chain, ins, y, "b", None), z, k_index)
                        for x, y, z in zip(a, b, c, strict=True)
                    ]
                )
                assert int((fast != d).sum()) == 0, f"{name}, vector kernel"
        assert outputs == 151040


@pytest.mark.parametrize("path", recorded("gemm_bits.npz"))
def test_every_recorded_gemm(path):
    with np.load(path) as data:
        cases = sorted({key.rsplit(".", 1)[0] for key in data.files})
        for case in cases:
            for output, (x, w, arguments) in CALLS.items():
                expected = data[f"{case}.{output}"]
                got = matmul(data[f"{case}.{x}"], data[f"{case}.{w}"], **arguments)
                mismatches = int((got != expected).sum())
                assert mismatches == 0, f"{case}.{output}: {mismatches} of {expected.size}"


@pytest.mark.parametrize("path", recorded("gemm_bits.npz"))
@pytest.mark.parametrize("interval", [32, 64, 256])
def test_the_recordings_tell_promotion_intervals_apart(path, interval):
    """128 is not one choice among several that would pass."""
    with np.load(path) as data:
        case = "64x64x512.positive"
        got = matmul(data[f"{case}.xe"], data[f"{case}.we"], preset="cublaslt_fp8_precise", promote_every=interval)
        assert (got != data[f"{case}.e4m3_slow_f32"]).any()


def vector_sets() -> list:
    if not (VECTORS / "sets.csv").exists():
        reason = "QSIM_RECORDINGS names no vectors/ (Khattak & Mikaitis, arXiv:2512.07004)"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason))]
    with (VECTORS / "sets.csv").open() as file:
        return [pytest.param(row, id=f"{row['gpu']}-{row['input']}-{row['output']}") for row in csv.DictReader(file)]


def vector_instruction(row: dict[str, str]) -> str:
    architecture = {"A100": "ampere", "Ada": "ada", "H100": "hopper", "B200": "blackwell"}[row["gpu"]]
    operation = "wgmma" if row["instruction"].startswith("wgmma") else "mma"
    names = {"fp16": "f16", "fp32": "f32"}
    return f"{architecture}.{operation}.{names[row['output']]}.{names.get(row['input'], row['input'])}"


def as_codes(words: np.ndarray, name: str) -> np.ndarray:
    """float32 words that are exact in a format, as its codes."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    types = {
        "f16": np.float16,
        "bf16": ml_dtypes.bfloat16,
        "e4m3": ml_dtypes.float8_e4m3fn,
        "e5m2": ml_dtypes.float8_e5m2,
    }
    if name == "tf32":
        return words
    values = words.view(np.float32)
    narrow = values.astype(types[name])
    np.testing.assert_array_equal(narrow.astype(np.float32), values)
    return narrow.view(np.uint8 if narrow.dtype.itemsize == 1 else np.uint16)


def vector_mismatches(row: dict[str, str]) -> tuple[int, int]:
    """(mismatches, outputs) of one published set."""
    ins = get_instruction(vector_instruction(row))
    with np.load(VECTORS / f"{row['gpu']}.npz") as data:
        a, b = (data[f"{row['input']}.{x}"] for x in "ab")
        c = data[f"{row['input']}.c"]
        expected = data[f"{row['input']}.d_{row['output']}"]
    if row["addend"] == "zero":
        c = np.zeros_like(c)
    k = a.shape[1]
    padding = -k % (ins.k if ins.arithmetic == "emulated" else ins.products)
    a, b = (np.pad(as_codes(x, ins.input_a), ((0, 0), (0, padding))) for x in (a, b))
    if row["output"] == "fp16":
        c = c.view(np.float32).astype(np.float16).view(np.uint16)
    d = mma(ins, a[:, None, :], b[:, None, :], c[:, None, None])[:, 0, 0]
    if row["output"] == "fp16":
        d = d.view(np.float16).astype(np.float32).view(np.uint32)
    return int((d != expected).sum()), len(d)


@pytest.mark.parametrize("row", vector_sets())
def test_published_vectors(row):
    assert vector_mismatches(row) == (0, int(row["rows"])) == (0, 5000)


def test_the_chain_that_stops_at_64():
    """A = B = 1/16, 16 chained K=32 wgmma a round: +2 a round, until 64 swallows every product (seen on a GH200)."""
    a = np.full((1, 32 * 16), 0x18, np.uint8)  # 2^-4 in E4M3
    c = np.zeros((1, 1), np.uint32)
    seen = {}
    for round_number in range(1, 65):
        c = mma("hopper.wgmma.f32.e4m3", a, a, c)
        seen[round_number] = float(c.view(np.float32)[0, 0])
    assert seen[1] == 2.0
    assert seen[2] == 4.0
    assert [seen[n] for n in (31, 32, 33, 64)] == [62.0, 64.0, 64.0, 64.0]
    far = matmul(np.full((1, 32 * 16 * 8192), 0x18, np.uint8), np.full((1, 32 * 16 * 8192), 0x18, np.uint8),
                 preset="cublaslt_fp8_fast")  # fmt: skip
    assert float(far.view(np.float32)[0, 0]) == 64.0
