"""AWQ, the GEMM layout of AutoAWQ: 4-bit integers packed along the output features.

With K input and N output features and G = K / g groups:

    qweight  int32 [K, N / 8]  eight output features per word, nibble i holding feature 0 2 4 6 1 3 5 7
    qzeros   int32 [G, N / 8]  the zero points in the same order
    scales   float16 [G, N]

value = (q - z) * s. There is no g_idx. A symmetric weight has z = 8 stored all the same: the kernels always read it.

Source: AutoAWQ `modules/linear/gemm.py`, `utils/packing_utils.py`.
"""

from __future__ import annotations

import numpy as np

from qsim.errors import QsimError
from qsim.formats import IntFormat
from qsim.safetensors import Stored, exactly, words
from qsim.scheme import QuantizedTensor, Scheme

from .gptq import common_reason
from .parts import Notes, Parts, signed_codes, with_scale_format
from .words import pack_awq, transposed, unpack_awq

PARTS = ("qweight", "qzeros", "scales")
GROUPS = (16, 32, 64, 128, 256, 512, 1024)


def scheme_reason(scheme: Scheme) -> str | None:
    """Why AWQ cannot hold a scheme; None when it can."""
    w = scheme.weight
    if not isinstance(w.format, IntFormat) or w.bits != 4:
        return f"AWQ holds 4-bit integers: got {w.format.name}"
    if scheme.activation.is_quantized:
        return f"AWQ holds weights only: activations are {scheme.activation.format.name}"
    if scheme.kv_cache.is_quantized:
        return f"AWQ has no place for a quantised KV cache: got {scheme.kv_cache.format.name}"
    return common_reason(scheme, "AWQ", GROUPS)


def shape_reason(scheme: Scheme, shape: tuple[int, ...], act_order: bool) -> str | None:
    """Why AWQ cannot hold a weight of this shape; None when it can."""
    n, k = shape
    group = scheme.weight.group_size or k
    if n % 8:
        return f"AWQ needs N to be a multiple of 8: got N={n}"
    if k % group:
        return f"AWQ needs groups that divide K: got group_size={group}, K={k}"
    return "AWQ has no g_idx: columns are in act order, in groups that are not consecutive" if act_order else None


def tensor_reason(qt: QuantizedTensor) -> str | None:
    """Why AWQ cannot hold this tensor, whose scheme it can; None when it can."""
    if exactly(qt.scales, "float16") is None:
        return "AWQ stores float16 scales: these scales are not float16 numbers"
    return shape_reason(qt.scheme, qt.shape, qt.group_index is not None)


def encode(qt: QuantizedTensor) -> dict[str, Stored]:
    """The tensors of a layer, by their last name. The caller has asked for the reasons first."""
    zeros = np.full(qt.scales.shape, 8, np.uint8) if qt.zeros is None else qt.zeros
    scales = exactly(np.ascontiguousarray(qt.scales.T), "float16")
    assert scales is not None
    codes = transposed(qt.codes)
    if qt.zeros is None:
        codes ^= np.uint8(8)  # counted from the lowest, in place: a large layer is there twice already
    return {
        "qweight": words(pack_awq(codes)),
        "qzeros": words(pack_awq(np.ascontiguousarray(zeros.T))),
        "scales": scales,
    }


def decode(parts: Parts, scheme: Scheme, notes: Notes) -> QuantizedTensor:
    """A layer's weight. `scheme` is the config's; the zero points decide whether it is symmetric, as in GPTQ.

    Raises:
        ValueError: a tensor that is missing, or whose dtype or shape does not fit.
    """
    name = parts.name
    qweight = parts.get("qweight", ("I32",), 2)
    k, n = qweight.shape[0], qweight.shape[1] * 8
    group = scheme.weight.group_size or k
    if k % group:
        raise QsimError(f"tensor {name}.qweight has {k} input features: groups of {group} do not divide them")
    scales, fmt = parts.scales("scales", ("F16", "BF16", "F32"), (k // group, n))
    scheme = with_scale_format(scheme, fmt)
    if "qzeros" in parts or not scheme.weight.symmetric:
        packed = parts.shaped("qzeros", ("I32",), (k // group, n // 8))
        zeros = np.ascontiguousarray(unpack_awq(packed.bits).T)
    else:
        zeros = np.full((n, k // group), 8, np.uint8)
    if scheme.weight.symmetric and not (zeros == 8).all():
        notes.add("the config says symmetric, the stored zero points are not: read as asymmetric", name)
        scheme = with_scale_format(scheme, fmt, symmetric=False, format="uint4", zero_point_format="uint4")
    codes = transposed(unpack_awq(qweight.bits))
    symmetric = scheme.weight.symmetric
    return QuantizedTensor(
        codes=signed_codes(codes, 4) if symmetric else codes,
        scales=np.ascontiguousarray(scales.T),
        zeros=None if symmetric else zeros,
        scheme=scheme,
        name=name,
    )
