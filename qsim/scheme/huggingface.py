"""A scheme as the `quantization_config` of a Hugging Face `config.json`, and back.

Four dialects: GPTQ, AWQ, compressed-tensors and FP8 (AutoFP8, vLLM, DeepSeek). Keys that a scheme does not hold
(act order, damping, observers, ignored layers) are written with the usual defaults and ignored when read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qsim.errors import QsimError
from qsim.fields import Fields
from qsim.formats import BlockFormat, IntFormat, get_format

from .granularity import Granularity
from .scheme import Scheme, TensorScheme

METHODS = ("gptq", "awq", "compressed-tensors", "fp8")
LARGEST = 1 << 24  # group, or block: more columns than any layer has

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
        raise QsimError(f"the quantization_config method must be one of {', '.join(METHODS)}: got {method!r}")
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
        QsimError: no or an unknown `quant_method`, a key that is missing, of another type or out of its range, layers
            with different schemes.
    """
    method = Fields(config, "quantization_config").text("quant_method", "", choices=("", *METHODS))
    keys = Fields(config, f"quantization_config ({method})")
    if not method:
        raise QsimError(f"quantization_config: quant_method must be one of {', '.join(METHODS)}: got none")
    read = {"gptq": read_gptq, "awq": read_awq, "compressed-tensors": _read_compressed, "fp8": read_fp8}[method]
    return read(keys)


def _group_size(keys: Fields) -> int:
    size = keys.integer("group_size", -1, LARGEST)
    if size == 0:
        raise keys.refuse("group_size", "must be -1, for one scale per row, or at least 1")
    return size


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


def read_gptq(keys: Fields) -> Scheme:
    """The scheme of GPTQ's keys."""
    return _grouped(keys.integer("bits", 2, 8), _group_size(keys), keys.flag("sym", True))


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


def read_awq(keys: Fields) -> Scheme:
    """The scheme of AWQ's keys."""
    return _grouped(keys.integer("bits", 2, 8), _group_size(keys), not keys.flag("zero_point", True))


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


def read_fp8(keys: Fields) -> Scheme:
    """The scheme of the keys of AutoFP8, vLLM and DeepSeek."""
    dynamic = keys.text("activation_scheme", "dynamic", choices=("static", "dynamic")) == "dynamic"
    block = _block_of(keys, "weight_block_size")
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


def _block_of(keys: Fields, name: str) -> tuple[int, int] | None:
    """Rows and columns of a block: two numbers, or a text such as `128x128`."""
    value = keys.table.get(name)
    if isinstance(value, str):
        keys.text(name)
        parts = value.lower().split("x")
        sizes = [int(part) for part in parts if part.isdecimal() and len(part) < 9]
        if len(sizes) != 2 or len(parts) != 2:
            raise keys.refuse(name, "must be two numbers, as in [128, 128] or 128x128")
    else:
        sizes = keys.items(name, int, (), most=2)
        if value is not None and len(sizes) != 2:
            raise keys.refuse(name, "must be two numbers")
    if any(not 1 <= size <= LARGEST for size in sizes):
        raise keys.refuse(name, f"must be two numbers from 1 to {LARGEST}")
    return (sizes[0], sizes[1]) if sizes else None


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


_UNQUANTIZED = TensorScheme(format=get_format("bfloat16"))
_STRATEGIES = ("tensor", "channel", "group", "block", "token", "tensor_group", "attn_head")
_KEPT = ("actorder", "observer", "observer_kwargs")  # of the calibration; they do not say how tensors are stored


