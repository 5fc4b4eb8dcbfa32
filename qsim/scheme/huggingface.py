"""A scheme as the `quantization_config` of a Hugging Face `config.json`, and back.

Four dialects: GPTQ, AWQ, compressed-tensors and FP8 (AutoFP8, vLLM, DeepSeek). Keys that a scheme does not hold
(act order, damping, observers, ignored layers) are written with the usual defaults and ignored when read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qsim.errors import QsimError
from qsim.formats import BlockFormat, FloatFormat, IntFormat, get_format

from .granularity import Granularity
from .scheme import Scheme, TensorScheme

METHODS = ("gptq", "awq", "compressed-tensors", "fp8")

_FLOAT16 = get_format("float16")
_E4M3 = get_format("float8_e4m3fn")


def to_config(scheme: Scheme, method: str | None = None) -> dict[str, Any]:
    """The `quantization_config` of a scheme.

    Arguments:
        method: `gptq`, `awq`, `compressed-tensors` or `fp8`; None is compressed-tensors, which can say most.

    Raises:
        ValueError: the dialect cannot say this scheme; the message names the part.
    """
    method = method or "compressed-tensors"
    if method not in METHODS:
        raise QsimError(f"quantization_config methods are {', '.join(METHODS)}: got {method!r}")
    if not scheme.weight.is_quantized:
        raise QsimError(f"weights are {scheme.weight.format.name}: an unquantised model has no quantization_config")
    config = {"gptq": _to_gptq, "awq": _to_awq, "compressed-tensors": _to_compressed, "fp8": _to_fp8}[method](scheme)
    back = from_config(config)
    for part in ("weight", "activation", "kv_cache"):
        if not _same(getattr(back, part), getattr(scheme, part)):
            raise QsimError(
                f"{method} cannot express {part}={getattr(scheme, part).to_dict()}; "
                f"it would be read as {getattr(back, part).to_dict()}"
            )
    return config


def _same(a: TensorScheme, b: TensorScheme) -> bool:
    """Whether two parts store the same: a shorter last group shows in the shape, a 16- or 32-bit float in the model."""
    return (not a.is_quantized and not b.is_quantized) or replace(a, ragged=b.ragged) == b


def from_config(config: Mapping[str, Any]) -> Scheme:
    """A scheme from a `quantization_config`.

    Raises:
        ValueError: no or an unknown `quant_method`, a missing key, or layers with different schemes.
    """
    method = config.get("quant_method")
    if method not in METHODS:
        raise QsimError(f"quantization_config: quant_method is one of {', '.join(METHODS)}: got {method!r}")
    read = {"gptq": _from_gptq, "awq": _from_awq, "compressed-tensors": _from_compressed, "fp8": _from_fp8}[method]
    return read(config)


def _need(config: Mapping[str, Any], key: str) -> Any:
    if key not in config:
        raise QsimError(f"quantization_config ({config.get('quant_method')}): key {key!r} is missing")
    return config[key]


def _grouped(bits: int, group_size: int, symmetric: bool) -> Scheme:
    weight = TensorScheme(
        format=get_format(f"int{bits}" if symmetric else f"uint{bits}"),
        granularity=Granularity(kind="channel") if group_size == -1 else Granularity(kind="group", columns=group_size),
        symmetric=symmetric,
        scale_format=_FLOAT16,  # type: ignore[arg-type]
    )
    return Scheme(weight=weight, activation=TensorScheme(format=get_format("bfloat16")))


# --- GPTQ, AWQ ----------------------------------------------------------------------------------------------


def _to_gptq(scheme: Scheme) -> dict[str, Any]:
    return {
        "quant_method": "gptq",
        "bits": scheme.weight.bits,
        "group_size": scheme.weight.group_size or -1,
        "sym": scheme.weight.symmetric,
        "desc_act": False,
        "lm_head": False,
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
    }


def _from_gptq(config: Mapping[str, Any]) -> Scheme:
    return _grouped(int(_need(config, "bits")), int(_need(config, "group_size")), bool(config.get("sym", True)))


def _to_awq(scheme: Scheme) -> dict[str, Any]:
    if scheme.weight.bits != 4:
        raise QsimError(f"the AWQ format is 4-bit only: got {scheme.weight.format.name}")
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": scheme.weight.group_size or -1,
        "zero_point": not scheme.weight.symmetric,
        "version": "gemm",
        "modules_to_not_convert": None,
    }


def _from_awq(config: Mapping[str, Any]) -> Scheme:
    return _grouped(
        int(_need(config, "bits")), int(_need(config, "group_size")), not bool(config.get("zero_point", True))
    )


# --- FP8 ----------------------------------------------------------------------------------------------------


def _to_fp8(scheme: Scheme) -> dict[str, Any]:
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


def _from_fp8(config: Mapping[str, Any]) -> Scheme:
    dynamic = config.get("activation_scheme", "dynamic") == "dynamic"
    block = config.get("weight_block_size")
    if block:
        weight = Granularity(kind="block", rows=int(block[0]), columns=int(block[1]))
        activation = Granularity(kind="group", columns=int(block[1]))
    else:
        weight = activation = Granularity(kind="tensor")
    kv = config.get("kv_cache_scheme")
    return Scheme(
        weight=TensorScheme(format=_E4M3, granularity=weight, ragged=bool(block)),
        activation=TensorScheme(format=_E4M3, granularity=activation, dynamic=dynamic, ragged=bool(block)),
        kv_cache=TensorScheme(format=_E4M3, granularity=Granularity(kind="tensor"), dynamic=kv == "dynamic")
        if kv
        else TensorScheme(format=get_format("bfloat16")),
    )


# --- compressed-tensors -------------------------------------------------------------------------------------

_TORCH = {"float32": "torch.float32", "float16": "torch.float16", "bfloat16": "torch.bfloat16",
          "float8_e4m3fn": "torch.float8_e4m3fn", "float8_e8m0fnu": "torch.uint8"}  # fmt: skip
_FROM_TORCH = {v: k for k, v in _TORCH.items()}
_FLOATS = {("float", 8): "float8_e4m3fn", ("float", 6): "float6_e2m3fn", ("float", 4): "float4_e2m1fn"}
_BLOCKS = {(4, 32): "mxfp4", (6, 32): "mxfp6_e2m3", (8, 32): "mxfp8_e4m3", (4, 16): "nvfp4"}
_LAYOUTS = {"mxfp4": "mxfp4-pack-quantized", "mxfp6_e2m3": "mxfp6-pack-quantized", "mxfp8_e4m3": "mxfp8-quantized",
            "nvfp4": "nvfp4-pack-quantized"}  # fmt: skip


def compressed_args(part: TensorScheme) -> dict[str, Any] | None:
    """The `QuantizationArgs` of one part; None when it is not quantised.

    Raises:
        ValueError: a format that compressed-tensors lacks.
    """
    if not part.is_quantized:
        return None
    fmt, where = part.format, part.granularity
    assert where is not None
    assert part.scale_format is not None
    element = fmt.element if isinstance(fmt, BlockFormat) else fmt
    if not isinstance(element, IntFormat) and element.name not in _FLOATS.values():
        raise QsimError(f"compressed-tensors has integers, {', '.join(_FLOATS.values())}: got {fmt.name}")
    if element.bits < 8 and not isinstance(element, IntFormat) and fmt.name not in _LAYOUTS:
        raise QsimError(f"compressed-tensors has {element.name} in blocks, as {', '.join(_LAYOUTS)}: got {fmt.name}")
    args: dict[str, Any] = {
        "num_bits": fmt.bits,
        "type": "int" if isinstance(element, IntFormat) else "float",
        "symmetric": part.symmetric,
        "strategy": "tensor_group" if isinstance(fmt, BlockFormat) and fmt.tensor_scale else where.kind,
        "group_size": where.columns if where.kind == "group" else None,
        "block_structure": [where.rows, where.columns] if where.kind == "block" else None,
        "dynamic": part.dynamic,
        "actorder": None,
        "observer": None if part.dynamic else "minmax",
        "observer_kwargs": {},
        "scale_dtype": _TORCH[part.scale_format.name],
    }
    if part.zero_point_format is not None:
        zero = part.zero_point_format
        args["zp_dtype"] = "torch.int8" if isinstance(zero, IntFormat) else _TORCH[zero.name]
    if isinstance(fmt, BlockFormat) and fmt.tensor_scale and part.dynamic:
        args["dynamic"] = "local"  # block scales are found on the fly, the tensor scale is stored
    return args


def _from_args(args: Mapping[str, Any] | None, *, weight_only: bool, layout: str = "") -> TensorScheme:
    if args is None:
        return TensorScheme(format=get_format("bfloat16"))
    bits, kind, strategy = int(args.get("num_bits", 8)), args.get("type", "int"), args.get("strategy", "tensor")
    symmetric, dynamic, group = bool(args.get("symmetric", True)), args.get("dynamic", False), args.get("group_size")
    scale = _FROM_TORCH.get(str(args.get("scale_dtype")), "")
    # an MX scale_dtype is uint8; configs that leave it out say MX by the bits or by the layout
    is_block = kind == "float" and (
        bits < 8 or strategy == "tensor_group" or scale == "float8_e8m0fnu" or layout in _LAYOUTS.values()
    )
    if is_block:
        key = (bits, int(group or 0))
        if key not in _BLOCKS:
            raise QsimError(f"quantization_config: no block format of {bits} bits in groups of {group}")
        return TensorScheme(format=get_format(_BLOCKS[key]), dynamic=bool(dynamic))
    if kind == "float":
        if (kind, bits) not in _FLOATS:
            raise QsimError(f"quantization_config: floats have 8 or 4 bits: got num_bits={bits}")
        fmt = get_format(_FLOATS[kind, bits])
    else:
        fmt = get_format(f"int{bits}" if symmetric else f"uint{bits}")
    if strategy == "group" and int(group or -1) == -1:
        strategy = "channel"
    block = args.get("block_structure")
    if isinstance(block, str):
        block = block.lower().split("x")
    granularity = Granularity(
        kind=strategy,
        columns=int(group)
        if strategy == "group" and group
        else int(block[1])
        if strategy == "block" and block
        else None,
        rows=int(block[0]) if strategy == "block" and block else None,
    )
    zero: IntFormat | FloatFormat | None = None
    zp = _FROM_TORCH.get(str(args.get("zp_dtype")), "")
    if not symmetric and zp:
        zero = get_format(zp)  # type: ignore[assignment]
    # the model's dtype is not in the config: scales that do not say are float16 beside weight-only integers, as on disk
    scale = scale or ("float16" if weight_only and kind == "int" else "float32")
    return TensorScheme(
        format=fmt,
        granularity=granularity,
        symmetric=symmetric,
        scale_format=get_format(scale),  # type: ignore[arg-type]
        zero_point_format=zero,
        dynamic=bool(dynamic),
        ragged=strategy == "block" or (kind == "float" and strategy == "group"),
    )


def compressed_layout(scheme: Scheme) -> str:
    """The `format` that compressed-tensors chooses for a scheme: integers are packed when they are weight-only."""
    w = scheme.weight
    if isinstance(w.format, BlockFormat):
        return _LAYOUTS.get(w.format.name, "dense")
    if not w.is_integer:
        return "float-quantized"
    return "int-quantized" if scheme.activation.is_quantized else "pack-quantized"


def _to_compressed(scheme: Scheme) -> dict[str, Any]:
    layout = compressed_layout(scheme)
    group = {
        "targets": ["Linear"],
        "weights": compressed_args(scheme.weight),
        "input_activations": compressed_args(scheme.activation),
        "output_activations": None,
        "format": layout,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "ignore": ["lm_head"],
        "kv_cache_scheme": compressed_args(scheme.kv_cache),
        "config_groups": {"group_0": group},
    }


@dataclass(frozen=True, kw_only=True)
class ConfigGroup:
    """One of the `config_groups` of compressed-tensors.

    Arguments:
        name: its key.
        targets: module classes (`Linear`), names, or regular expressions after `re:`.
        scheme: what its modules are quantised to.
        layout: how they are stored, the group's `format` or else the config's.
    """

    name: str
    targets: tuple[str, ...]
    scheme: Scheme
    layout: str


def compressed_groups(config: Mapping[str, Any]) -> list[ConfigGroup]:
    """The groups of a compressed-tensors config that quantise weights.

    Raises:
        ValueError: no `config_groups`, a group without `weights` key, or arguments that no scheme can say.
    """
    common = str(config.get("format") or "")
    out = []
    for name, group in _need(config, "config_groups").items():
        if not isinstance(group, Mapping):
            raise QsimError(f"quantization_config: config group {name!r} names a preset, whose meaning is not stored")
        layout = str(group.get("format") or common)
        activations = group.get("input_activations")
        weight = _from_args(_need(group, "weights"), weight_only=activations is None, layout=layout)
        if not weight.is_quantized:
            continue
        scheme = Scheme(
            weight=weight,
            activation=_from_args(activations, weight_only=False),
            kv_cache=_from_args(config.get("kv_cache_scheme"), weight_only=False),
        )
        out.append(ConfigGroup(name=name, targets=tuple(group.get("targets") or ()), scheme=scheme, layout=layout))
    return out


def _from_compressed(config: Mapping[str, Any]) -> Scheme:
    groups = compressed_groups(config)
    if not groups or any(g.scheme != groups[0].scheme for g in groups):
        raise QsimError(
            f"quantization_config: one scheme for all layers is read here: got {len(groups)} config_groups "
            f"({', '.join(g.name for g in groups)}) that differ; read them one at a time"
        )
    return groups[0].scheme
