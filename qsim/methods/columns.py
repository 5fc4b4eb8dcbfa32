"""In what order GPTQ processes the columns of a layer, and when it finds the scale of each group."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from qsim.errors import QsimError
from qsim.scheme.tensor_scheme import TensorScheme

ActOrder: TypeAlias = bool | Literal["group_aware"]


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Positions [start, stop) whose scale is found when `start` is reached; `group` is its index in the result."""

    start: int
    stop: int
    group: int


@dataclass(frozen=True, kw_only=True, eq=False)
class ColumnPlan:
    """The order of columns, and which of them share a scale.

    Arguments:
        order: (K,) intp, the original column of each position.
        group_of: (K,) intp, the group of each position.
        segments: groups whose scale is found on the way; empty when all are found beforehand.
        group_index: (K,) int32, the group of each original column (`g_idx`) when it is not column // group_size.
    """

    order: np.ndarray
    group_of: np.ndarray
    segments: tuple[Segment, ...] = ()
    group_index: np.ndarray | None = None

    def lazy_columns(self, block_size: int, wanted: int) -> int:
        """How many columns' errors may be held back from the rest of the matrix: a multiple of `block_size`.

        A group that starts inside such a span reads weights up to its own end, which must be up to date; if one
        would reach over the end of the span, the span is one block, as in the paper.
        """
        span = block_size * max(wanted // block_size, 1)
        fits = all(s.start % span == 0 or s.start // span == (s.stop - 1) // span for s in self.segments)
        return span if fits else block_size


def plan_columns(diagonal: np.ndarray, how: TensorScheme, act_order: ActOrder, static_groups: bool) -> ColumnPlan:
    """The plan of a layer.

    Arguments:
        diagonal: (K,) of the Hessian.
        how: the weight's scheme.
        act_order: True: by descending diagonal. `"group_aware"`: that inside groups, then groups by their largest.
        static_groups: scales are found beforehand. So they are without groups, whatever this says.
    """
    if act_order not in (True, False, "group_aware"):
        raise QsimError(f"act_order is True, False or 'group_aware': got {act_order!r}")
    granularity, k = how.granularity, diagonal.size
    assert granularity is not None
    positions, size = np.arange(k), granularity.columns or k
    order = positions
    if act_order == "group_aware":
        groups = [positions[a : a + size] for a in range(0, k, size)]
        groups = [g[np.argsort(-diagonal[g], kind="stable")] for g in groups]
        peaks = np.array([diagonal[g[0]] for g in groups])
        order = np.concatenate([groups[i] for i in np.argsort(-peaks, kind="stable")])
    elif act_order:
        order = np.argsort(-diagonal, kind="stable")  # torch.argsort is not stable; ties may differ from the original
    own_group = order // size
    if granularity.kind != "group" or static_groups:
        return ColumnPlan(order=order, group_of=own_group)
    if act_order != "group_aware":  # a group is whatever `size` columns come next
        segments = tuple(Segment(start=a, stop=min(a + size, k), group=a // size) for a in range(0, k, size))
        index = None
        if act_order:
            index = np.empty(k, np.int32)
            index[order] = positions // size
        return ColumnPlan(order=order, group_of=positions // size, segments=segments, group_index=index)
    starts = [0, *(np.flatnonzero(np.diff(own_group)) + 1).tolist(), k]
    return ColumnPlan(
        order=order,
        group_of=own_group,
        segments=tuple(Segment(start=a, stop=b, group=int(own_group[a])) for a, b in itertools.pairwise(starts)),
    )
