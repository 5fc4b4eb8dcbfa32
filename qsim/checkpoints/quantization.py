"""The `quantization_config` of a folder: which layer is quantised how, and the one to write."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from qsim.quantize import QuantizedTensor, Scheme, TensorScheme
from qsim.quantize.huggingface import (
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

METHODS = ("gptq", "awq", "compressed-tensors", "fp8")
_COMMON = {"quant_method", "modules_to_not_convert", "ignored_layers", "version", "kv_cache_scheme"}
_KNOWN = {
    "gptq": {
        "bits", "group_size", "desc_act", "sym", "lm_head", "method", "format", "checkpoint_format", "pack_dtype",
        "dynamic", "meta", "damp_percent", "damp_auto_increment", "static_groups", "true_sequential", "mse",
        "act_group_aware", "is_marlin_format", "model_name_or_path", "model_file_base_name", "quantizer",
        "batch_size", "block_name_to_quantize", "cache_block_outputs", "dataset", "exllama_config", "max_input_length",
        "model_seqlen", "module_name_preceding_first_block", "modules_in_block_to_quantize", "pad_token_id",
        "tokenizer", "use_cuda_fp16", "use_exllama", "disable_exllama", "backend", "modules_to_convert",
    },
    "awq": {
        "bits", "group_size", "zero_point", "backend", "do_fuse", "fuse_max_seq_len", "modules_to_fuse",
        "exllama_config", "w_bit", "q_group_size", "lm_head", "pack_dtype", "desc_act", "sym", "format",
    },
    "compressed-tensors": {
        "config_groups", "format", "quantization_status", "ignore", "global_compression_ratio", "sparsity_config",
        "transform_config", "moe_sparsity_config", "run_compressed", "dequantize", "use_optimized_inference",
    },
    "fp8": {
        "activation_scheme", "fmt", "weight_block_size", "scale_fmt", "dequantize", "modules_to_convert",
        "weight_scale_semantics", "weight_scale_method", "format", "checkpoint_format", "bits", "method", "meta",
        "expert_dtype", "group_size", "desc_act", "sym", "lm_head", "pack_dtype", "dynamic",
        "is_checkpoint_fp8_serialized",
    },
}  # fmt: skip

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
        ValueError: a method or a variant of it that is not read here, a missing key.
    """
    config = _with_method(config)
    method = config["quant_method"]
    if method not in METHODS:
        raise ValueError(f"quant_method is one of {', '.join(METHODS)}: got {method!r}")
    unknown = sorted(set(config) - _COMMON - _KNOWN[method])
    if unknown:
        notes.add(f"unknown keys of quantization_config ({method}) were ignored: {', '.join(unknown)}")
    if method == "gptq":
        return _read_gptq(config)
    if method == "awq":
        return _read_awq(config)
    if method == "compressed-tensors":
        return _read_compressed(config, notes)
    return _read_fp8(config, scale_inv)


def _with_method(config: Mapping[str, Any]) -> dict[str, Any]:
    """Legacy files have no `quant_method`: AutoAWQ's are known by `w_bit`, AutoGPTQ's by `bits`."""
    out = dict(config)
    if "quant_method" not in out:
        if "w_bit" in out:
            out["quant_method"] = "awq"
        elif "bits" in out and "group_size" in out:
            out["quant_method"] = "gptq"
        else:
            raise ValueError(f"key 'quant_method' is missing; there are {', '.join(sorted(out)) or 'no keys'}")
    for new, old in (("bits", "w_bit"), ("group_size", "q_group_size")):
        if new not in out and old in out:
            out[new] = out[old]
    return out


# --- GPTQ, AWQ, FP8 -------------------------------------------------------------------------------------------


