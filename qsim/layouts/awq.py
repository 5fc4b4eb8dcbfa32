"""AWQ, the GEMM layout of AutoAWQ: 4-bit integers packed along the output features.

With K input and N output features and G = K / g groups:

    qweight  int32 [K, N / 8]  eight output features per word, nibble i holding feature 0 2 4 6 1 3 5 7
    qzeros   int32 [G, N / 8]  the zero points in the same order
    scales   float16 [G, N]

value = (q - z) * s. There is no g_idx. A symmetric weight has z = 8 stored all the same: the kernels always read it.

Source: AutoAWQ `modules/linear/gemm.py`, `utils/packing_utils.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qsim.errors import QsimError
from qsim.fields import Fields
from qsim.formats import IntFormat
from qsim.safetensors import Stored, words
from qsim.scheme import QuantizedTensor, Scheme

from .config import grouped, one_scheme, read_group_size, said
from .gptq import weight_only
from .layout import Facts, Layer, LayerPlan, Layout, Plan, Reading
from .parts import Notes, Parts, no_own_rule, signed_codes, stored_scales, with_scale_format
from .words import pack_awq, transposed, unpack_awq

GROUPS = (16, 32, 64, 128, 256, 512, 1024)


def refuses(layer: Layer) -> str | None:
    """Why AWQ cannot hold a layer; None when it can."""
    w = layer.scheme.weight
    if not isinstance(w.format, IntFormat) or w.bits != 4:
        return f"AWQ holds 4-bit integers: got {w.format.name}"
    wrong = weight_only(layer, "AWQ", GROUPS)
    if wrong is not None:
        return wrong
    if layer.name == "lm_head":
        return "awq leaves the head unquantised"
    if layer.shape is not None:
        n, k = layer.shape
        group = w.group_size or k
        if n % 8:
            return f"AWQ needs N to be a multiple of 8: got N={n}"
        if k % group:
            return f"AWQ needs groups that divide K: got group_size={group}, K={k}"
    return "AWQ has no g_idx: columns are in act order, in groups that are not consecutive" if layer.act_order else None


def encode(qt: QuantizedTensor) -> dict[str, Stored]:
    """The tensors of a layer, by their last name. The caller has asked for the reasons first."""
    zeros = np.full(qt.scale_codes.shape, 8, np.uint8) if qt.zeros is None else qt.zeros
    codes = transposed(qt.codes)
    if qt.zeros is None:
        codes ^= np.uint8(8)  # counted from the lowest, in place: a large layer is there twice already
    return {
        "qweight": words(pack_awq(codes)),
        "qzeros": words(pack_awq(np.ascontiguousarray(zeros.T))),
        "scales": stored_scales(qt, transposed=True),
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
    scales, fmt = parts.scale_codes("scales", ("F16", "BF16", "F32"), (k // group, n))
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
        scale_codes=np.ascontiguousarray(scales.T),
        zeros=None if symmetric else zeros,
        scheme=scheme,
        name=name,
    )


# --- the config -----------------------------------------------------------------------------------------------


def to_config(scheme: Scheme) -> dict[str, Any]:
    """The config of a model with one scheme."""
    if scheme.weight.bits != 4:
        raise QsimError(f"the AWQ format is 4-bit only: got {scheme.weight.format.name}")
    if scheme.weight.has_own_rule:
        raise QsimError(no_own_rule(scheme, "AWQ"))
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": scheme.weight.group_size or -1,
        "zero_point": not scheme.weight.symmetric,
        "version": "gemm",
        "modules_to_not_convert": None,
    }


def from_config(keys: Fields) -> Scheme:
    """The scheme of the config's keys."""
    return grouped(keys.integer("bits", 2, 8), read_group_size(keys), not keys.flag("zero_point", True))


def plan(keys: Fields, reading: Reading) -> Plan:
    """How the config says that layers are stored."""
    version = keys.text("version", "gemm")
    if version.lower() != "gemm":
        raise QsimError(f"AWQ checkpoints are read in version gemm: got {version[:60]!r}")
    bits = keys.integer("bits", 1, 64)
    if bits != 4:
        raise QsimError(f"AWQ holds 4 bits: got bits={bits}")
    scheme, skip = from_config(keys), keys.items("modules_to_not_convert", str, ())

    def layer(name: str) -> LayerPlan:
        skipped = name == "lm_head" or any(part in name for part in skip)
        return LayerPlan(scheme=scheme, decode=decode, skipped=skipped)

    return Plan(layout=LAYOUT, layer=layer)


def write_config(facts: Facts) -> dict[str, Any]:
    """The config of a model that is written."""
    config = said(one_scheme("awq", facts), "awq", to_config, from_config)
    return config | {"modules_to_not_convert": list(facts.plain) or None}


LAYOUT = Layout(
    name="awq",
    says="4-bit integers packed along the output features (GEMM)",
    order=40,
    quant_method="awq",
    refuses=refuses,
    encode=encode,
    to_config=to_config,
    from_config=from_config,
    plan=plan,
    write_config=write_config,
    parts=("qweight", "qzeros", "scales"),
    marks=("qweight",),
    scale=("scales",),
    kept=("checkpoint_format", "format", "lm_head", "pack_dtype", "sym"),
    is_legacy=lambda config: "w_bit" in config,
)
