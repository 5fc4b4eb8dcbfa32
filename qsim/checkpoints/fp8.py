"""FP8 as AutoFP8, vLLM and DeepSeek keep it: E4M3 codes that one scale, or one per block, multiplies.

    one scale per tensor   weight float8_e4m3fn [N, K], weight_scale float32 [], input_scale float32 [] when static
    blocks of r x c        weight float8_e4m3fn [N, K], weight_scale_inv float32 [ceil(N / r), ceil(K / c)]

`weight_scale_inv` has two opposite meanings. DeepSeek's and transformers' multiplies: value = e4m3 * x. GPTQModel's
divides: value = e4m3 / x, and its config says `weight_scale_semantics: inverse`.

Source: vLLM `quantization/fp8.py`; transformers `integrations/finegrained_fp8.py`; GPTQModel `qlinear/fp8.py`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from qsim.errors import QsimError
from qsim.safetensors import Stored, exactly
from qsim.scheme import Granularity, QuantizedTensor, Scheme
from qsim.scheme.huggingface import to_config

from .parts import Notes, Parts, with_scale_format

Meaning: TypeAlias = Literal["multiply", "divide"]
PARTS = ("weight", "weight_scale", "weight_scale_inv", "input_scale", "activation_scale")
_SCALES = ("float32", "bfloat16", "float16", "float8_e8m0fnu")
_STORED = ("F32", "BF16", "F16", "F8_E8M0", "U8")
# A scale multiplies codes of up to 448: above this the largest weight would be over 7168, far beyond any decoder's,
# and the stored number is most likely the other meaning's 448 / amax.
_IMPLAUSIBLE = 16.0


def scheme_reason(scheme: Scheme) -> str | None:
    """Why FP8 cannot hold a scheme; None when it can."""
    w, a = scheme.weight, scheme.activation
    if w.format.name != "float8_e4m3fn":
        return f"fp8 holds float8_e4m3fn: got {w.format.name}"
    assert w.granularity is not None
    assert w.scale_format is not None
    if w.granularity.kind not in ("tensor", "block"):
        return f"fp8 has one scale per tensor or block: got {w.granularity}"
    if w.scale_format.name not in _SCALES:
        return f"fp8 stores scales as {', '.join(_SCALES)}: got {w.scale_format.name}"
    if w.scale_format.name == "float8_e8m0fnu" and w.granularity.kind != "block":
        return "fp8 stores float8_e8m0fnu scales of blocks only"
    if a.format.name != "float8_e4m3fn":
        return f"fp8 quantises activations to float8_e4m3fn as well: got {a.format.name}"
    try:
        to_config(with_scale_format(scheme, "float32"), "fp8")
    except ValueError as error:
        return str(error)
    return None


def shape_reason(scheme: Scheme, shape: tuple[int, ...], act_order: bool) -> str | None:
    """Every shape fits; the last blocks may be smaller."""
    return None


def tensor_reason(qt: QuantizedTensor) -> str | None:
    """Why FP8 cannot hold this tensor, whose scheme it can; None when it can."""
    how = qt.tensor_scheme
    assert how.scale_format is not None
    if exactly(qt.scales, how.scale_format) is None:
        return f"fp8 stores {how.scale_format.name} scales: these scales are not numbers of that format"
    if not qt.scheme.activation.dynamic and qt.input_scale is None:
        return "fp8 stores the scale of static activations, and this layer has no input_scale; calibrate first"
    return None


def encode(qt: QuantizedTensor) -> dict[str, Stored]:
    """The tensors of a layer, by their last name. The caller has asked for the reasons first."""
    how = qt.tensor_scheme
    assert how.scale_format is not None
    assert how.granularity is not None
    scales = exactly(qt.scales, how.scale_format)
    assert scales is not None
    out = {"weight": Stored(dtype="F8_E4M3", bits=qt.codes)}
    if how.granularity.kind == "block":
        out["weight_scale_inv"] = scales
    else:
        out["weight_scale"] = Stored(dtype=scales.dtype, bits=scales.bits.reshape(()))
    if not qt.scheme.activation.dynamic:
        out["input_scale"] = Stored(dtype="F32", bits=np.array(qt.input_scale, np.float32))
    return out


def remark(qt: QuantizedTensor) -> str | None:
    """What loaders make of it: vLLM's `quantization/fp8.py`, transformers 5.24's `Fp8Dequantize`."""
    granularity = qt.tensor_scheme.granularity
    assert granularity is not None
    if granularity.kind == "tensor":
        return "transformers 5 wants weight_scale_inv and loads such layers wrongly; vLLM reads weight_scale"
    assert granularity.rows is not None
    assert granularity.columns is not None
    (n, k), (rows, columns) = qt.shape, (granularity.rows, granularity.columns)
    if (n % rows and n > rows) or (k % columns and k > columns):
        return (
            f"blocks at the edge are smaller than {rows}x{columns}: vLLM refuses them in layers that it fuses, and "
            "transformers takes blocks as even when it dequantises on a CPU"
        )
    return None


def decode(parts: Parts, scheme: Scheme, notes: Notes, *, meaning: Meaning | None = None) -> QuantizedTensor:
    """A layer's weight.

    Arguments:
        parts: its tensors.
        scheme: from the config. A scale of another shape than the config says (one per row) is taken as it is.
        meaning: of `weight_scale_inv`: whether it multiplies or divides the codes. None is `multiply`, refused where
            the numbers can hardly mean that.

    Raises:
        ValueError: a tensor that is missing, or whose dtype or shape does not fit; scales that look like the other
            meaning.
    """
    codes = parts.get("weight", ("F8_E4M3",), 2).bits
    key = "weight_scale_inv" if "weight_scale_inv" in parts else "weight_scale"
    shape = parts.get(key, _STORED).shape
    granularity = _granularity(parts.name, key, shape, codes.shape, scheme)
    scales, stored_as = parts.scales(key, _STORED, granularity.scale_shape(codes.shape))
    if key == "weight_scale_inv":
        if meaning is None and float(np.median(scales)) > _IMPLAUSIBLE:
            raise QsimError(
                f"tensor {parts.name}.{key} is around {np.median(scales):.4g}: if it multiplies the codes, weights "
                'reach thousands; read(..., scale_inv="divide") when it is 448 / amax as GPTQModel stores it, or '
                'scale_inv="multiply"'
            )
        if meaning == "divide":
            notes.add("weight_scale_inv divides: the scales are its reciprocals, rounded to float32")
            scales, stored_as = (1.0 / scales.astype(np.float64)).astype(np.float32), "float32"
    if granularity != scheme.weight.granularity:
        block = granularity.kind == "block"
        scheme = with_scale_format(scheme, stored_as, granularity=granularity, ragged=block)
    else:
        scheme = with_scale_format(scheme, stored_as)
    activation = scheme.activation
    input_scale = parts.scalar("input_scale", "activation_scale")
    if activation.is_quantized and not activation.dynamic and input_scale is None:
        raise QsimError(f"tensor {parts.name}.input_scale is missing: the config says that activations are static")
    return QuantizedTensor(codes=codes, scales=scales, scheme=scheme, input_scale=input_scale, name=parts.name)


def _granularity(name: str, key: str, shape: tuple[int, ...], weight: tuple[int, ...], scheme: Scheme) -> Granularity:
    stated = scheme.weight.granularity
    assert stated is not None
    n = weight[0]
    if int(np.prod(shape)) == 1 and stated.kind != "block":
        return Granularity(kind="tensor")
    if shape == stated.scale_shape(weight):
        return stated
    if shape in ((n,), (n, 1)):
        return Granularity(kind="channel")
    raise QsimError(f"tensor {name}.{key} has shape {shape}, expected {stated.scale_shape(weight)} ({stated})")
