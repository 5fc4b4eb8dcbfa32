"""Schemes by name: this project's own names, the presets of compressed-tensors, and the grammar of integer schemes."""

from __future__ import annotations

import dataclasses
import re
from functools import lru_cache
from types import MappingProxyType

from qsim.errors import QsimError, QsimTypeError, nearest
from qsim.formats import get_format
from qsim.tables import Table

from .granularity import Granularity
from .scheme import Scheme
from .tensor_scheme import TensorScheme

_BF16 = "bfloat16"
_E4M3 = "float8_e4m3fn"


def _part(fmt: str, granularity: str | None = None, **more: object) -> TensorScheme:
    return TensorScheme(
        format=get_format(fmt),
        granularity=None if granularity is None else Granularity.parse(granularity),
        **more,  # type: ignore[arg-type]
    )


def _fp8(weight: str, activation: str, *, dynamic: bool = True) -> Scheme:
    return Scheme(
        weight=_part(_E4M3, weight, ragged=weight.startswith("block")),
        activation=_part(_E4M3, activation, dynamic=dynamic, ragged=activation.startswith("group")),
    )


def _block(fmt: str, activation: str) -> Scheme:
    return Scheme(weight=_part(fmt), activation=_part(activation, dynamic=True))


_OWN: dict[str, Scheme] = {
    "bf16": Scheme(weight=_part(_BF16)),
    "fp16": Scheme(weight=_part("float16"), activation=_part("float16"), kv_cache=_part("float16")),
    "fp32": Scheme(weight=_part("float32"), activation=_part("float32"), kv_cache=_part("float32")),
    "fp8-tensor": _fp8("tensor", "tensor"),
    "fp8-static": _fp8("tensor", "tensor", dynamic=False),
    "fp8-rowwise": _fp8("channel", "token"),
    "fp8-block128": _fp8("block(128,128)", "group(128)"),
    "fp8-weight-only": Scheme(weight=_part(_E4M3, "channel")),
    "mxfp8": _block("mxfp8_e4m3", "mxfp8_e4m3"),
    "mxfp6": _block("mxfp6_e2m3", "mxfp6_e2m3"),
    "mxfp4": _block("mxfp4", "mxfp4"),
    "nvfp4": _block("nvfp4", "nvfp4"),
    "mxfp8-weight-only": Scheme(weight=_part("mxfp8_e4m3")),
    "mxfp6-weight-only": Scheme(weight=_part("mxfp6_e2m3")),
    "mxfp4-weight-only": Scheme(weight=_part("mxfp4")),
    "nvfp4-weight-only": Scheme(weight=_part("nvfp4")),
    "mxfp6a8": _block("mxfp6_e2m3", "mxfp8_e4m3"),
    "mxfp4-fp8": Scheme(weight=_part("mxfp4"), activation=_part(_E4M3, "token", dynamic=True)),
    "mxfp4xfp8": Scheme(weight=_part("mxfp4"), activation=_part(_E4M3, "group(128)", dynamic=True, ragged=True)),
    "nf4-g64": Scheme(weight=_part("nf4", "group(64)")),
}


def _k_quant(bits: int, group: int, scale: str, *, minimum: bool) -> Scheme:
    """A K-quant of GGUF: superblocks of 256."""
    fmt = f"{'uint' if minimum else 'int'}{bits}"
    more = {"symmetric": False, "minimum_format": get_format(scale)} if minimum else {}
    return Scheme(weight=_part(fmt, f"group({group})", scale_format=get_format(scale), superblock=256, **more))


def _with_minimum(bits: int) -> Scheme:
    half = get_format("float16")
    return Scheme(weight=_part(f"uint{bits}", "group(32)", scale_format=half, symmetric=False, minimum_format=half))


