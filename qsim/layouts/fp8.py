"""FP8 as AutoFP8, vLLM and DeepSeek keep it: E4M3 codes that one scale, or one per block, multiplies.

    one scale per tensor   weight float8_e4m3fn [N, K], weight_scale float32 [], input_scale float32 [] when static
    blocks of r x c        weight float8_e4m3fn [N, K], weight_scale_inv float32 [ceil(N / r), ceil(K / c)]

`weight_scale_inv` has two opposite meanings. DeepSeek's and transformers' multiplies: value = e4m3 * x. GPTQModel's
divides: value = e4m3 / x, and its config says `weight_scale_semantics: inverse`.

Source: vLLM `quantization/fp8.py`; transformers `integrations/finegrained_fp8.py`; GPTQModel `qlinear/fp8.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from qsim.errors import QsimError
from qsim.fields import Fields
from qsim.formats import FloatFormat, get_format
from qsim.safetensors import Stored
from qsim.scheme import Granularity, QuantizedTensor, Scheme, TensorScheme
from qsim.scheme.bits import values_of

from .config import one_scheme, read_block, said
from .layout import Facts, Layer, LayerPlan, Layout, Meaning, Plan, Reading
from .parts import Notes, Parts, stored_scales, with_scale_format

_E4M3 = get_format("float8_e4m3fn")
_SCALES = ("float32", "bfloat16", "float16", "float8_e8m0fnu")
_STORED = ("F32", "BF16", "F16", "F8_E8M0", "U8")
# A scale multiplies codes of up to 448: above this the largest weight would be over 7168, far beyond any decoder's,
# and the stored number is most likely the other meaning's 448 / amax.
_IMPLAUSIBLE = 16.0


def refuses(layer: Layer) -> str | None:
    """Why FP8 cannot hold a layer; None when it can. Every shape fits; the last blocks may be smaller."""
    w, a, qt = layer.scheme.weight, layer.scheme.activation, layer.tensor
    if w.format.name != "float8_e4m3fn":
        return f"fp8 holds float8_e4m3fn: got {w.format.name}"
    assert w.granularity is not None
    assert isinstance(w.scale_format, FloatFormat)
    if w.granularity.kind not in ("tensor", "block"):
        return f"fp8 has one scale per tensor or block: got {w.granularity}"
    if w.scale_format.name not in _SCALES:
        return f"fp8 stores scales as {', '.join(_SCALES)}: got {w.scale_format.name}"
    if w.scale_format.name == "float8_e8m0fnu" and w.granularity.kind != "block":
        return "fp8 stores float8_e8m0fnu scales of blocks only"
    if a.format.name != "float8_e4m3fn":
        return f"fp8 quantises activations to float8_e4m3fn as well: got {a.format.name}"
    try:
        said(with_scale_format(layer.scheme, "float32"), "fp8", to_config, from_config)
    except QsimError as error:
        return str(error)
    if layer.name == "lm_head":
        return "fp8 leaves the head unquantised"
    if qt is not None and not a.dynamic and qt.input_scale is None:
        return "fp8 stores the scale of static activations, and this layer has no input_scale; calibrate first"
    return None


def encode(qt: QuantizedTensor) -> dict[str, Stored]:
    """The tensors of a layer, by their last name. The caller has asked for the reasons first."""
    how = qt.tensor_scheme
    assert isinstance(how.scale_format, FloatFormat)
    assert how.granularity is not None
    scales = stored_scales(qt)
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
    scales, stored_as = parts.scale_codes(key, _STORED, granularity.scale_shape(codes.shape))
    if key == "weight_scale_inv":
        values = values_of(scales, get_format(stored_as))
        if meaning is None and float(np.median(values)) > _IMPLAUSIBLE:
            raise QsimError(
                f"tensor {parts.name}.{key} is around {np.median(values):.4g}: if it multiplies the codes, weights "
                'reach thousands; read(..., scale_inv="divide") when it is 448 / amax as GPTQModel stores it, or '
                'scale_inv="multiply"'
            )
        if meaning == "divide":
            notes.add("weight_scale_inv divides: the scales are its reciprocals, rounded to float32")
            stored_as = "float32"
            scales = (1.0 / values.astype(np.float64)).astype(np.float32).view(np.uint32)
    if granularity != scheme.weight.granularity:
        block = granularity.kind == "block"
        scheme = with_scale_format(scheme, stored_as, granularity=granularity, ragged=block)
    else:
        scheme = with_scale_format(scheme, stored_as)
    activation = scheme.activation
    input_scale = parts.scalar("input_scale", "activation_scale")
    if activation.is_quantized and not activation.dynamic and input_scale is None:
        raise QsimError(f"tensor {parts.name}.input_scale is missing: the config says that activations are static")
    return QuantizedTensor(codes=codes, scale_codes=scales, scheme=scheme, input_scale=input_scale, name=parts.name)


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


# --- the config -----------------------------------------------------------------------------------------------


def to_config(scheme: Scheme) -> dict[str, Any]:
    """The config of a model with one scheme."""
    config: dict[str, Any] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic" if scheme.activation.dynamic else "static",
        "ignored_layers": ["lm_head"],
    }
    block = scheme.weight.granularity
    if block is not None and block.kind == "block":
        config |= {"fmt": "e4m3", "weight_block_size": [block.rows, block.columns]}
    if scheme.kv_cache.is_quantized:
        config["kv_cache_scheme"] = "dynamic" if scheme.kv_cache.dynamic else "static"
    return config


def from_config(keys: Fields) -> Scheme:
    """The scheme of the keys of AutoFP8, vLLM and DeepSeek."""
    dynamic = keys.text("activation_scheme", "dynamic", choices=("static", "dynamic")) == "dynamic"
    block = read_block(keys, "weight_block_size")
    if block:
        weight = Granularity(kind="block", rows=block[0], columns=block[1])
        activation = Granularity(kind="group", columns=block[1])
    else:
        weight = activation = Granularity(kind="tensor")
    kv = keys.table.get("kv_cache_scheme")
    if isinstance(kv, Mapping):  # as compressed-tensors says it
        kv = "dynamic" if keys.inner("kv_cache_scheme").flag("dynamic", False) else "static"
    else:
        kv = keys.text("kv_cache_scheme", "")
    return Scheme(
        weight=TensorScheme(format=_E4M3, granularity=weight, ragged=bool(block)),
        activation=TensorScheme(format=_E4M3, granularity=activation, dynamic=dynamic, ragged=bool(block)),
        kv_cache=TensorScheme(format=_E4M3, granularity=Granularity(kind="tensor"), dynamic=kv == "dynamic")
        if kv
        else TensorScheme(format=get_format("bfloat16")),
    )


def plan(keys: Fields, reading: Reading) -> Plan:
    """How the config says that layers are stored."""
    form = keys.text(("format", "fmt"), "e4m3")
    if form not in ("e4m3", "float8_e4m3fn", "fp8"):
        raise QsimError(f"fp8 checkpoints are read with codes float8_e4m3fn: got {form[:60]!r}")
    meaning, semantics = reading.scale_inv, keys.text("weight_scale_semantics", "")
    if semantics:
        if semantics != "inverse":
            raise QsimError(f"weight_scale_semantics must be inverse, or left out: got {semantics[:60]!r}")
        meaning = "divide"
    scheme = from_config(keys)
    ignored, kept = keys.items("ignored_layers", str, ()), keys.items("modules_to_not_convert", str, ())
    skip = ignored or kept

    def layer(name: str) -> LayerPlan:
        skipped = name == "lm_head" or any(f".{part}." in f".{name}." for part in skip)
        return LayerPlan(scheme=scheme, decode=partial(decode, meaning=meaning), skipped=skipped)

    return Plan(layout=LAYOUT, layer=layer, kv_cache=scheme.kv_cache if scheme.kv_cache.is_quantized else None)


def write_config(facts: Facts) -> dict[str, Any]:
    """The config of a model that is written."""
    scheme = one_scheme("fp8", facts)
    config = said(with_scale_format(scheme, "float32"), "fp8", to_config, from_config)
    config["ignored_layers"] = list(facts.plain)
    if scheme.weight.scale_format is not None and scheme.weight.scale_format.name == "float8_e8m0fnu":
        config["scale_fmt"] = "ue8m0"
    return config


LAYOUT = Layout(
    name="fp8",
    says="E4M3 with one scale per tensor or block, as AutoFP8, vLLM and DeepSeek keep it",
    order=50,
    quant_method="fp8",
    refuses=refuses,
    encode=encode,
    to_config=to_config,
    from_config=from_config,
    plan=plan,
    write_config=write_config,
    parts=("weight", "weight_scale", "weight_scale_inv", "input_scale", "activation_scale"),
    marks=("weight_scale", "weight_scale_inv"),
    scale=("weight_scale", "weight_scale_inv"),
    kept=("bits", "checkpoint_format", "dynamic", "expert_dtype", "group_size", "lm_head", "pack_dtype", "scale_fmt",
          "sym", "format", "fmt"),
    remark=remark,
)  # fmt: skip