def read_args(keys: Fields | None, *, weight_only: bool = False, layout: str = "") -> TensorScheme:
    """`QuantizationArgs` of compressed-tensors; None is unquantised.

    Arguments:
        weight_only: activations are not quantised, so that scales of integers are in the model's dtype.
        layout: the group's `format`, which says MX where the arguments do not.

    Raises:
        QsimError: a key of another type or out of its range, or what no scheme can say.
    """
    if keys is None:
        return _UNQUANTIZED
    keys.read.update(_KEPT)
    bits, kind = keys.integer("num_bits", 1, 32, 8), keys.text("type", "int", choices=("int", "float"))
    symmetric, group = keys.flag("symmetric", True), _group_size(keys) if "group_size" in keys else None
    # the library infers a strategy that is left out from the group size
    inferred = "tensor" if group is None else "channel" if group == -1 else "group"
    strategy = keys.text("strategy", inferred, choices=_STRATEGIES)
    keys.read.add("dynamic")
    dynamic = keys.table.get("dynamic") == "local" or keys.flag("dynamic", False)
    scale = _FROM_TORCH.get(keys.text("scale_dtype", ""), "")
    zero_point = _FROM_TORCH.get(keys.text("zp_dtype", ""), "")
    block = _block_of(keys, "block_structure")
    # an MX scale_dtype is uint8; configs that leave it out say MX by the bits or by the layout
    is_block = kind == "float" and (
        bits < 8 or strategy == "tensor_group" or scale == "float8_e8m0fnu" or layout in _LAYOUTS.values()
    )
    if is_block:
        if (bits, group or 0) not in _BLOCKS:
            raise QsimError(f"{keys.where}: there is no block format of {bits} bits in groups of {group}")
        return TensorScheme(format=get_format(_BLOCKS[bits, group or 0]), dynamic=dynamic)
    if kind == "float":
        if (kind, bits) not in _FLOATS:
            raise keys.refuse("num_bits", "of floats must be 8 or 4")
        fmt = get_format(_FLOATS[kind, bits])
    elif not 2 <= bits <= 8:
        raise keys.refuse("num_bits", "of integers must be from 2 to 8")
    else:
        fmt = get_format(f"int{bits}" if symmetric else f"uint{bits}")
    if strategy == "group" and group in (None, -1):
        strategy = "channel"
    if strategy in ("tensor_group", "attn_head"):
        raise keys.refuse("strategy", f"does not belong to {bits}-bit numbers of type {kind}")
    if strategy == "block" and block is None:
        raise QsimError(f"{keys.where}: block_structure is missing: strategy is block")
    granularity = Granularity(
        kind=strategy,  # type: ignore[arg-type]
        columns=group if strategy == "group" else block[1] if strategy == "block" and block else None,
        rows=block[0] if strategy == "block" and block else None,
    )
    # the model's dtype is not in the config: scales that do not say are float16 beside weight-only integers, as on disk
    scale = scale or ("float16" if weight_only and kind == "int" else "float32")
    return TensorScheme(
        format=fmt,
        granularity=granularity,
        symmetric=symmetric,
        scale_format=get_format(scale),  # type: ignore[arg-type]
        zero_point_format=get_format(zero_point) if not symmetric and zero_point else None,  # type: ignore[arg-type]
        dynamic=dynamic,
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


def compressed_groups(keys: Fields, *, kv_cache: TensorScheme = _UNQUANTIZED) -> list[ConfigGroup]:
    """The groups of a compressed-tensors config that quantise weights.

    Arguments:
        keys: of the config.
        kv_cache: the scheme of the KV cache, which is that of every group.

    Raises:
        QsimError: no `config_groups`, a group without targets, a key of another type or out of its range, or arguments
            that no scheme can say.
    """
    common = keys.text("format", "")
    table = keys.inner("config_groups")
    out = []
    for name, value in table.table.items():
        if not isinstance(value, Mapping):
            raise QsimError(f"{table.where}: group {name!r} names a preset, whose meaning is not stored")
        group = table.inner(name)
        layout = group.text("format", common)
        targets = group.items("targets", str, most=1 << 16)
        activations, outputs = group.inner("input_activations", None), group.inner("output_activations", None)
        read_args(outputs)  # products do not round their outputs; the keys are checked all the same
        weight = read_args(group.inner("weights", None), weight_only=activations is None, layout=layout)
        if not weight.is_quantized:
            continue
        scheme = Scheme(weight=weight, activation=read_args(activations), kv_cache=kv_cache)
        out.append(ConfigGroup(name=name, targets=targets, scheme=scheme, layout=layout))
    return out


def _read_compressed(keys: Fields) -> Scheme:
    groups = compressed_groups(keys, kv_cache=read_args(keys.inner("kv_cache_scheme", None)))
    if not groups or any(g.scheme != groups[0].scheme for g in groups):
        raise QsimError(
            f"quantization_config: one scheme for all layers is read here: got {len(groups)} config_groups "
            f"({', '.join(g.name for g in groups)}) that differ; read them one at a time"
        )
    return groups[0].scheme