_GGUF: dict[str, Scheme] = {
    "q4_1": _with_minimum(4),
    "q5_1": _with_minimum(5),
    "q2_k": _k_quant(2, 16, "uint4", minimum=True),
    "q3_k": _k_quant(3, 16, "int6", minimum=False),
    "q4_k": _k_quant(4, 32, "uint6", minimum=True),
    "q5_k": _k_quant(5, 32, "uint6", minimum=True),
    "q6_k": _k_quant(6, 16, "int8", minimum=False),
}
_OWN |= {name.replace("_", "-"): scheme for name, scheme in _GGUF.items()}
_TEMPLATE = ("w2a4", "w2a8", "w2a16", "w3a4", "w3a8", "w3a16", "w4a4", "w4a8", "w4a16", "w5a8", "w5a16", "w6a8",
             "w6a16", "w7a8", "w7a16", "w8a16")  # fmt: skip
FIELD = MappingProxyType(
    {
        "UNQUANTIZED": "bf16", "W8A8": "w8a8-channel-token", "INT8": "w8a8-channel-token",
        "W4A16_ASYM": "w4a16-g128-asym", "W4AFP8": "w4afp8-g128-token", "FP8": "fp8-static",
        "FP8_DYNAMIC": "fp8-rowwise", "FP8_BLOCK": "fp8-block128", "NVFP4": "nvfp4", "NVFP4A16": "nvfp4-weight-only",
        "MXFP4": "mxfp4", "MXFP4A16": "mxfp4-weight-only", "MXFP4XFP8": "mxfp4xfp8", "MXFP6A8": "mxfp6a8",
        "MXFP6A16": "mxfp6-weight-only", "MXFP8": "mxfp8", "MXFP8A16": "mxfp8-weight-only",
    }
    | {name.upper(): f"{name}-g128{'' if name.endswith('a16') else '-token'}-sym" for name in _TEMPLATE}
)  # fmt: skip
"""Preset of compressed-tensors (`preset_name_to_scheme`) -> this project's name that spells the same scheme out."""

_SYMMETRIC = {"q4_0": "w4a16-g32-sym", "q5_0": "w5a16-g32-sym", "q8_0": "w8a16-g32-sym"}
"""Types of GGUF that the grammar can spell."""
_ALIASES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"} | {
    name.lower().replace("_", "-"): own for name, own in (*FIELD.items(), *_SYMMETRIC.items())
}
_SPELT = {name.replace("_", "-"): name for name in (*_GGUF, *_SYMMETRIC)}
_LISTED = ("bf16", "fp16", "w4a16-g128", "w4a16-g128-sym", "w3a16-g128", "w3a16-g128-sym", "w8a16-channel",
           "w8a8-tensor", "w8a8-channel-token", "w4a8-g128", "w4afp8-g128-token", "fp8-tensor", "fp8-static",
           "fp8-rowwise", "fp8-block128", "fp8-weight-only", "fp8-tensor-kvfp8", "mxfp8", "mxfp6", "mxfp4", "nvfp4",
           "mxfp6a8", "mxfp4xfp8", "mxfp4-fp8", "mxfp8-weight-only", "mxfp6-weight-only", "mxfp4-weight-only",
           "nvfp4-weight-only", "nf4-g64", "q8_0", "q6_k", "q5_k", "q4_k", "q4_0", "q3_k", "q2_k")  # fmt: skip

_KV = {"8": _E4M3, "fp8": _E4M3, "e4m3": _E4M3, "e5m2": "float8_e5m2", "int8": "int8", "int4": "int4"}
_KV_SUFFIX = re.compile(r"(?P<base>.+)-kv(?P<kind>[a-z0-9]*)")
_GRAMMAR = re.compile(
    r"w(?P<w>[2-8])a(?P<a>[2-8]|16|32|fp8)"
    r"(?:-(?P<wg>tensor|channel|g\d+))?"
    r"(?:-(?P<ag>tensor|token|ag\d+))?"
    r"(?:-(?P<sym>sym|asym))?"
    r"(?P<static>-static)?"
    r"(?P<ragged>-ragged)?"
)

