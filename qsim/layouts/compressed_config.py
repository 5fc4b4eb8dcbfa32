"""The config of compressed-tensors: groups of layers, each with the arguments of its weights and its activations.

Source: compressed-tensors 0.20.0, `quantization/quant_args.py`, `quant_scheme.py`, `utils/match.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qsim.errors import QsimError
from qsim.fields import Fields
from qsim.formats import BlockFormat, IntFormat, get_format
from qsim.scheme import Granularity, Scheme, TensorScheme
from qsim.scheme.kv import check_kv_scheme

from .config import read_block, read_group_size
from .layout import Facts
from .parts import Notes
from .patterns import Patterns

PACKED = ("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp6-pack-quantized")
FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", *PACKED, "mxfp8-quantized")
_STATUS = ("initialized", "calibration", "frozen", "compressed")
_TORCH = {"float32": "torch.float32", "float16": "torch.float16", "bfloat16": "torch.bfloat16",
          "float8_e4m3fn": "torch.float8_e4m3fn", "float8_e8m0fnu": "torch.uint8"}  # fmt: skip
_FROM_TORCH = {v: k for k, v in _TORCH.items()}
_FLOATS = {("float", 8): "float8_e4m3fn", ("float", 6): "float6_e2m3fn", ("float", 4): "float4_e2m1fn"}
_BLOCKS = {(4, 32): "mxfp4", (6, 32): "mxfp6_e2m3", (8, 32): "mxfp8_e4m3", (4, 16): "nvfp4"}
BLOCK_LAYOUTS = {"mxfp4": "mxfp4-pack-quantized", "mxfp6_e2m3": "mxfp6-pack-quantized", "mxfp8_e4m3": "mxfp8-quantized",
            "nvfp4": "nvfp4-pack-quantized"}  # fmt: skip


def compressed_args(part: TensorScheme) -> dict[str, Any] | None:
    """The `QuantizationArgs` of one part; None when it is not quantised.

    Raises:
        ValueError: a format that compressed-tensors lacks.
    """
    if not part.is_quantized:
        return None
    fmt, where = part.format, part.granularity
    if part.has_own_rule:
        raise QsimError(f"compressed-tensors has no minima and no superblocks: got {part.summary}")
    assert where is not None
    assert part.scale_format is not None
    element = fmt.element if isinstance(fmt, BlockFormat) else fmt
    if not isinstance(element, IntFormat) and element.name not in _FLOATS.values():
        raise QsimError(f"compressed-tensors has integers, {', '.join(_FLOATS.values())}: got {fmt.name}")
    if element.bits < 8 and not isinstance(element, IntFormat) and fmt.name not in BLOCK_LAYOUTS:
        raise QsimError(
            f"compressed-tensors has {element.name} in blocks, as {', '.join(BLOCK_LAYOUTS)}: got {fmt.name}"
        )
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
    symmetric, group = keys.flag("symmetric", True), read_group_size(keys) if "group_size" in keys else None
    # the library infers a strategy that is left out from the group size
    inferred = "tensor" if group is None else "channel" if group == -1 else "group"
    strategy = keys.text("strategy", inferred, choices=_STRATEGIES)
    keys.read.add("dynamic")
    dynamic = keys.table.get("dynamic") == "local" or keys.flag("dynamic", False)
    scale = _FROM_TORCH.get(keys.text("scale_dtype", ""), "")
    zero_point = _FROM_TORCH.get(keys.text("zp_dtype", ""), "")
    block = read_block(keys, "block_structure")
    # an MX scale_dtype is uint8; configs that leave it out say MX by the bits or by the layout
    is_block = kind == "float" and (
        bits < 8 or strategy == "tensor_group" or scale == "float8_e8m0fnu" or layout in BLOCK_LAYOUTS.values()
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
        return BLOCK_LAYOUTS.get(w.format.name, "dense")
    if not w.is_integer:
        return "float-quantized"
    return "int-quantized" if scheme.activation.is_quantized else "pack-quantized"


def to_config(scheme: Scheme) -> dict[str, Any]:
    """The config of a model with one scheme."""
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


def from_config(keys: Fields) -> Scheme:
    """The one scheme of a config's keys.

    Raises:
        QsimError: as `compressed_groups`, or groups that differ.
    """
    groups = compressed_groups(keys, kv_cache=read_args(keys.inner("kv_cache_scheme", None)))
    if not groups or any(g.scheme != groups[0].scheme for g in groups):
        raise QsimError(
            f"quantization_config: one scheme for all layers is read here: got {len(groups)} config_groups "
            f"({', '.join(g.name for g in groups)}) that differ; read them one at a time"
        )
    return groups[0].scheme


# --- a model --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Groups:
    """What a config says of the layers.

    Attributes:
        group_of: from a layer's name to its group; None where none targets it.
        is_ignored: whether the config leaves a layer unquantised.
        kv_cache: how the KV cache is stored; None when unquantised.
    """

    group_of: Callable[[str], ConfigGroup | None]
    is_ignored: Callable[[str], bool]
    kv_cache: TensorScheme | None


def read_groups(keys: Fields, notes: Notes) -> Groups:
    """The groups of a config by the layers that they mean.

    Raises:
        QsimError: as `compressed_groups`; a format, a sparsity or a transform that is not read here.
    """
    # a label of the writer's life cycle: what is stored decides how a layer is read, see `compressed.decode`
    status = keys.text("quantization_status", "compressed")
    if status not in _STATUS:
        notes.add(f"quantization_status {status[:60]!r} is not known: layers are read as they are stored")
    for key in ("sparsity_config", "transform_config", "moe_sparsity_config"):
        told = keys.inner(key, None)
        if told is None or (key == "sparsity_config" and told.text("format", "dense") == "dense"):
            continue
        if told.table:
            raise QsimError(f"compressed-tensors {key} is not read here: got keys {', '.join(sorted(told.table)[:9])}")
    kv = _kv_cache(keys, notes)
    groups = compressed_groups(keys, **({} if kv is None else {"kv_cache": kv}))
    for group in groups:
        if group.layout not in FORMATS:
            raise QsimError(
                f"compressed-tensors formats read here are {', '.join(FORMATS)}: group {group.name} has "
                f"{group.layout[:60]!r}"
            )
    group_of = _targets(groups, f"{keys.where}: config_groups")
    ignored = _Names(keys.items("ignore", str, (), most=1 << 16), f"{keys.where}: ignore")
    return Groups(group_of=group_of, is_ignored=lambda name: ignored.entry_of(name) is not None, kv_cache=kv)


def _kv_cache(keys: Fields, notes: Notes) -> TensorScheme | None:
    told = keys.inner("kv_cache_scheme", None)
    if told is None:
        return None
    try:
        found = read_args(told)
        check_kv_scheme(found)
    except ValueError as error:
        notes.add(f"the KV cache is not quantised here, its scheme is not supported: {error}")
        return None
    return found


class _Names:
    """Targets or ignored layers of compressed-tensors, looked up as the library's `match_targets` ranks them.

    A layer's own name goes before a regular expression (`re:...`), and that before its class, in whatever order they
    are listed; regular expressions are tried in the order of their texts.
    """

    def __init__(self, entries: Sequence[str], where: str) -> None:
        self._exact = {entry for entry in entries if not entry.startswith("re:")}
        self._expressions = sorted({entry for entry in entries if entry.startswith("re:")})
        self._patterns = Patterns([entry.removeprefix("re:") for entry in self._expressions], where)

    def entry_of(self, name: str) -> str | None:
        """The entry that means a Linear of this name; None when none does."""
        if name in self._exact:
            return name
        found = self._patterns.first(name)
        if found is not None:
            return self._expressions[found]
        return next((kind for kind in ("Linear", "Module") if kind in self._exact), None)


def _targets(groups: Sequence[ConfigGroup], where: str) -> Callable[[str], ConfigGroup | None]:
    """From a layer's name to its group. A target of two groups is the later one's, as in the library."""
    by_target = {target: group for group in groups for target in group.targets}
    names = _Names(tuple(by_target), where)

    def group_of(name: str) -> ConfigGroup | None:
        found = names.entry_of(name)
        return None if found is None else by_target[found]

    return group_of


def write_config(facts: Facts) -> dict[str, Any]:
    """The config of a model that is written: one group for each scheme."""
    schemes: dict[str, tuple[Scheme, list[str]]] = {}
    for name, fact in facts.layers.items():
        key = str({part: _said(getattr(fact.scheme, part)) for part in ("weight", "activation")})
        schemes.setdefault(key, (fact.scheme, []))[1].append(name)
    layouts = {compressed_layout(scheme) for scheme, _ in schemes.values()}
    groups: dict[str, Any] = {}
    for i, (scheme, names) in enumerate(schemes.values()):
        groups[f"group_{i}"] = {
            "targets": ["Linear"] if len(schemes) == 1 else names,
            "weights": _said(scheme.weight),
            "input_activations": _said(scheme.activation),
            "output_activations": None,
        } | ({"format": compressed_layout(scheme)} if len(layouts) > 1 else {})
    return {
        "quant_method": "compressed-tensors",
        "format": layouts.pop() if len(layouts) == 1 else "mixed-precision" if layouts else "dense",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "ignore": list(facts.plain),
        "kv_cache_scheme": None if facts.kv_cache is None else _said(facts.kv_cache),
        "config_groups": groups,
    }


def _said(part: TensorScheme) -> dict[str, Any] | None:
    """QuantizationArgs without the dtypes that the tensors tell: releases that lack those keys refuse a config."""
    args = compressed_args(part)
    if args is not None and args.get("scale_dtype") != "torch.uint8":
        args = {key: value for key, value in args.items() if key not in ("scale_dtype", "zp_dtype")}
    return args
