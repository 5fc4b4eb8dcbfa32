"""The `quantization_config` of a folder that is written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qsim.errors import QsimError
from qsim.scheme import Scheme, TensorScheme
from qsim.scheme.huggingface import compressed_args, compressed_layout, to_config

from .parts import with_scale_format


@dataclass(frozen=True, kw_only=True)
class Fact:
    """What the config must say of one quantised layer.

    Arguments:
        scheme: with the model's KV cache.
        act_order: its columns are in groups that are not consecutive.
        tensor_scale, input_scale: of the weight and of its static activation, where engines fuse them over layers and
            the tensor was seen; None else.
    """

    scheme: Scheme
    act_order: bool = False
    tensor_scale: float | None = None
    input_scale: float | None = None


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
