"""How many tokens the experts of a GPU get: evenly, or by the power law that the measured tables draw them from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXPONENT, FULLEST, DRAWS = 1.2, 0.8, 24
"""Of the tables' `power_law_1.2`: the largest expert may get 0.8 of the tokens. Tables hold the mean of a few draws."""
FEW = (0.01, 2.0)
"""Ends of the power law where there are fewer pairs of a token and an expert than experts."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What the experts of one GPU get, in the mean; arrays broadcast.

    Attributes:
        pairs: of a token and one of its experts. active: experts with any. rows: of whole tiles, which a grouped
            product computes.
    """

    pairs: Any
    active: Any
    rows: Any


def balanced_load(tokens: Any, topk: Any, experts: Any, groups: Any, tile: float) -> Load:
    """Every expert gets the same; fewer pairs than experts go to an expert each. Arguments broadcast.

    Arguments:
        groups: of GPUs that share the experts, each with as many.
        tile: rows that a product computes together.
    """
    pairs = tokens * topk / groups
    active = np.minimum(experts / groups, np.maximum(pairs, 1.0))
    return Load(pairs=pairs, active=active, rows=active * np.ceil(pairs / active / tile - 1e-9) * tile)


def uniform_load(tokens: Any, topk: Any, experts: Any, groups: Any, tile: float) -> Load:
    """Every expert is as likely as the next: of few pairs some go to one expert, and fewer experts have any than with
    balanced routing. Arguments as in `balanced_load`."""
    pairs = tokens * topk / groups
    active = np.maximum(experts / groups * (1 - (1 - topk / experts) ** tokens), 1.0)
    return Load(pairs=pairs, active=active, rows=active * np.ceil(pairs / active / tile - 1e-9) * tile)


def skewed_load(tokens: int, topk: int, experts: int, groups: int, tile: float) -> Load:
    """The fullest of the groups, with loads of a power law.

    The tables' generator draws a weight for each expert between 1 and 0.8 times the tokens (0.01 and 2 where pairs are
    few), and measures the group with most pairs. Of few pairs, how many experts have any is their mean number with as
    many independent choices.
    """
    loads = _drawn(tokens, topk, experts, groups)
    few = tokens * topk <= experts
    has = 1 - np.exp(-loads) if few else np.minimum(np.round(loads), 1.0)
    rows = np.where(loads < 1, has, np.ceil(loads / tile)) * tile
    total = [float(part.sum(axis=1).mean()) for part in (loads, has, rows)]
    return Load(pairs=total[0], active=max(total[1], 1.0), rows=max(total[2], tile))


@lru_cache(maxsize=1024)
def _drawn(tokens: int, topk: int, experts: int, groups: int) -> NDArray[np.float64]:
    """(draws, experts / groups) tokens of the experts of the fullest group."""
    low, high = FEW if tokens * topk <= experts else (1.0, max(FULLEST * tokens, 1.001))
    steep = 1 - EXPONENT
    share = np.random.default_rng(0).random((DRAWS, experts))
    weight = ((high**steep - low**steep) * share + low**steep) ** (1 / steep)
    loads = weight / weight.sum(axis=1, keepdims=True) * (tokens * topk)
    for _ in range(4):  # no expert gets a token twice: what is above goes to the others
        above = np.maximum(loads - tokens, 0).sum(axis=1, keepdims=True)
        loads = np.minimum(loads, tokens)
        room = np.where(loads < tokens, loads, 0.0)
        loads = loads + room * above / np.maximum(room.sum(axis=1, keepdims=True), 1e-9)
    parts = loads.reshape(DRAWS, groups, -1)
    return np.asarray(parts[np.arange(DRAWS), parts.sum(axis=2).argmax(axis=1)])
