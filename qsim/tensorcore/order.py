"""Which products of a GEMM are summed by which instruction, in which order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from qsim.arrays import as_plain_array
from qsim.errors import QsimError

from .model import Instruction


def instruction_chains(ins: Instruction, k_index: np.ndarray) -> Iterator[np.ndarray]:
    """The k of each chain that one instruction sequence runs: all of it, or one instruction at a time when emulated."""
    if ins.arithmetic != "emulated":
        yield _in_instruction_order(ins, k_index)
        return
    for start in range(0, len(k_index), ins.k):
        yield k_index[start : start + ins.k][np.array(ins.k_order)]


def _in_instruction_order(ins: Instruction, k_index: np.ndarray) -> np.ndarray:
    if not ins.k_order:
        return k_index
    return k_index.reshape(-1, ins.k)[:, list(ins.k_order)].reshape(-1)


def slices_of(k: int, split_k: int | Sequence[int], ins: Instruction) -> list[int]:
    """Lengths of the slices of K."""
    if not isinstance(split_k, int | np.integer):
        lengths = [int(v) for v in split_k]
        if sum(lengths) != k or min(lengths, default=0) < 0:
            raise QsimError(f"the lengths in split_k must add up to K={k}: got {lengths}")
        return lengths
    if split_k < 1:
        raise QsimError(f"split_k must be at least 1: got {split_k}")
    unit = 128 // ins.code_dtype_a.itemsize
    units = -(-k // unit)
    length = -(units // -int(split_k)) * unit
    return [min(length, k - start) for start in range(0, k, length)] if split_k > 1 and k else [k]


def orders_of(k: int, k_order: Any, lengths: list[int]) -> list[np.ndarray]:
    """The k of each slice in the order in which the kernel takes them."""
    order = np.arange(k)
    if k_order is not None:
        pattern = as_plain_array(k_order, "k_order")
        if (
            pattern.ndim != 1
            or not len(pattern)
            or k % len(pattern)
            or sorted(pattern.tolist()) != [*range(len(pattern))]
        ):
            raise QsimError(
                f"k_order must be a permutation of 0..n-1 with n dividing K={k}: got {pattern.tolist()[:8]}..."
                f" of length {pattern.size}"
            )
        order = (np.arange(0, k, len(pattern))[:, None] + pattern[None, :]).reshape(-1)
    edges = np.cumsum([0, *lengths])
    return [order[i:j] for i, j in itertools.pairwise(edges)]


def segments_of(ins: Instruction, order: np.ndarray, every: int | None) -> list[np.ndarray]:
    """Cut one slice into chains, each padded with -1 to whole instructions."""
    length = ins.k if ins.arithmetic == "emulated" else (every or max(len(order), 1))
    pieces = [order[i : i + length] for i in range(0, max(len(order), 1), length)]
    padded = [np.concatenate([p, np.full(-len(p) % unit_of(ins), -1, order.dtype)]) for p in pieces]
    if ins.arithmetic == "emulated":
        return [p[list(ins.k_order)] for p in padded]
    return [_in_instruction_order(ins, p) for p in padded]


def unit_of(ins: Instruction) -> int:
    """How many products a piece of K must hold a whole number of."""
    return ins.k if ins.k_order or ins.arithmetic == "emulated" else ins.products
