"""The `quantization_config` of a folder: which layer is quantised how, and the one to write."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from qsim.errors import QsimError
from qsim.models.cache import check_kv_scheme
from qsim.scheme import QuantizedTensor, Scheme, TensorScheme
from qsim.scheme.huggingface import (
    ConfigGroup,
    compressed_args,
    compressed_groups,
    compressed_layout,
    from_config,
    to_config,
)

from . import awq, compressed, fp8, gptq
from .fp8 import Meaning
from .parts import Notes, Parts, with_scale_format
from .schema import MODELS, Awq, CompressedTensors, Fp8, Gptq, parse

Decode = Callable[[Parts, Scheme, Notes], QuantizedTensor]


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """How one layer is stored.

    Arguments:
        scheme: by the config; the tensors may say more.
        decode: reads its parts.
        skipped: the config says that it is not quantised.
    """

    scheme: Scheme
    decode: Decode
    skipped: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a folder is quantised.

    Arguments:
        method: `gptq`, `awq`, `compressed-tensors` or `fp8`.
        parts: last names of tensors that may belong to a quantised layer.
        marks: those that only a quantised layer has.
        scale: those that hold its scales.
        layer: from a layer's name to how it is stored; None where the config has no scheme for it.
        kv_cache: how the KV cache is stored; None when unquantised.
    """

    method: str
    parts: tuple[str, ...]
    marks: tuple[str, ...]
    scale: tuple[str, ...]
    layer: Callable[[str], LayerPlan | None] = field(repr=False)
    kv_cache: TensorScheme | None = None


def read_plan(config: Mapping[str, Any], notes: Notes, *, scale_inv: Meaning | None = None) -> Plan:
    """How a `quantization_config` (or a legacy `quantize_config.json`) says that layers are stored.

    Arguments:
        config: its keys; unknown ones are accepted and noted once.
        scale_inv: what `weight_scale_inv` does to the codes, where the config does not say.

    Raises:
        ValueError: a method or a variant of it that is not read here, a key that is missing or of another type.
    """
    config = _with_method(config)
    method = config["quant_method"]
    if not isinstance(method, str) or method not in MODELS:
        raise QsimError(f"quant_method is one of {', '.join(MODELS)}: got {method!r}")
    keys, unknown = parse(method, config)
    if unknown:
        notes.add(f"unknown keys of quantization_config ({method}) were ignored: {', '.join(unknown)}")
    if isinstance(keys, CompressedTensors):
        return _read_compressed(keys, notes)
    if isinstance(keys, Gptq):
        return _read_gptq(keys)
    return _read_awq(keys) if isinstance(keys, Awq) else _read_fp8(keys, scale_inv)


def _with_method(config: Mapping[str, Any]) -> dict[str, Any]:
    """Legacy files have no `quant_method`: AutoAWQ's are known by `w_bit`, AutoGPTQ's by `bits`."""
    out = dict(config)
    if "quant_method" not in out:
        if "w_bit" in out:
            out["quant_method"] = "awq"
        elif "bits" in out and "group_size" in out:
            out["quant_method"] = "gptq"
        else:
            raise QsimError(f"key 'quant_method' is missing; there are {', '.join(sorted(out)) or 'no keys'}")
    for new, old in (("bits", "w_bit"), ("group_size", "q_group_size")):
        if new not in out and old in out:
            out[new] = out[old]
    return out


# --- GPTQ, AWQ, FP8 -------------------------------------------------------------------------------------------


def _read_gptq(keys: Gptq) -> Plan:
    form = "marlin" if keys.is_marlin_format else keys.checkpoint_format or keys.format or "gptq"
    if form not in ("gptq", "gptq_v2"):
        raise QsimError(f"GPTQ checkpoints are read in the formats gptq and gptq_v2: got {form!r}")
    if (keys.pack_dtype or "int32").removeprefix("torch.") != "int32":
        raise QsimError(f"GPTQ checkpoints are read with pack_dtype int32: got {keys.pack_dtype!r}")
    decode = partial(gptq.decode, version=2 if form == "gptq_v2" else 1)
    base = {"bits": keys.bits, "group_size": keys.group_size, "sym": keys.sym}
    rules = []
    for pattern, changes in (keys.dynamic or {}).items():
        own = base | {key: value for key, value in (changes or {}).items() if key in base}
        rules.append((pattern, _gptq_scheme(own)))
    common = _gptq_scheme(base)

    def layer(name: str) -> LayerPlan:
        scheme, skipped = common, name == "lm_head" and not keys.lm_head
        for pattern, own in rules:
            if re.match(pattern.removeprefix("-:").removeprefix("+:"), name):
                scheme, skipped = own, skipped or pattern.startswith("-:")
                break
        return LayerPlan(scheme=scheme, decode=decode, skipped=skipped)

    return Plan(method="gptq", parts=gptq.PARTS, marks=("qweight",), scale=("scales",), layer=layer)


