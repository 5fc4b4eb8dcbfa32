"""Against the package mmasim 2.1.1 (MMA-Sim, arXiv:2511.10909), on random and adversarial inputs, NaN as NaN."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

from qsim.tensorcore import get_instruction, mma

from . import cases

pytestmark = pytest.mark.oracle

torch = pytest.importorskip("torch")
mmasim = pytest.importorskip("mmasim")

ARCHITECTURES = {
    "volta": "Volta",
    "turing": "Turing",
    "ampere": "Ampere",
    "ada": "Ada Lovelace",
    "hopper": "Hopper",
    "blackwell": "Blackwell",
    "blackwell_rtx": "RTX Blackwell",
}


def _fma_extension_is_missing() -> bool:
    """mmasim compiles its FMA when it is imported; without a compiler that fails, and only its FMA is lost."""
    try:
        import mmasim.arithmetic.fma  # noqa: F401
    except Exception:
        stub = types.ModuleType("mmasim.arithmetic.fma")
        stub.MMA_FMA = type("MMA_FMA", (), {})
        sys.modules["mmasim.arithmetic.fma"] = stub
        return True
    return False


WITHOUT_FMA = _fma_extension_is_missing()

from mmasim import amd, nv_ptx  # noqa: E402


def mma_qualifiers(architecture: str) -> list[tuple[str, str]]:
    """(our name, mmasim's) of an architecture's mma.sync, with its largest K of each kind."""
    known = nv_ptx.isa_mma.mma_shape_and_type[ARCHITECTURES[architecture]]
    found = {}
    for qualifier in known:
        parts = qualifier.split(".")
        if parts[1].startswith("kind"):
            parts.pop(1)
        _, d, a, b, c = parts
        if d != c:
            continue
        name = f"{architecture}.mma.{d}.{a if a == b else f'{a}.{b}'}"
        try:
            get_instruction(name)
        except ValueError:
            continue
        if architecture == "blackwell_rtx" and "kind" not in qualifier and a in ("e4m3", "e5m2"):
            continue
        if architecture == "turing" and "m8n8k4" in qualifier:
            continue
        old = found.get(name)
        if old is None or nv_ptx.isa_common.nv_shape_to_mnk(old.split(".")[0])[2] < _k(qualifier):
            found[name] = qualifier
    return [(name, q) for name, q in found.items() if get_instruction(name).arithmetic != "emulated"]


def _k(qualifier: str) -> int:
    return nv_ptx.isa_common.nv_shape_to_mnk(qualifier.split(".")[0])[2]


def all_pairs() -> list:
    pairs = []
    for architecture in ARCHITECTURES:
        for name, q in mma_qualifiers(architecture):
            pairs.append((name, "MMA", ARCHITECTURES[architecture], q))
    for d, a, b, k in [
        ("f32", "tf32", "tf32", 8),
        ("f32", "f16", "f16", 16),
        ("f16", "f16", "f16", 16),
        ("f32", "bf16", "bf16", 16),
        *((d, a, b, 32) for d in ("f32", "f16") for a in ("e4m3", "e5m2") for b in ("e4m3", "e5m2")),
    ]:
        name = a if a == b else f"{a}.{b}"
        pairs.append((f"hopper.wgmma.{d}.{name}", "WGMMA", "Hopper", f"m64n8k{k}.{d}.{a}.{b}"))
    for d, kind, a, b, k in [
        ("f32", "tf32", "tf32", "tf32", 8),
        ("f32", "f16", "f16", "f16", 16),
        ("f16", "f16", "f16", "f16", 16),
        ("f32", "f16", "bf16", "bf16", 16),
        *(
            (d, "f8f6f4", a, b, 32)
            for d in ("f32", "f16")
            for a in ("e4m3", "e5m2", "e3m2", "e2m3", "e2m1")
            for b in ("e4m3", "e5m2", "e3m2", "e2m3", "e2m1")
        ),
    ]:
        name = a if a == b else f"{a}.{b}"
        pairs.append(
            (f"blackwell.tcgen05.{d}.{name}", "TCGen05MMA", "Blackwell", f"m64n8k{k}.kind::{kind}.{d}.{a}.{b}")
        )
    return [pytest.param(*p, id=p[0]) for p in pairs]


def to_torch(codes: np.ndarray, text: str):
    """Our codes as mmasim takes them: FP6 in bits 5:0 and FP4 in bits 5:2 of a byte."""
    kinds = {
        "f16": torch.float16,
        "bf16": torch.bfloat16,
        "e4m3": torch.float8_e4m3fn,
        "e5m2": torch.float8_e5m2,
        "e4m3fnuz": torch.float8_e4m3fnuz,
        "e5m2fnuz": torch.float8_e5m2fnuz,
        "f32": torch.float32,
        "tf32": torch.float32,
        "f64": torch.float64,
        "bf16_1k": torch.bfloat16,
    }
    if text == "e2m1":
        return torch.from_numpy((codes << 2).astype(np.uint8))
    if text in ("e3m2", "e2m3"):
        return torch.from_numpy(codes.copy())
    words = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}[codes.dtype.itemsize]
    return torch.from_numpy(codes.view(words).copy()).view(kinds[text])


def bits_of(result, dtype: np.dtype) -> np.ndarray:
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    return result.contiguous().view(words).numpy().view(dtype)


def assert_same(ours: np.ndarray, theirs: np.ndarray, output: str, *, signed_zero: bool = True) -> None:
    floats = {"f16": np.float16, "f32": np.float32, "f64": np.float64}[output]
    x, y = ours.view(floats), theirs.view(floats)
    same = (ours == theirs) | (np.isnan(x) & np.isnan(y))
    if not signed_zero:
        same |= (x == 0) & (y == 0)
    assert same.all(), f"{(~same).sum()} of {same.size} differ"


@pytest.mark.parametrize(("name", "kind", "architecture", "qualifier"), all_pairs())
def test_nvidia(name, kind, architecture, qualifier):
    ins = get_instruction(name)
    if ins.arithmetic == "fma" and WITHOUT_FMA:
        pytest.skip("mmasim's FMA extension needs a C++ compiler")
    theirs = getattr(nv_ptx, kind)(architecture, qualifier)
    rng = np.random.default_rng(sum(map(ord, name)))
    m, n, k = theirs.m, theirs.n, theirs.k
    for case in cases.KINDS:
        for _ in range(4):
            a, b = cases.operand(ins, "a", case, (m, k), rng), cases.operand(ins, "b", case, (n, k), rng)
            c = cases.addend(ins, case, (m, n), rng)
            expected = theirs(to_torch(a, ins.input_a), to_torch(b, ins.input_b).T, to_torch(c, ins.output))
            # their DMMA is the host's FMA: a NaN and a signed zero are IEEE's there and here
            assert_same(mma(ins, a, b, c), bits_of(expected, ins.output_dtype), ins.output)


def block_scaled_pairs() -> list:
    short = {"e4m3": "mxfp8_e4m3", "e5m2": "mxfp8_e5m2", "e3m2": "mxfp6_e3m2", "e2m3": "mxfp6_e2m3", "e2m1": "mxfp4"}
    pairs = []
    for ours, cls, architecture, shape in (
        ("blackwell.tcgen05", "TCGen05MMABlockScale", "Blackwell", "m128n8"),
        ("blackwell_rtx.mma", "MMABlockScale", "RTX Blackwell", "m16n8"),
    ):
        for a in short:
            for b in short:
                if a == b == "e2m1":
                    continue
                inputs = short[a] if a == b else f"{short[a]}.{short[b]}"
                tail = f"f32.{a}.{b}" + ("" if cls.startswith("TC") else ".f32") + ".ue8m0"
                pairs.append((f"{ours}.f32.{inputs}", cls, architecture, f"{shape}k32.kind::mxf8f6f4.block32.{tail}"))
        middle = "f32.e2m1.e2m1" + ("" if cls.startswith("TC") else ".f32")
        for inputs, block, scale in (("mxfp4", 32, "ue8m0"), ("nvfp4", 16, "ue4m3")):
            q = f"{shape}k64.kind::mxf4nvf4.block{block}.{middle}.{scale}"
            pairs.append((f"{ours}.f32.{inputs}", cls, architecture, q))
    return [pytest.param(*p, id=p[0]) for p in pairs]


@pytest.mark.parametrize(("name", "kind", "architecture", "qualifier"), block_scaled_pairs())
def test_block_scaled(name, kind, architecture, qualifier):
    ins = get_instruction(name)
    theirs = getattr(nv_ptx, kind)(architecture, qualifier)
    rng = np.random.default_rng(sum(map(ord, name)))
    m, n, k = theirs.m, theirs.n, theirs.k
    for case in cases.KINDS:
        a, b = cases.operand(ins, "a", case, (m, k), rng), cases.operand(ins, "b", case, (n, k), rng)
        c = cases.addend(ins, case, (m, n), rng)
        sa, sb = (cases.scales(ins, w, rows, k, case, rng) for w, rows in (("a", m), ("b", n)))
        scale_type = torch.float8_e4m3fn if ins.input_a == "nvfp4" else torch.float8_e8m0fnu
        x, y = (_packed(v, text, k) for v, text in ((a, ins.input_a), (b, ins.input_b)))
        expected = theirs(
            x,
            y.T,
            to_torch(c, "f32"),
            torch.from_numpy(sa).view(scale_type),
            torch.from_numpy(sb).view(scale_type).T,
        )
        got = mma(ins, a, b, c, scale_a=sa, scale_b=sb)
        assert_same(got, bits_of(expected, ins.output_dtype), ins.output)


def _packed(codes: np.ndarray, text: str, k: int):
    element = {"mxfp8_e4m3": "e4m3", "mxfp8_e5m2": "e5m2", "mxfp6_e3m2": "e3m2", "mxfp6_e2m3": "e2m3"}.get(text, "e2m1")
    if k == 64:  # two FP4 codes per byte, the first in the high half
        return torch.from_numpy((codes[:, ::2] << 4) | codes[:, 1::2])
    return to_torch(codes, element)


AMD = [
    ("cdna1.mfma.f32.f16", "CDNA1", "f32_16x16x16f16"),
    ("cdna1.mfma.f32.bf16", "CDNA1", "f32_16x16x8bf16"),
    ("cdna1.mfma.f32.f32", "CDNA1", "f32_16x16x4f32"),
    ("cdna2.mfma.f32.f16", "CDNA2", "f32_16x16x16f16"),
    ("cdna2.mfma.f32.bf16", "CDNA2", "f32_16x16x8bf16"),
    ("cdna2.mfma.f32.bf16_1k", "CDNA2", "f32_16x16x16bf16_1k"),
    ("cdna2.mfma.f64.f64", "CDNA2", "f64_16x16x4f64"),
    ("cdna3.mfma.f32.f16", "CDNA3", "f32_16x16x16_f16"),
    ("cdna3.mfma.f32.bf16", "CDNA3", "f32_16x16x16_bf16"),
    ("cdna3.mfma.f32.tf32", "CDNA3", "f32_16x16x8_xf32"),
    ("cdna3.mfma.f32.e4m3fnuz", "CDNA3", "f32_16x16x32_fp8_fp8"),
    ("cdna3.mfma.f32.e5m2fnuz", "CDNA3", "f32_16x16x32_bf8_bf8"),
    ("cdna3.mfma.f32.e4m3fnuz.e5m2fnuz", "CDNA3", "f32_16x16x32_fp8_bf8"),
    ("cdna3.mfma.f32.e5m2fnuz.e4m3fnuz", "CDNA3", "f32_16x16x32_bf8_fp8"),
]


@pytest.mark.parametrize(("name", "architecture", "suffix"), AMD)
def test_amd(name, architecture, suffix):
    ins = get_instruction(name)
    if ins.arithmetic == "fma" and WITHOUT_FMA:
        pytest.skip("mmasim's FMA extension needs a C++ compiler")
    theirs = amd.MFMA(architecture, suffix)
    rng = np.random.default_rng(sum(map(ord, name)))
    m, n, k = theirs.m, theirs.n, theirs.k
    for case in cases.KINDS:
        for _ in range(4):
            a, b = cases.operand(ins, "a", case, (m, k), rng), cases.operand(ins, "b", case, (n, k), rng)
            c = cases.addend(ins, case, (m, n), rng)
            expected = theirs(to_torch(a, ins.input_a), to_torch(b, ins.input_b).T, to_torch(c, ins.output))
            got, theirs_bits = mma(ins, a, b, c), bits_of(expected, ins.output_dtype).copy()
            if ins.arithmetic == "floored_even_odd":
                # mmasim drops a NaN accumulator when the products are large: frexp gives it the exponent -1, and C is
                # left out when its exponent is far below theirs. A NaN here stays a NaN.
                lost = np.isnan(got.view(np.float32))
                theirs_bits[lost] = got[lost]
            # the sign of a zero sum is not described
            assert_same(got, theirs_bits, ins.output, signed_zero=False)
