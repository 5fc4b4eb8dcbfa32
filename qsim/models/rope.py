"""Rotary position embeddings: the frequencies of each scaling, and tables of cosines and sines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from qsim.errors import QsimError
from qsim.fields import Fields

RopeType: TypeAlias = Literal["linear", "llama3", "yarn", "longrope"]

_FIRST_TABLE = 512  # positions
FACTOR = 1e6
"""The largest stretching factor that is read; the largest published one is 128."""
_REQUIRED = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor"), "yarn": ("factor",),
             "longrope": ("short_factor", "long_factor")}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context.

    Arguments:
        rope_type: `linear` (positions divided by `factor`), `llama3` (Llama 3.1: long wavelengths only), `yarn`, or
            `longrope` (Phi-3: factors of each frequency, others for texts beyond the trained context).
        factor: how many times the context grows; of `longrope` 0 where the config's contexts say it.
        original_max_position_embeddings: trained context, in tokens; None is the config's context.
        low_freq_factor, high_freq_factor: of `llama3`.
        attention_factor, beta_fast, beta_slow, mscale, mscale_all_dim, truncate: of `yarn` (arXiv:2309.00071);
            `attention_factor` of `longrope` too.
        short_factor, long_factor: of `longrope` (arXiv:2402.13753), what each wavelength is multiplied by in texts up
            to the trained context, and in longer ones.
    """

    rope_type: RopeType
    factor: float
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], where: str = "rope_scaling", trained: int | None = None
    ) -> RopeScaling | None:
        """From `rope_scaling` or `rope_parameters`; None when they ask for plain rotary embeddings.

        Arguments:
            data: the table.
            where: how messages name it.
            trained: the config's `original_max_position_embeddings`, where the table has none.

        Raises:
            QsimError: a type that is not supported (`dynamic` changes frequencies with every token, so cached keys
                would no longer fit), a missing factor, or a value out of type or range.
        """
        f = Fields(data, where)
        kind: Any = f.text(("rope_type", "type"), "default")
        if kind == "su" or (kind == "yarn" and "short_factor" in f):  # Phi-3's older names of it
            kind = "longrope"
        if kind == "default":
            return None
        if kind not in _REQUIRED:
            raise QsimError(f"{where}: rope type must be one of default, {', '.join(_REQUIRED)}: got {kind!r:.80}")
        missing = [key for key in _REQUIRED[kind] if key not in f]
        if missing:
            raise QsimError(f"{where}: rope type {kind!r} needs {missing[0]!r}: got {sorted(data)}")
        if kind == "linear":
            return cls(rope_type=kind, factor=f.number("factor", 1.0, FACTOR))
        trained = f.integer("original_max_position_embeddings", 1, 1 << 40, trained)
        if kind == "longrope":
            return cls(rope_type=kind, factor=f.number("factor", 1.0, FACTOR, 0.0),
                       original_max_position_embeddings=trained,
                       attention_factor=f.number("attention_factor", 1e-6, 1e6, None),
                       short_factor=_factors(f, "short_factor"), long_factor=_factors(f, "long_factor"))  # fmt: skip
        factor = f.number("factor", 1.0, FACTOR)
        if kind == "llama3":
            low, high = (f.number(key, 1e-6, 1e6) for key in ("low_freq_factor", "high_freq_factor"))
            if not low < high:
                raise f.refuse("low_freq_factor", f"must be less than high_freq_factor = {high:g}")
            return cls(rope_type=kind, factor=factor, original_max_position_embeddings=trained, low_freq_factor=low,
                       high_freq_factor=high)  # fmt: skip
        positive: dict[str, Any] = {
            key: f.number(key, 1e-6, 1e6, None) for key in ("attention_factor", "beta_fast", "beta_slow")
        }
        scales: dict[str, Any] = {key: f.number(key, 0.0, 1e6, None) for key in ("mscale", "mscale_all_dim")}
        return cls(rope_type=kind, factor=factor, original_max_position_embeddings=trained,
                   truncate=f.flag("truncate", None), **positive, **scales)  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """As Hugging Face writes it."""
        out = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if v is not None}
        return {k: v for k, v in out.items() if k != "factor" or v}


def _factors(f: Fields, key: str) -> tuple[float, ...]:
    found = tuple(float(v) for v in f.items(key, (int, float), most=1 << 16))
    if any(not 1e-6 <= v <= FACTOR for v in found):  # NaN is none of these
        raise f.refuse(key, f"must hold numbers from 1e-06 to {FACTOR:g}")
    return found


