"""A method of a study: an algorithm with the scheme that it follows, and what tables call the two."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict

from qsim.errors import QsimError, nearest
from qsim.plots.names import scheme_title

NONE = "none"
"""The algorithm that leaves a model in 16 bit as it is; the others are `qsim.methods.METHODS`."""

STRICT = ConfigDict(extra="forbid")
_SCHEME_TITLES = {
    "bf16": "BF16", "fp16": "FP16", "fp8-tensor": "FP8 tensor", "fp8": "FP8 static",
    "fp8-static": "FP8 static", "fp8-rowwise": "FP8 row-wise",
    "fp8-block128": "FP8 block", "fp8-tensor-kvfp8": "FP8 + FP8 KV",
    "fp8-rowwise-kvfp8": "FP8 row-wise + FP8 KV", "mxfp4": "MXFP4", "nvfp4": "NVFP4", "mxfp8": "MXFP8",
    "mxfp6": "MXFP6", "w8a8-channel-token": "W8A8", "w4a16-g128": "W4", "w3a16-g128": "W3",
}  # fmt: skip


def _known(algorithm: str) -> str:
    from qsim.methods.registry import METHODS

    if algorithm != NONE and algorithm not in METHODS:
        raise QsimError(nearest("method", algorithm, (NONE, *METHODS)))
    return algorithm


def _label(algorithm: str) -> str:
    from qsim.methods.registry import get_method

    found = get_method(algorithm)
    return found.title if found.label is None else found.label


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to make a model small: an algorithm that finds the codes, and the scheme that they follow.

    Attributes:
        algorithm: `none` (16 bit as it is) or a name of `qsim.list_methods`.
        scheme: a name of `qsim.get_scheme`; the quality side obeys it, the speed side prices it.
        options: further arguments of the algorithm.
    """

    __pydantic_config__ = STRICT

    algorithm: Annotated[str, AfterValidator(_known)]
    scheme: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`gptq:w4a16-g128`, with options in brackets; the key of every table."""
        more = ",".join(f"{k}={v}" for k, v in sorted(self.options.items()))
        return f"{self.algorithm}:{self.scheme}" + (f"[{more}]" if more else "")

    @property
    def title(self) -> str:
        """What figures and tables call it: as engines serve it, where one does."""
        from qsim.evidence.served import served_title

        served = None if self.options else served_title(self.algorithm, self.scheme)
        if served is not None:
            return served
        scheme = _SCHEME_TITLES.get(self.scheme) or scheme_title(self.scheme)
        plain = self.algorithm == "rtn" and self.scheme in ("mxfp4", "nvfp4", "mxfp6", "mxfp8")  # nothing else is usual
        more = " ".join(k if v is True else f"{k}={v}" for k, v in sorted(self.options.items()))
        label = "" if plain or self.algorithm == NONE else _label(self.algorithm)
        return " ".join(part for part in (label, scheme, more) if part)


def parse_method(value: Any) -> Any:
    """`gptq:w4a16-g128` as the fields of a `Method`; a scheme alone is rounded to nearest (`none` for 16 bit).

    Raises:
        ValueError: an unknown algorithm or scheme, or the two do not go together.
    """
    if not isinstance(value, str):
        return value
    algorithm, colon, scheme = value.partition(":")
    if not colon:
        scheme, algorithm = value, default_algorithm(value)
    return {"algorithm": algorithm, "scheme": scheme}


def default_algorithm(scheme: str) -> str:
    """How a scheme is rounded when nobody says: `none` when it quantises nothing, `fp8` for FP8, else `rtn`."""
    from qsim.methods.registry import METHODS
    from qsim.scheme import get_scheme

    found = get_scheme(scheme)
    usual = [m for m in METHODS.values() if found.weight.is_quantized and m.usual(found)]
    return min(usual, key=lambda m: m.rank).name if usual else NONE


def methods_for(scheme: str) -> tuple[Method, ...]:
    """Every algorithm that applies to a scheme: what `--scheme NAME` studies."""
    from qsim.methods.registry import METHODS
    from qsim.scheme import get_scheme

    found, first = get_scheme(scheme), default_algorithm(scheme)
    others = [m.name for m in METHODS.values() if m.name != first and found.weight.is_quantized
              and m.refuses(found) is None and m.unusual(found) is None and m.suits(found)]  # fmt: skip
    return tuple(Method(algorithm=name, scheme=scheme) for name in (first, *others))
