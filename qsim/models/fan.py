"""Linears that read the same input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from .linear import Linear

Rounding: TypeAlias = Callable[[np.ndarray], np.ndarray]


def keep(x: np.ndarray) -> np.ndarray:
    """The rounding of float32 hidden states: none."""
    return x


@dataclass(frozen=True, kw_only=True, eq=False)
class Fan:
    """Linears of one input, computed side by side by one stacked Linear where that gives the same."""

    parts: tuple[Linear, ...]
    stacked: Linear | None
    round: Rounding

    def __call__(self, x: np.ndarray, observe: Any) -> np.ndarray:
        """Their outputs side by side, (M, sum of N)."""
        if observe is not None:
            for one in self.parts:
                observe(one.name, one.transformed(x))
        if self.stacked is not None:
            return self.round(self.stacked.rows(x))
        return self.round(np.concatenate([one.rows(x) for one in self.parts], axis=1))