def frequencies(
    theta: float, head_dim: int, scaling: RopeScaling | None, max_positions: int, *, long: bool = False
) -> tuple[np.ndarray, float]:
    """Inverse frequencies (head_dim/2,) float32, and the factor on cosines and sines.

    Arguments:
        theta: base.
        head_dim: columns of a head that are rotated.
        max_positions: the config's context, for scalings that do not say what they were trained on.
        long: those that `longrope` has for texts beyond the trained context.

    Raises:
        QsimError: factors that are not one for each frequency.

    Source: arXiv:2104.09864; Llama 3.1's `apply_scaling`; YaRN, arXiv:2309.00071, section 3.2, as in transformers.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    inverse = (np.float32(1.0) / np.power(np.float32(theta), exponents)).astype(np.float32)
    if scaling is None:
        return inverse, 1.0
    if scaling.rope_type == "linear":
        return inverse / np.float32(scaling.factor), 1.0
    trained = scaling.original_max_position_embeddings or max_positions
    if scaling.rope_type == "longrope":
        return _longrope(theta, exponents, scaling, max_positions / trained, trained, long)
    if scaling.rope_type == "llama3":
        return _llama3(inverse, scaling, trained), 1.0
    return _yarn(theta, head_dim, inverse, scaling, trained)


def _llama3(inverse: np.ndarray, scaling: RopeScaling, trained: int) -> np.ndarray:
    assert scaling.low_freq_factor is not None
    assert scaling.high_freq_factor is not None
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    wavelength = 2 * math.pi / inverse
    share = (trained / wavelength - low) / (high - low)
    between = (1 - share) * inverse / scaling.factor + share * inverse
    out = np.where(wavelength > trained / low, inverse / scaling.factor, inverse)
    return np.where((wavelength >= trained / high) & (wavelength <= trained / low), between, out).astype(np.float32)


def _yarn(
    theta: float, head_dim: int, inverse: np.ndarray, scaling: RopeScaling, trained: int
) -> tuple[np.ndarray, float]:
    def dimension(rotations: float) -> float:
        return head_dim * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast or 32), dimension(scaling.beta_slow or 1)
    if scaling.truncate in (None, True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    keep = 1 - np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    out = inverse / np.float32(scaling.factor) * (1 - keep) + inverse * keep
    attention = scaling.attention_factor
    if attention is None:
        if scaling.mscale and scaling.mscale_all_dim:
            attention = _mscale(scaling.factor, scaling.mscale) / _mscale(scaling.factor, scaling.mscale_all_dim)
        else:
            attention = _mscale(scaling.factor, 1.0)
    return out.astype(np.float32), float(attention)


def _longrope(
    theta: float, exponents: np.ndarray, scaling: RopeScaling, grown: float, trained: int, long: bool
) -> tuple[np.ndarray, float]:
    name = "long_factor" if long else "short_factor"
    factors = np.asarray(getattr(scaling, name), np.float32)
    if factors.shape != exponents.shape:
        raise QsimError(f"{name} must have one factor per rotated pair, {len(exponents)}: got {len(factors)}")
    factor, attention = scaling.factor or grown, scaling.attention_factor
    if attention is None:
        attention = 1.0 if factor <= 1 or trained == 1 else math.sqrt(1 + math.log(factor) / math.log(trained))
    inverse = np.float32(1.0) / (factors * np.power(np.float32(theta), exponents))
    return inverse.astype(np.float32), attention


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def tables(inverse: np.ndarray, factor: float, positions: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines (positions, head_dim/2) float32; angles are formed in float32, as transformers does."""
    angles = np.arange(positions, dtype=np.float32)[:, None] * inverse
    return (np.cos(angles) * np.float32(factor)).astype(np.float32), (np.sin(angles) * np.float32(factor)).astype(
        np.float32
    )


class Rope:
    """The rotary embedding of some layers, with tables that grow as texts do.

    Arguments:
        theta, head_dim, scaling, max_positions: as in `frequencies`.
    """

    def __init__(self, theta: float, head_dim: int, scaling: RopeScaling | None, max_positions: int) -> None:
        self._sets = [frequencies(theta, head_dim, scaling, max_positions)]
        self.switch: int | None = None
        """Texts of more positions have the second set of frequencies; None where there is one set."""
        if scaling is not None and scaling.rope_type == "longrope":
            self._sets.append(frequencies(theta, head_dim, scaling, max_positions, long=True))
            self.switch = scaling.original_max_position_embeddings or max_positions
        self._tables: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def is_long(self, positions: int) -> bool:
        """Whether a text of so many positions has the second set of frequencies."""
        return self.switch is not None and positions > self.switch

    def tables(self, positions: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and sines of at least so many positions, the length of the text."""
        which = int(self.is_long(positions))
        if which not in self._tables or self._tables[which][0].shape[0] < positions:
            size = max(_FIRST_TABLE, 1 << (positions - 1).bit_length())
            self._tables[which] = tables(*self._sets[which], size)
        return self._tables[which]