def _gptq_scheme(settings: Mapping[str, Any]) -> Scheme:
    if settings["bits"] not in gptq.BITS:
        raise QsimError(f"GPTQ holds {', '.join(map(str, gptq.BITS))} bits: got bits={settings['bits']!r}")
    return from_config({"quant_method": "gptq", **settings})


def _read_awq(keys: Awq) -> Plan:
    if (keys.version or "gemm").lower() != "gemm":
        raise QsimError(f"AWQ checkpoints are read in version gemm: got {keys.version!r}")
    if keys.bits != 4:
        raise QsimError(f"AWQ holds 4 bits: got bits={keys.bits!r}")
    scheme = from_config(
        {"quant_method": "awq", "bits": 4, "group_size": keys.group_size, "zero_point": keys.zero_point}
    )
    skip = tuple(keys.modules_to_not_convert or ())

    def layer(name: str) -> LayerPlan:
        skipped = name == "lm_head" or any(part in name for part in skip)
        return LayerPlan(scheme=scheme, decode=awq.decode, skipped=skipped)

    return Plan(method="awq", parts=awq.PARTS, marks=("qweight",), scale=("scales",), layer=layer)


def _read_fp8(keys: Fp8, meaning: Meaning | None) -> Plan:
    form = keys.format or keys.fmt or "e4m3"
    if form not in ("e4m3", "float8_e4m3fn", "fp8"):
        raise QsimError(f"fp8 checkpoints are read with codes float8_e4m3fn: got {form!r}")
    if keys.weight_scale_semantics is not None:
        if keys.weight_scale_semantics != "inverse":
            raise QsimError(f"weight_scale_semantics is inverse, or left out: got {keys.weight_scale_semantics!r}")
        meaning = "divide"
    scheme = from_config(
        {"quant_method": "fp8", "activation_scheme": keys.activation_scheme,
         "weight_block_size": keys.weight_block_size, "kv_cache_scheme": keys.kv_cache_scheme}
    )  # fmt: skip
    decode = partial(fp8.decode, meaning=meaning)
    skip = tuple(keys.ignored_layers or keys.modules_to_not_convert or ())

    def layer(name: str) -> LayerPlan:
        skipped = name == "lm_head" or any(f".{part}." in f".{name}." for part in skip)
        return LayerPlan(scheme=scheme, decode=decode, skipped=skipped)

    return Plan(
        method="fp8",
        parts=fp8.PARTS,
        marks=("weight_scale", "weight_scale_inv"),
        scale=("weight_scale", "weight_scale_inv"),
        layer=layer,
        kv_cache=scheme.kv_cache if scheme.kv_cache.is_quantized else None,
    )


# --- compressed-tensors ---------------------------------------------------------------------------------------


def _read_compressed(keys: CompressedTensors, notes: Notes) -> Plan:
    if keys.quantization_status not in ("compressed", None):
        raise QsimError(
            f"compressed-tensors checkpoints are read with quantization_status compressed: got "
            f"{keys.quantization_status!r}"
        )
    sparsity = {} if (keys.sparsity_config or {}).get("format") in (None, "dense") else keys.sparsity_config
    for key, value in (("sparsity_config", sparsity), ("transform_config", keys.transform_config),
                       ("moe_sparsity_config", keys.moe_sparsity_config)):  # fmt: skip
        if value:
            raise QsimError(f"compressed-tensors {key} is not read here: got {value!r}")
    kv = _kv_cache(keys, notes)
    said = {
        name: {
            "targets": group.targets,
            "weights": None if group.weights is None else group.weights.said(),
            "input_activations": None if group.input_activations is None else group.input_activations.said(),
            "format": group.format,
        }
        for name, group in keys.config_groups.items()
    }
    cache = keys.kv_cache_scheme.said() if kv is not None and keys.kv_cache_scheme is not None else None
    groups = compressed_groups({"config_groups": said, "format": keys.format, "kv_cache_scheme": cache})
    for group in groups:
        if group.layout not in compressed.FORMATS:
            raise QsimError(
                f"compressed-tensors formats read here are {', '.join(compressed.FORMATS)}: group {group.name} has "
                f"{group.layout!r}"
            )
    ignored = tuple(keys.ignore or ())

    def layer(name: str) -> LayerPlan | None:
        group = _group_of(name, groups)
        if group is None:
            return None
        skipped = any(matches(name, pattern) for pattern in ignored)
        return LayerPlan(scheme=group.scheme, decode=partial(compressed.decode, fmt=group.layout), skipped=skipped)

    return Plan(
        method="compressed-tensors",
        parts=compressed.PARTS,
        marks=("weight_packed", "weight_scale"),
        scale=("weight_scale",),
        layer=layer,
        kv_cache=kv,
    )