def _read_gptq(config: Mapping[str, Any]) -> Plan:
    form = str(config.get("checkpoint_format") or config.get("format") or "gptq")
    if config.get("is_marlin_format"):
        form = "marlin"
    if form not in ("gptq", "gptq_v2"):
        raise ValueError(f"GPTQ checkpoints are read in the formats gptq and gptq_v2: got {form!r}")
    if str(config.get("pack_dtype", "int32")).removeprefix("torch.") != "int32":
        raise ValueError(f"GPTQ checkpoints are read with pack_dtype int32: got {config['pack_dtype']!r}")
    base = _keep(config, "bits", "group_size", "sym")
    _check_bits(base, "GPTQ", gptq.BITS)
    from_config({"quant_method": "gptq", **base})  # a missing key is said before any layer
    decode = partial(gptq.decode, version=2 if form == "gptq_v2" else 1)
    rules = [(str(key), dict(value or {})) for key, value in (config.get("dynamic") or {}).items()]

    def layer(name: str) -> LayerPlan:
        settings, skipped = base, name == "lm_head" and not config.get("lm_head")
        for pattern, changes in rules:
            if re.match(pattern.removeprefix("-:").removeprefix("+:"), name):
                skipped = skipped or pattern.startswith("-:")
                settings = base | _keep(changes, "bits", "group_size", "sym")
                break
        _check_bits(settings, "GPTQ", gptq.BITS)
        scheme = from_config({"quant_method": "gptq", **settings})
        return LayerPlan(scheme=scheme, decode=decode, skipped=skipped)

    return Plan(method="gptq", parts=gptq.PARTS, marks=("qweight",), scale=("scales",), layer=layer)


def _keep(config: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: config[key] for key in keys if key in config}


def _check_bits(settings: Mapping[str, Any], who: str, bits: Sequence[int]) -> None:
    if settings.get("bits") not in bits:
        raise ValueError(f"{who} holds {', '.join(map(str, bits))} bits: got bits={settings.get('bits')!r}")


def _read_awq(config: Mapping[str, Any]) -> Plan:
    version = str(config.get("version") or "gemm").lower()
    if version != "gemm":
        raise ValueError(f"AWQ checkpoints are read in version gemm: got {version!r}")
    _check_bits(config, "AWQ", (4,))
    scheme = from_config({"quant_method": "awq", **_keep(config, "bits", "group_size", "zero_point")})
    skip = tuple(config.get("modules_to_not_convert") or ())

    def layer(name: str) -> LayerPlan:
        skipped = name == "lm_head" or any(part in name for part in skip)
        return LayerPlan(scheme=scheme, decode=awq.decode, skipped=skipped)

    return Plan(method="awq", parts=awq.PARTS, marks=("qweight",), scale=("scales",), layer=layer)


def _read_fp8(config: Mapping[str, Any], meaning: Meaning | None) -> Plan:
    form = str(config.get("format") or config.get("fmt") or "e4m3")
    if form not in ("e4m3", "float8_e4m3fn", "fp8"):
        raise ValueError(f"fp8 checkpoints are read with codes float8_e4m3fn: got {form!r}")
    said = config.get("weight_scale_semantics")
    if said is not None:
        if said not in ("inverse", "multiply", "direct"):
            raise ValueError(f"weight_scale_semantics is inverse, or left out: got {said!r}")
        meaning = "divide" if said == "inverse" else "multiply"
    settings = _keep(config, "activation_scheme", "weight_block_size", "kv_cache_scheme")
    scheme = from_config({"quant_method": "fp8", **settings})
    decode = partial(fp8.decode, meaning=meaning)
    skip = tuple(config.get("ignored_layers") or config.get("modules_to_not_convert") or ())

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


def _read_compressed(config: Mapping[str, Any], notes: Notes) -> Plan:
    status = config.get("quantization_status", "compressed")
    if status not in ("compressed", None):
        raise ValueError(f"compressed-tensors checkpoints are read with quantization_status compressed: got {status!r}")
    for key in ("sparsity_config", "transform_config", "moe_sparsity_config"):
        value = config.get(key)
        if value and (key != "sparsity_config" or value.get("format") not in (None, "dense")):
            raise ValueError(f"compressed-tensors {key} is not read here: got {value!r}")
    kv = _kv_cache(config, notes)
    groups = compressed_groups({**config, "kv_cache_scheme": None if kv is None else config["kv_cache_scheme"]})
    for group in groups:
        if group.layout not in compressed.FORMATS:
            raise ValueError(
                f"compressed-tensors formats read here are {', '.join(compressed.FORMATS)}: group {group.name} has "
                f"{group.layout!r}"
            )
    ignored = tuple(config.get("ignore") or ())

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


def _kv_cache(config: Mapping[str, Any], notes: Notes) -> TensorScheme | None:
    if not config.get("kv_cache_scheme"):
        return None
    group = {"weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}
    try:
        probe = compressed_groups({**config, "config_groups": {"kv": group}})[0]
    except ValueError as error:
        notes.add(f"the KV cache is not quantised here, its scheme is not supported: {error}")
        return None
    return probe.scheme.kv_cache


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
            raise ValueError(
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
