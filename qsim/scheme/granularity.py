"""Which elements of a tensor share one scale."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from qsim.errors import QsimError

Kind: TypeAlias = Literal["tensor", "channel", "token", "group", "block"]
Count: TypeAlias = Any
"""A Python int, or a NumPy integer array when a shape holds arrays (a sweep over many shapes at once)."""

_TEXT = re.compile(r"(tensor|channel|token)|group\((\d+)\)|block\((\d+),\s*(\d+)\)")


def ceil_div(a: Count, b: int) -> Count:
    """ceil(a / b) for integers and integer arrays."""
    return -(-a // b)


def product(sizes: tuple[Count, ...]) -> Count:
    """Product of the sizes; 1 for no sizes."""
    total: Count = 1
    for size in sizes:
        total = total * size
    return total


@dataclass(frozen=True, kw_only=True)
class Granularity:
    """The region that one scale covers.

    * `tensor`: everything.
    * `channel`: one row of a weight (N, K), that is one output feature.
    * `token`: one row of an activation (..., K). The same region as `channel`; the word says whose row.
    * `group`: `columns` consecutive elements of a row.
    * `block`: `rows` x `columns` elements of the last two axes.

    Written and read as `tensor`, `channel`, `token`, `group(128)`, `block(128,128)`.

    Raises:
        ValueError: sizes that are missing, not positive, or do not belong to the kind.
    """

    kind: Kind
    columns: int | None = None
    rows: int | None = None

    def __post_init__(self) -> None:
        needs = {"group": (True, False), "block": (True, True)}.get(self.kind, (False, False))
        if self.kind not in ("tensor", "channel", "token", "group", "block"):
            raise QsimError(f"granularity must be tensor, channel, token, group(g) or block(r,c): got {self.kind!r}")
        if (self.columns is not None, self.rows is not None) != needs:
            sizes = "columns and rows" if needs[1] else "columns" if needs[0] else "no size"
            raise QsimError(f"granularity {self.kind} takes {sizes}: got columns={self.columns}, rows={self.rows}")
        for name, size in (("columns", self.columns), ("rows", self.rows)):
            if size is not None and size < 1:
                raise QsimError(f"granularity {self.kind}: {name} must be at least 1: got {size}")

    @classmethod
    def parse(cls, text: str | Granularity) -> Granularity:
        """The granularity of a text such as `group(128)`; a value is returned as it is."""
        if isinstance(text, Granularity):
            return text
        match = _TEXT.fullmatch(text.strip().lower()) if isinstance(text, str) else None
        if match is None:
            raise QsimError(f"granularity must be tensor, channel, token, group(g) or block(r,c): got {text!r}")
        if match[1]:
            return cls(kind=match[1])  # type: ignore[arg-type]
        if match[2]:
            return cls(kind="group", columns=int(match[2]))
        return cls(kind="block", rows=int(match[3]), columns=int(match[4]))

    def __str__(self) -> str:
        if self.kind == "group":
            return f"group({self.columns})"
        if self.kind == "block":
            return f"block({self.rows},{self.columns})"
        return self.kind

    def check(self, shape: tuple[Count, ...], *, ragged: bool, name: str = "") -> None:
        """Refuse a shape that this granularity does not divide.

        Arguments:
            shape: sizes of the tensor; arrays are checked element by element.
            ragged: whether a shorter last group (and block) is allowed.
            name: the layer, for the message.

        Raises:
            ValueError: too few axes, or a size that does not divide and `ragged` is False.
        """
        where = f" (layer {name})" if name else ""
        if len(shape) < (2 if self.kind == "block" else 1):
            raise QsimError(f"granularity {self} needs {2 if self.kind == 'block' else 1} axes: got {shape}{where}")
        if ragged:
            return
        for what, size, axis in (("group_size", self.columns, -1), ("block rows", self.rows, -2)):
            if size is None:
                continue
            extent = np.asarray(shape[axis])
            bad = extent[extent % size != 0]
            if bad.size:
                label = "K" if axis == -1 else "N"
                first = int(bad.reshape(-1)[0])
                fits = [g for g in (256, 128, 64, 32, 16, 8) if first % g == 0 and g != size][:2]
                use = f"use {' or '.join(map(str, fits))}, or " if fits else ""
                use += "allow a shorter last group: ragged=True, or a scheme such as w4a16-g128-ragged"
                raise QsimError(f"{what} must divide {label}: got {what}={size}, {label}={first}{where}; {use}")

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the array of scales: tensor (1,), rows (..., 1), groups (..., G), blocks (..., R, G)."""
        if self.kind == "tensor":
            return (1,)
        if self.kind in ("channel", "token"):
            return (*shape[:-1], 1)
        assert self.columns is not None
        if self.kind == "group":
            return (*shape[:-1], ceil_div(shape[-1], self.columns))
        assert self.rows is not None
        return (*shape[:-2], ceil_div(shape[-2], self.rows), ceil_div(shape[-1], self.columns))

    def scale_count(self, shape: tuple[Count, ...]) -> Count:
        """How many scales a tensor of this shape has."""
        return product(self.scale_shape(shape))

    @property
    def elements_per_scale(self) -> float:
        """Elements that share a scale in the limit of a large tensor; inf for tensor, channel and token."""
        if self.columns is None:
            return math.inf
        return self.columns * (self.rows or 1)