def _kv_cache(keys: CompressedTensors, notes: Notes) -> TensorScheme | None:
    if keys.kv_cache_scheme is None:
        return None
    any_group = {"weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}
    try:
        probe = compressed_groups({"config_groups": {"kv": any_group}, "kv_cache_scheme": keys.kv_cache_scheme.said()})
        check_kv_scheme(probe[0].scheme.kv_cache)
    except ValueError as error:
        notes.add(f"the KV cache is not quantised here, its scheme is not supported: {error}")
        return None
    return probe[0].scheme.kv_cache


def _group_of(name: str, groups: Sequence[ConfigGroup]) -> ConfigGroup | None:
    """The group that targets a Linear: by its own name before by its class, as the engines look it up."""
    for group in groups:
        if any(matches(name, target) for target in group.targets):
            return group
    return next((g for g in groups if "Linear" in g.targets), None)


def matches(name: str, pattern: str) -> bool:
    """Whether a target or an ignore entry means a layer: its name, or a regular expression after `re:`."""
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), name) is not None
    return pattern == name


# --- writing --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Fact:
    """What the config must say of one quantised layer."""

    scheme: Scheme
    act_order: bool = False


def write_plan(
    layout: str, facts: Mapping[str, Fact], unquantized: Sequence[str], kv_cache: TensorScheme | None, version: str
) -> dict[str, Any]:
    """The `quantization_config` of a folder.

    Arguments:
        layout: any but `plain`.
        facts: its quantised layers, by name.
        unquantized: its other Linears, the head included.
        kv_cache: how the KV cache is stored, or None.
        version: of this package, for the record that GPTQ's config has.

    Raises:
        ValueError: layers that differ where the layout has one scheme for all.
    """
    plain = [name for name in unquantized if name not in facts]
    if layout == "compressed-tensors":
        return _write_compressed(facts, plain, kv_cache)
    if layout in ("gptq", "gptq_v2"):
        return _write_gptq(layout, facts, plain, version)
    _check_one_scheme(layout, facts)
    first = next(iter(facts.values())).scheme
    if layout == "awq":
        return to_config(first, "awq") | {"modules_to_not_convert": plain or None}
    config = to_config(with_scale_format(first, "float32"), "fp8")
    config["ignored_layers"] = plain
    if first.weight.scale_format is not None and first.weight.scale_format.name == "float8_e8m0fnu":
        config["scale_fmt"] = "ue8m0"
    return config


def _check_one_scheme(layout: str, facts: Mapping[str, Fact]) -> None:
    (first, fact), *others = facts.items()
    for name, other in others:
        if other.scheme != fact.scheme:
            raise QsimError(
                f"{layout} has one scheme for all layers: {first} is {_label(fact)}, {name} is {_label(other)}; use "
                "layout 'compressed-tensors'"
            )


def _label(fact: Fact) -> str:
    w = fact.scheme.weight
    return f"{w.format.name} in {w.granularity}"


def _write_gptq(layout: str, facts: Mapping[str, Fact], plain: Sequence[str], version: str) -> dict[str, Any]:
    settings = {name: _gptq_settings(fact.scheme) for name, fact in facts.items()}
    common = dict(Counter(tuple(s.items()) for s in settings.values()).most_common(1)[0][0])
    dynamic: dict[str, dict[str, Any]] = {}
    for name in plain:
        if name != "lm_head":
            dynamic[f"-:^{re.escape(name)}$"] = {}
    for name, own in settings.items():
        if own != common:
            dynamic[f"+:^{re.escape(name)}$"] = own
    out = {
        "quant_method": "gptq",
        **common,
        "desc_act": any(fact.act_order for fact in facts.values()),
        "lm_head": "lm_head" in facts,
        "checkpoint_format": layout,
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"qsim:{version}"]},
    }
    return out | ({"dynamic": dynamic} if dynamic else {})


def _gptq_settings(scheme: Scheme) -> dict[str, Any]:
    w = scheme.weight
    return {"bits": w.bits, "group_size": w.group_size or -1, "sym": w.symmetric}


def _write_compressed(facts: Mapping[str, Fact], plain: Sequence[str], kv_cache: TensorScheme | None) -> dict[str, Any]:
    schemes: dict[str, tuple[Scheme, list[str]]] = {}
    for name, fact in facts.items():
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
        "ignore": list(plain),
        "kv_cache_scheme": None if kv_cache is None else _said(kv_cache),
        "config_groups": groups,
    }


def _said(part: TensorScheme) -> dict[str, Any] | None:
    """QuantizationArgs without the dtypes that the tensors tell: releases that lack those keys refuse a config."""
    args = compressed_args(part)
    if args is not None and args.get("scale_dtype") != "torch.uint8":
        args = {key: value for key, value in args.items() if key not in ("scale_dtype", "zp_dtype")}
    return args
