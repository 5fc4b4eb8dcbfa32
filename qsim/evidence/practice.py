"""What practitioners recommend: for a device and a use, the kinds of checkpoint that guides and papers name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from qsim.files import read_csv

from .precision import of_scheme


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One recommendation.

    Attributes:
        device: a name of `hwmodels.list_devices`.
        case: `chat` (one user), `serving` (32 users), `offline` (many), `long` (4 x 32k), `prompt` (a long prompt).
        families: kinds that it names: `int4` (weight-only), `fp8`, `int8` (with activations), `fp4` (NVFP4, MXFP4).
        says: in words; `source`: who says it.
    """

    device: str
    case: str
    families: tuple[str, ...]
    says: str
    source: str


@lru_cache(maxsize=1)
def practice() -> tuple[Advice, ...]:
    """Every shipped recommendation."""
    _, rows = read_csv(Path(__file__).parent / "practice.csv")
    return tuple(Advice(device=d, case=c, families=tuple(f.split()), says=s, source=by) for d, c, f, s, by in rows)


def family_of(scheme: str) -> str:
    """The kind of checkpoint that a scheme is, whatever its cache: `int4`, `fp8`, `int8`, `fp4`, `16 bit`, or the name
    of its weights' numbers."""
    p = of_scheme(scheme)
    if p.weight == "none":
        return "16 bit"
    if p.weight in ("nvfp4", "mxfp4"):
        return "fp4"
    if p.weight in ("fp8", "mxfp8"):
        return "fp8"
    return p.weight