# what people type for a scheme and what it is: a method, or a format of one number
_METHOD = "a method, not a scheme"
_FORMAT = "a number format, not a scheme"
_NOT_SCHEMES: dict[str, tuple[str, tuple[str, ...]]] = {
    "awq": (_METHOD, ("w4a16-g128",)),
    "gptq": (_METHOD, ("w4a16-g128-sym", "w4a16-g128")),
    "rtn": (_METHOD, ("w4a16-g128",)),
    "hqq": (_METHOD, ("w4a16-g64",)),
    "smoothquant": (_METHOD, ("w8a8-channel-token",)),
    "bitsandbytes": (_METHOD, ("nf4-g64",)),
    "int2": (_FORMAT, ("w2a16-g64",)),
    "int3": (_FORMAT, ("w3a16-g128", "w3a16-g128-sym")),
    "int4": (_FORMAT, ("w4a16-g128", "w4a16-g128-sym", "w4a8-g128")),
    "nf4": (_FORMAT, ("nf4-g64",)),
    "fp4": (_FORMAT, ("nvfp4", "mxfp4", "nvfp4-weight-only", "mxfp4-weight-only")),
    "fp6": (_FORMAT, ("mxfp6", "mxfp6-weight-only")),
    "e4m3": (_FORMAT, ("fp8-rowwise", "fp8-tensor", "fp8-static", "fp8-block128")),
    "e5m2": (_FORMAT, ("bf16-kve5m2", "fp8-rowwise")),
}
_NOT_SCHEMES |= {
    "uint4": _NOT_SCHEMES["int4"], "uint3": _NOT_SCHEMES["int3"], "uint8": (_FORMAT, ("w8a16-channel",)),
    "float8-e4m3fn": _NOT_SCHEMES["e4m3"], "float8-e5m2": _NOT_SCHEMES["e5m2"],
    "float4-e2m1fn": _NOT_SCHEMES["fp4"], "e2m1": _NOT_SCHEMES["fp4"], "e2m3": _NOT_SCHEMES["fp6"],
}  # fmt: skip


def _parse(name: str) -> Scheme | None:
    match = _GRAMMAR.fullmatch(name)
    if match is None:
        return None
    w_bits, a_bits = int(match["w"]), 8 if match["a"] == "fp8" else int(match["a"])
    weight_only = a_bits >= 16
    if weight_only and (match["ag"] or match["static"]):
        raise QsimError(f"{name}: {match['ag'] or 'static'} belongs to a quantised activation: a{a_bits} has no scale")
    where = match["wg"]
    if where is None:  # the field's names, which leave the granularity out, and those with a suffix after them
        bare = f"w{match['w']}a{match['a']}"
        if bare not in _ALIASES:
            raise QsimError(
                f"{name} says no granularity of the weight, and compressed-tensors has no preset {bare.upper()} that "
                f"would: use {bare}-g128-sym or {bare}-channel-sym"
            )
        where = "channel" if bare == "w8a8" else "g128"
    symmetric = match["sym"] == "sym" if match["sym"] else match["wg"] is None or not weight_only
    if where.startswith("g"):
        where = f"group({where[1:]})"
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
    activation = _part(
        _E4M3 if match["a"] == "fp8" else f"int{a_bits}",
        region,
        dynamic=not match["static"],
        ragged=bool(match["ragged"]),
    )
    return Scheme(weight=weight, activation=activation)


def _kv_cache(kind: str, name: str) -> TensorScheme:
    if kind not in _KV:
        known = ", ".join(f"-kv{k}" for k in _KV)
        raise QsimError(f"unknown KV cache {f'-kv{kind}'!r} in scheme {name!r}: use {known} (-kv8 is -kvfp8)")
    fmt = _KV[kind]
    # stored per-tensor scales for FP8, as loaders keep k_scale and v_scale; integers need a scale for each token
    if fmt.startswith("float8"):
        return _part(fmt, "tensor")
    return _part(fmt, "token", scale_format=get_format("float16"), dynamic=True)


@lru_cache(maxsize=512)
def _resolve(key: str) -> Scheme | None:
    suffix = _KV_SUFFIX.fullmatch(key)
    if suffix is not None:
        base = _resolve(suffix["base"])
        # `-kv` alone is the FP8 cache of checkpoint names such as Llama-3.1-8B-Instruct-FP8-KV
        return None if base is None else base.replace(kv_cache=_kv_cache(suffix["kind"] or "fp8", key))
    own = _ALIASES.get(key, key)
    return _OWN.get(own) or _parse(own)


