"""Schemes by name: the presets, and the grammar of integer schemes."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator
from functools import lru_cache

from qsim.errors import QsimError, QsimTypeError
from qsim.formats import get_format

from .granularity import Granularity
from .scheme import Scheme, TensorScheme

_BF16 = "bfloat16"


def _part(fmt: str, granularity: str | None = None, **more: object) -> TensorScheme:
    return TensorScheme(
        format=get_format(fmt),
        granularity=None if granularity is None else Granularity.parse(granularity),
        **more,  # type: ignore[arg-type]
    )


def _fp8(weight: str, activation: str, *, dynamic: bool = True) -> Scheme:
    return Scheme(
        weight=_part("float8_e4m3fn", weight, ragged=weight.startswith("block")),
        activation=_part("float8_e4m3fn", activation, dynamic=dynamic, ragged=activation.startswith("group")),
    )


def _block(fmt: str, activation: str) -> Scheme:
    return Scheme(weight=_part(fmt), activation=_part(activation, dynamic=True))


_PRESETS: dict[str, Scheme] = {
    "bf16": Scheme(weight=_part(_BF16)),
    "fp16": Scheme(weight=_part("float16"), activation=_part("float16"), kv_cache=_part("float16")),
    "fp32": Scheme(weight=_part("float32"), activation=_part("float32"), kv_cache=_part("float32")),
    "fp8": _fp8("tensor", "tensor"),
    "fp8-static": _fp8("tensor", "tensor", dynamic=False),
    "fp8-rowwise": _fp8("channel", "token"),
    "fp8-block128": _fp8("block(128,128)", "group(128)"),
    "fp8-weight-only": Scheme(weight=_part("float8_e4m3fn", "channel")),
    "mxfp8": _block("mxfp8_e4m3", "mxfp8_e4m3"),
    "mxfp6": _block("mxfp6_e2m3", "mxfp6_e2m3"),
    "mxfp4": _block("mxfp4", "mxfp4"),
    "nvfp4": _block("nvfp4", "nvfp4"),
    "mxfp4-weight-only": Scheme(weight=_part("mxfp4")),
    "nvfp4-weight-only": Scheme(weight=_part("nvfp4")),
    "nf4-g64": Scheme(weight=_part("nf4", "group(64)")),
}
_ALIASES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "fp8-tensor": "fp8", "fp8-kv": "fp8-kvfp8",
            "fp8-block": "fp8-block128", "w4a8": "w4a8-g128", "w4a4": "w4a4-channel-token"}  # fmt: skip
_LISTED = ("bf16", "fp16", "w4a16-g128", "w4a16-g128-sym", "w3a16-g128", "w3a16-g128-sym", "w8a16", "w8a8-tensor",
           "w8a8-channel-token", "w4a8", "fp8", "fp8-static", "fp8-rowwise", "fp8-block128", "fp8-weight-only",
           "fp8-kv", "mxfp8", "mxfp6", "mxfp4", "nvfp4", "mxfp4-weight-only", "nvfp4-weight-only",
           "nf4-g64")  # fmt: skip

_KV = {"fp8": "float8_e4m3fn", "e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2", "int8": "int8", "int4": "int4"}
_KV_SUFFIX = re.compile(r"-kv(fp8|e4m3|e5m2|int8|int4)")
_GRAMMAR = re.compile(
    r"w(?P<w>[2-8])a(?P<a>[2-8]|16|32)"
    r"(?:-(?P<wg>tensor|channel|g\d+))?"
    r"(?:-(?P<ag>tensor|token|ag\d+))?"
    r"(?:-(?P<sym>sym|asym))?"
    r"(?P<static>-static)?"
    r"(?P<ragged>-ragged)?"
)


def _parse(name: str) -> Scheme | None:
    match = _GRAMMAR.fullmatch(name)
    if match is None:
        return None
    w_bits, a_bits = int(match["w"]), int(match["a"])
    where = match["wg"] or "channel"
    if where.startswith("g"):
        where = f"group({where[1:]})"
    weight_only = a_bits >= 16
    if weight_only and (match["ag"] or match["static"]):
        raise QsimError(f"{name}: {match['ag'] or 'static'} belongs to a quantised activation: a{a_bits} has no scale")
    symmetric = match["sym"] == "sym" if match["sym"] else not weight_only
    weight = _part(
        f"int{w_bits}" if symmetric else f"uint{w_bits}",
        where,
        symmetric=symmetric,
        scale_format=get_format("float16" if weight_only or where.startswith("group") else "float32"),
        ragged=bool(match["ragged"]),
    )
    if weight_only:
        return Scheme(weight=weight, activation=_part(_BF16 if a_bits == 16 else "float32"))
    region = match["ag"] or ("tensor" if where == "tensor" else "token")
    if region.startswith("ag"):
        region = f"group({region[2:]})"
    return Scheme(
        weight=weight,
        activation=_part(f"int{a_bits}", region, dynamic=not match["static"], ragged=bool(match["ragged"])),
    )


@lru_cache(maxsize=512)
def _resolve(key: str) -> Scheme | None:
    key = _ALIASES.get(key, key)
    suffix = _KV_SUFFIX.search(key)
    if suffix is not None and suffix.end() == len(key):
        base = _resolve(key[: suffix.start()])
        if base is None:
            return None
        kind = suffix[1]
        # stored per-tensor scales for FP8, as loaders keep k_scale and v_scale; integers need a scale for each token
        kv = (
            _part(_KV[kind], "tensor")
            if kind in ("fp8", "e4m3", "e5m2")
            else _part(_KV[kind], "token", scale_format=get_format("float16"), dynamic=True)
        )
        return base.replace(kv_cache=kv, name=key)
    found = _PRESETS.get(key) or _parse(key)
    return None if found is None else dataclasses.replace(found, name=key)


def get_scheme(name: str | Scheme) -> Scheme:
    """The scheme of that name, or the value itself.

    Arguments:
        name: a preset (`list_schemes()`), or integers by grammar, in this order:
            `w<bits>a<bits>` `-g<size>|-channel|-tensor` `-token|-tensor|-ag<size>` `-sym|-asym` `-static` `-ragged`.
            With 16- or 32-bit activations (weight-only) the weight has a packed zero point unless `-sym`; with integer
            activations it is symmetric unless `-asym`. Scales are float16 in groups and for weight-only schemes, else
            float32. Without a size a weight
            has one scale a row and an activation one a token. Activations are dynamic unless `-static`.
            Any name takes `-kvfp8`, `-kve5m2`, `-kvint8` or `-kvint4` at its end.

    Raises:
        ValueError: unknown name; the message lists the nearest ones.
        TypeError: neither a name nor a scheme.
    """
    if isinstance(name, Scheme):
        return name
    if not isinstance(name, str):
        raise QsimTypeError(f"a scheme is a name or a Scheme: got {type(name).__name__}")
    key = name.strip().lower().replace("_", "-")
    found = _resolve(key)
    if found is None:
        near = difflib.get_close_matches(key, {*_LISTED, *_PRESETS, *_ALIASES}, n=3, cutoff=0.4)
        hint = f"the nearest are {', '.join(near)}" if near else "see qsim.scheme.list_schemes()"
        raise QsimError(f"unknown scheme {name!r}: {hint}; integer schemes are read by grammar, like w4a16-g128-sym")
    return dataclasses.replace(found, name=key)


def list_schemes() -> Iterator[Scheme]:
    """The named presets."""
    return (get_scheme(name) for name in _LISTED)
