"""GPTQ: integers packed along the input features, as AutoGPTQ, GPTQModel and the serving engines read them.

With K input and N output features, b bits and G = ceil(K / g) groups:

    qweight  int32 [K b / 32, N]  dense words along K; q counted from the lowest code
    qzeros   int32 [G, N b / 32]  dense words along N; the zero point, minus one in version 1
    scales   float16 [G, N]
    g_idx    int32 [K]            the group of each input feature

value = (q - z[g_idx]) * s[g_idx]. A symmetric weight has z = 2^(b - 1) everywhere.

Source: AutoGPTQ `qlinear_cuda.py`; GPTQModel `nn_modules/qlinear`, `convert_gptq_v1_to_v2_format`.
"""

from __future__ import annotations

import numpy as np

from qsim.errors import QsimError
from qsim.formats import IntFormat
from qsim.safetensors import Stored, exactly, integers, words
from qsim.scheme import QuantizedTensor, Scheme

from .parts import Notes, Parts, signed_codes, unsigned_codes, with_scale_format
from .words import dense_count, pack_dense, transposed, unpack_dense

PARTS = ("qweight", "qzeros", "scales", "g_idx")
BITS = (2, 3, 4, 8)
GROUPS = (16, 32, 64, 128, 256, 512, 1024)
_MULTIPLE = 32  # of K and of N: whole words of 3-bit codes, and what the kernels' loaders check


def scheme_reason(scheme: Scheme, *, version: int = 1) -> str | None:
    """Why GPTQ cannot hold a scheme; None when it can."""
    w = scheme.weight
    if not isinstance(w.format, IntFormat):
        return f"GPTQ holds integers: got {w.format.name}"
    if w.bits not in BITS:
        return f"GPTQ holds 2, 3, 4 and 8 bits: got {w.format.name}"
    if scheme.activation.is_quantized:
        return f"GPTQ holds weights only: activations are {scheme.activation.format.name}"
    if scheme.kv_cache.is_quantized:
        return f"GPTQ has no place for a quantised KV cache: got {scheme.kv_cache.format.name}"
    return common_reason(scheme, "GPTQ", GROUPS)


def common_reason(scheme: Scheme, who: str, groups: tuple[int, ...]) -> str | None:
    """Rules that GPTQ and AWQ share: scales per group or row, in float16, packed zero points."""
    w = scheme.weight
    assert w.granularity is not None
    if w.granularity.kind not in ("group", "channel"):
        return f"{who} has one scale per group or row: got {w.granularity}"
    if w.granularity.kind == "group" and w.group_size not in groups:
        return f"{who} loaders take groups of {', '.join(map(str, groups))}: got {w.group_size}"
    if w.scale_format is not None and w.scale_format.name != "float16":
        return f"{who} stores float16 scales: got {w.scale_format.name}"
    if w.zero_point_format not in (None, w.format):
        assert w.zero_point_format is not None
        return f"{who} stores zero points as packed integers: got {w.zero_point_format.name}"
    return None


def shape_reason(scheme: Scheme, shape: tuple[int, ...], act_order: bool) -> str | None:
    """Why GPTQ cannot hold a weight of this shape; None when it can."""
    n, k = shape
    for what, size in (("K", k), ("N", n)):
        if size % _MULTIPLE:
            return f"GPTQ needs {what} to be a multiple of {_MULTIPLE}: got {what}={size}"
    return None


def tensor_reason(qt: QuantizedTensor, *, version: int = 1) -> str | None:
    """Why GPTQ cannot hold this tensor, whose scheme it can; None when it can."""
    if qt.zeros is not None and version == 1 and not qt.zeros.all():
        count = int((qt.zeros == 0).sum())
        return f"GPTQ version 1 stores zero points minus one, so it has no 0: got {count} of them"
    if exactly(qt.scales, "float16") is None:
        return "GPTQ stores float16 scales: these scales are not float16 numbers"
    return shape_reason(qt.scheme, qt.shape, qt.group_index is not None)


