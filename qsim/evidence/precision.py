"""In which numbers a model runs, coarse enough to compare sources: a scheme, or the words of a table, as one value."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from qsim.errors import QsimError, nearest
from qsim.formats import BlockFormat
from qsim.scheme import Scheme, get_scheme

_SIXTEEN = ("", "none", "fp16", "bf16", "float16", "bfloat16")
_GROUP = re.compile(r"g(\d+)")
GGUF = re.compile(r"i?q\d_\w+")
"""Types of GGUF files. A scheme `q4_k` is every weight in that type, which files call `q4_k_s`; `q4_k_m` is a mix."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """What is stored and multiplied.

    Attributes:
        weight: `none` (16 bit), `int4`, `fp8`, `mxfp4`, `nvfp4`, `nf4`, `q4_k_m`, ...
        region: what one scale of the weight covers: `tensor`, `channel`, `g128`, `block`; with a `+` where a part is
            kept in more bits or finer groups; empty for 16 bit.
        activation: `none`, `int8`, `fp8`, `mxfp4`, ...
        scaling: of the activation: `static`, `tensor`, `token`, `group`, `block`, `channel`; with ` asym` where it has
            a zero point, with a `+` where outliers stay in 16 bit; empty for 16 bit.
        kv: the KV cache: `none`, `fp8`, `int8`, `int4`, ...
    """

    weight: str = "none"
    region: str = ""
    activation: str = "none"
    scaling: str = ""
    kv: str = "none"

    @property
    def bits(self) -> float | None:
        """Bits of a weight's code; None where the name does not say."""
        found = re.search(r"(\d)", self.weight)
        if self.weight == "none":
            return 16
        return float(found[1]) if found else None

    @property
    def group(self) -> int | None:
        """Weights that share a scale, where that is a number."""
        found = _GROUP.match(self.region)
        return int(found[1]) if found else None

    def __str__(self) -> str:
        parts = [self.weight if self.weight != "none" else "16 bit", self.region]
        if self.activation != "none":
            parts.append(f"x {self.activation} {self.scaling}".rstrip())
        if self.kv != "none":
            parts.append(f"KV {self.kv}")
        return " ".join(p for p in parts if p)


def of_scheme(scheme: str | Scheme) -> Precision:
    """The precision of a scheme.

    Raises:
        QsimError: an unknown name.
    """
    found = get_scheme(scheme)
    weight, act, kv = found.weight, found.activation, found.kv_cache
    name = _number(weight.format, found.name) if weight.is_quantized else "none"
    kvs = _number(kv.format, "") if kv.is_quantized else "none"
    act_name = _number(act.format, "") if act.is_quantized else "none"
    scaling = ""
    if act.is_quantized:
        kind = act.granularity.kind if act.granularity else ""
        scaling = "block" if isinstance(act.format, BlockFormat) else "static" if not act.dynamic else str(kind)
    return Precision(weight=name, region=_region_of(weight, name) if name != "none" else "", activation=act_name,
                     scaling=scaling, kv=kvs)  # fmt: skip


def cache_word(text: str, known: Collection[str] = ()) -> str:
    """The word of a KV cache's numbers: `fp8` for `FP8`, `e4m3`, `kv8` and what schemes end in; `none` for 16 bit.

    Arguments:
        known: further words, as tables of evidence have them (`nuq3`).

    Raises:
        QsimError: neither.
    """
    word = re.sub(r"^fp8_(?=e[45]m)", "", text.strip().lower().removeprefix("kv"))
    if word in _SIXTEEN:
        return "none"
    if word in known:
        return word
    try:
        return of_scheme(f"bf16-kv{word}").kv
    except QsimError:
        raise QsimError(nearest("numbers of a KV cache", text, {"none", "fp8", "int8", "int4", *known})) from None


def _number(fmt: Any, scheme: str | None) -> str:
    """`int4` for int4 and uint4, `fp8` for E4M3; a scheme named after a GGUF type keeps that name."""
    word = (scheme or "").replace("-", "_")
    if GGUF.fullmatch(word):
        return f"{word}_s" if word in ("q2_k", "q3_k", "q4_k", "q5_k") else word
    name = str(fmt.name)
    if name.startswith("uint"):
        return name[1:]
    if name.startswith("float8"):
        return "fp8" if "e5m2" not in name else "fp8_e5m2"
    return name.removesuffix("_e4m3").removesuffix("_e2m3")


def _region_of(weight: Any, name: str) -> str:
    if GGUF.fullmatch(name) or isinstance(weight.format, BlockFormat):
        return "block"
    kind = weight.granularity.kind
    return f"g{weight.granularity.columns}" if kind == "group" else str(kind)


def of_words(weight: str, region: str, activation: str, scaling: str, kv: str) -> Precision:
    """The precision that the columns of a table of evidence say, in the field's words."""
    name = _word(weight)
    act = _word(activation)
    return Precision(
        weight=name, region="" if name == "none" else _region_word(region), activation=act,
        scaling="" if act == "none" else _scaling_word(scaling), kv=_word(kv.split(" ")[0]),
    )  # fmt: skip


def _word(text: str) -> str:
    word = text.strip().lower()
    if word in _SIXTEEN:
        return "none"
    word = word.removeprefix("gguf ").split(" ")[0]
    return {"fp8_e4m3": "fp8", "float8_e4m3fn": "fp8", "e4m3": "fp8"}.get(word, word)


def _region_word(text: str) -> str:
    word = text.strip().lower()
    more = "+" if "+" in word or "<" in word else ""
    if "128x128" in word or word.startswith(("block", "super-block", "k-quant")):
        return "block"
    found = re.match(r"g(?:\d+/)?(\d+)", word)
    if found:
        return f"g{found[1]}{more}"
    if word.startswith(("per-channel", "per-row", "channel")):
        return f"channel{more}"
    return "tensor" if word.startswith(("per-tensor", "tensor")) else "unstated"


def _scaling_word(text: str) -> str:
    word = text.strip().lower()
    tail = " asym" if "asym" in word else "+" if "outliers" in word else ""
    for key, name in (("block", "block"), ("group", "group"), ("static", "static"), ("per-token", "token"),
                      ("per-row", "token"), ("token", "token"), ("per-channel", "channel"), ("tensor", "tensor"),
                      ("g128", "group")):  # fmt: skip
        if key in word:
            return name + tail
    return "unstated"