def get_scheme(name: str | Scheme) -> Scheme:
    """The scheme of that name, or the value itself. Case does not matter, and `_` is `-`.

    Arguments:
        name: a name of `list_schemes()`; a preset of compressed-tensors (`FIELD`: W4A16, FP8_DYNAMIC, NVFP4, ...), with
            the meaning it has there; a type of GGUF (q4_k, q6_k, q8_0, ...: weights alone); or integers by grammar, in
            this order:
            `w<bits>a<bits>` `-g<size>|-channel|-tensor` `-token|-tensor|-ag<size>` `-sym|-asym` `-static` `-ragged`,
            where `afp8` stands for E4M3 activations.

            With a granularity given, a weight beside 16- or 32-bit activations has a packed zero point unless `-sym`,
            and beside quantised activations it is symmetric unless `-asym`. Without a granularity the name is the
            field's: groups of 128 and symmetric (`w4a16`, `w8a16`, `w4a8`, ...), for `w8a8` one scale per row; other
            pairs of bits must give one. Scales are float16 in groups and for weight-only schemes, else float32.
            Activations have one scale per token unless told otherwise, found from each tensor unless `-static`.

            Any name takes the format of the KV cache at its end: `-kvfp8` (or `-kv8`, `-kve4m3`, `-kv`), `-kve5m2`,
            `-kvint8`, `-kvint4`.

    Raises:
        QsimError: unknown name; the message lists the nearest ones, or says what a method or a number format is usually
            used with.
        QsimTypeError: neither a name nor a scheme.

    Source of the presets: compressed-tensors, `quantization/quant_scheme.py`, 0.20.1.
    """
    if isinstance(name, Scheme):
        return name
    if not isinstance(name, str):
        raise QsimTypeError(f"a scheme must be a name or a Scheme: got {type(name).__name__}")
    key = name.strip().lower().replace("_", "-")
    found = _resolve(key)
    if found is None:
        raise QsimError(_unknown(name, key))
    return dataclasses.replace(found, name=_spelt(key))


def _spelt(key: str) -> str:
    """The key as the field writes it: types of GGUF have an underscore."""
    base, dash, cache = key.partition("-kv")
    return _SPELT.get(base, base) + dash + cache


def _unknown(name: str, key: str) -> str:
    suffix = _KV_SUFFIX.fullmatch(key)
    base = key if suffix is None else suffix["base"]
    if base in _NOT_SCHEMES:
        what, instead = _NOT_SCHEMES[base]
        also = "" if len(instead) == 1 else f"{', '.join(instead[:-1])} or "
        return f"{name.strip()!r} is {what}: use the scheme {also}{instead[-1]}; `qsim schemes` lists all"
    known = nearest("scheme", name, (*_LISTED, *_OWN, *(n.lower().replace("_", "-") for n in FIELD)))
    return f"{known}; `qsim schemes` lists all, and integer schemes are read by grammar, like w4a16-g128-sym"


def preset_names(scheme: str | Scheme) -> tuple[str, ...]:
    """The presets of compressed-tensors that mean this scheme, apart from the KV cache: `("W4A16",)`, or none."""
    given = get_scheme(scheme)
    return tuple(
        preset for preset in FIELD
        if (found := get_scheme(preset)).weight == given.weight and found.activation == given.activation
    )  # fmt: skip


def list_schemes() -> Table[Scheme]:
    """The named schemes, as a table of one row for each; iterating gives the schemes.

    More can be named: other bits and group sizes by grammar, other KV caches by suffix, see `get_scheme`.
    """
    from .describe import scheme_row

    schemes = tuple(get_scheme(name) for name in _LISTED)
    rows = [scheme_row(scheme) for scheme in schemes]
    return Table(
        columns=tuple(name.replace("_", " ") for name in rows[0]),
        rows=tuple(tuple(row.values()) for row in rows),
        values=schemes,
    )