def encode(qt: QuantizedTensor, *, version: int = 1) -> dict[str, Stored]:
    """The tensors of a layer, by their last name. The caller has asked for the reasons first."""
    bits, (_, k) = qt.element.bits, qt.shape
    group = qt.tensor_scheme.group_size or k
    zeros = np.full(qt.scales.shape, 1 << (bits - 1), np.uint8) if qt.zeros is None else qt.zeros
    stored_zeros = zeros - np.uint8(1) if version == 1 else zeros
    scales = exactly(np.ascontiguousarray(qt.scales.T), "float16")
    assert scales is not None
    index = np.arange(k) // group if qt.group_index is None else qt.group_index
    return {
        "qweight": words(transposed(pack_dense(unsigned_codes(qt), bits))),
        "qzeros": words(pack_dense(np.ascontiguousarray(stored_zeros.T), bits)),
        "scales": scales,
        "g_idx": integers(index, "I32"),
    }


def remark(qt: QuantizedTensor) -> str | None:
    """Which kernels read it: vLLM's `gptq_marlin.py` has 4 and 8 bits, each with sym=true, and nothing else."""
    if qt.zeros is None and qt.element.bits in (4, 8):
        return None
    return (
        "vLLM's Marlin kernels read GPTQ weights of 4 and 8 bits with sym=true only: these have "
        f"{qt.element.bits} bits with sym={'true' if qt.zeros is None else 'false'} and run on its slower kernels"
    )


def decode(parts: Parts, scheme: Scheme, notes: Notes, *, version: int = 1) -> QuantizedTensor:
    """A layer's weight.

    Arguments:
        parts: its tensors.
        scheme: from the config: bits, group size, symmetric or not.
        version: 1 stores zero points minus one.

    A symmetric scheme whose stored zero points are not all 2^(b - 1) is read as an asymmetric one, with a note. A
    version 1 field of all ones is the zero point 0 (plus one, masked), also with a note: loaders differ there.

    Raises:
        ValueError: a tensor that is missing, or whose dtype or shape does not fit.
    """
    bits, name = scheme.weight.bits, parts.name
    qweight = parts.get("qweight", ("I32",), 2)
    rows, n = qweight.shape
    k = rows * 32 // bits
    if rows * 32 % bits or dense_count(k, bits) != rows:
        raise QsimError(f"tensor {name}.qweight has {rows} rows: not a whole number of {bits}-bit words")
    group = scheme.weight.group_size or k
    groups = -(-k // group)
    scales, fmt = parts.scales("scales", ("F16", "BF16", "F32"), (groups, n))
    if n * bits % 32:
        raise QsimError(f"tensor {name}.qweight has {n} columns: {bits}-bit zero points do not fill words of 32 bits")
    packed = parts.shaped("qzeros", ("I32",), (groups, n * bits // 32))
    zeros = unpack_dense(packed.bits, bits, n)
    if version == 1:
        if (zeros == (1 << bits) - 1).any():
            notes.add("GPTQ version 1 zero points stored as -1 are read as 0; other loaders may differ", name)
        zeros = (zeros + np.uint8(1)) & np.uint8((1 << bits) - 1)
    zeros = np.ascontiguousarray(zeros.T)
    codes = unpack_dense(transposed(qweight.bits), bits, k)

    ragged = bool(k % group)
    scheme = with_scale_format(scheme, fmt, ragged=ragged)
    if scheme.weight.symmetric and not (zeros == 1 << (bits - 1)).all():
        notes.add("the config says symmetric, the stored zero points are not: read as asymmetric", name)
        unsigned = f"uint{bits}"
        scheme = with_scale_format(scheme, fmt, symmetric=False, format=unsigned, zero_point_format=unsigned)
    symmetric = scheme.weight.symmetric
    return QuantizedTensor(
        codes=signed_codes(codes, bits) if symmetric else codes,
        scales=np.ascontiguousarray(scales.T),
        zeros=None if symmetric else zeros,
        scheme=scheme,
        group_index=_group_index(parts, k, group, groups),
        name=name,
    )


def _group_index(parts: Parts, k: int, group: int, groups: int) -> np.ndarray | None:
    if "g_idx" not in parts:
        return None
    index = parts.shaped("g_idx", ("I32", "I64"), (k,)).bits.astype(np.int32)
    if index.min() < 0 or index.max() >= groups:
        raise QsimError(
            f"tensor {parts.name}.g_idx must have groups 0 to {groups - 1}: got {index.min()} to {index.max()}"
        )
    return None if np.array_equal(index, np.arange(k) // group) else index
