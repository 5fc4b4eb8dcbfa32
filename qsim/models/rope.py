"""Rotary position embeddings: the frequencies of each scaling, and tables of cosines and sines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from qsim.errors import QsimError
from qsim.fields import Fields

RopeType: TypeAlias = Literal["linear", "llama3", "yarn"]

FACTOR = 1e6
"""The largest stretching factor that is read; the largest published one is 128."""
_REQUIRED = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor"), "yarn": ("factor",)}


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context.

    Arguments:
        rope_type: `linear` (positions divided by `factor`), `llama3` (Llama 3.1: long wavelengths only) or `yarn`.
        factor: how many times the context grows.
        original_max_position_embeddings: trained context, in tokens; None is the config's context.
        low_freq_factor, high_freq_factor: of `llama3`.
        attention_factor, beta_fast, beta_slow, mscale, mscale_all_dim, truncate: of `yarn` (arXiv:2309.00071).
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

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "rope_scaling") -> RopeScaling | None:
        """From `rope_scaling` or `rope_parameters`; None when they ask for plain rotary embeddings.

        Arguments:
            data: the table.
            where: how messages name it.

        Raises:
            QsimError: a type that is not supported (`dynamic` and `longrope` change frequencies with the length of the
                text, so cached keys would no longer fit), a missing factor, or a value out of type or range.
        """
        f = Fields(data, where)
        kind: Any = f.text(("rope_type", "type"), "default")
        if kind == "default":
            return None
        if kind not in _REQUIRED:
            raise QsimError(f"{where}: rope type must be one of default, {', '.join(_REQUIRED)}: got {kind!r:.80}")
        missing = [key for key in _REQUIRED[kind] if key not in f]
        if missing:
            raise QsimError(f"{where}: rope type {kind!r} needs {missing[0]!r}: got {sorted(data)}")
        if kind == "linear":
            return cls(rope_type=kind, factor=f.number("factor", 1.0, FACTOR))
        trained = f.integer("original_max_position_embeddings", 1, 1 << 40, None)
        factor = f.number("factor", 1.0, FACTOR)
        if kind == "llama3":
            low, high = (f.number(key, 1e-6, 1e6) for key in ("low_freq_factor", "high_freq_factor"))
            if not low < high:
                raise f.refuse("low_freq_factor", f"must be less than high_freq_factor = {high:g}")
            return cls(rope_type=kind, factor=factor, original_max_position_embeddings=trained, low_freq_factor=low,
                       high_freq_factor=high)  # fmt: skip
        positive = {key: f.number(key, 1e-6, 1e6, None) for key in ("attention_factor", "beta_fast", "beta_slow")}
        scales = {key: f.number(key, 0.0, 1e6, None) for key in ("mscale", "mscale_all_dim")}
        return cls(rope_type=kind, factor=factor, original_max_position_embeddings=trained,
                   truncate=f.flag("truncate", None), **positive, **scales)  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """As Hugging Face writes it."""
        return {k: v for k, v in asdict(self).items() if v is not None}


def frequencies(
    theta: float, head_dim: int, scaling: RopeScaling | None, max_positions: int
) -> tuple[np.ndarray, float]:
    """Inverse frequencies (head_dim/2,) float32, and the factor on cosines and sines.

    Arguments:
        theta: base.
        max_positions: the config's context, for scalings that do not say what they were trained on.

    Source: arXiv:2104.09864; Llama 3.1's `apply_scaling`; YaRN, arXiv:2309.00071, section 3.2, as in transformers.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    inverse = (np.float32(1.0) / np.power(np.float32(theta), exponents)).astype(np.float32)
    if scaling is None:
        return inverse, 1.0
    if scaling.rope_type == "linear":
        return inverse / np.float32(scaling.factor), 1.0
    trained = scaling.original_max_position_embeddings or max_positions
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


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def tables(inverse: np.ndarray, factor: float, positions: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines (positions, head_dim/2) float32; angles are formed in float32, as transformers does."""
    angles = np.arange(positions, dtype=np.float32)[:, None] * inverse
    return (np.cos(angles) * np.float32(factor)).astype(np.float32), (np.sin(angles) * np.float32(factor)).astype(
        np.float32
    )
