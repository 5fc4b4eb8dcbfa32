"""The tensor types of GGUF: the number of values in a block, its size in bytes, and what the values are.

A type is known by a number in the file. Those with a `decode` are read; the others exist and are refused by name.

Source: ggml's `ggml.h` (`enum ggml_type`), `ggml-common.h` (the structs of blocks), `ggml-quants.c`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from qsim.errors import QsimError, nearest

from . import decode, encode

PIECE = 1 << 18
"""Values that are decoded at a time: the steps stay in the cache."""


@dataclass(frozen=True, kw_only=True)
class TensorType:
    """One type.

    Arguments:
        name: as llama.cpp writes it, in lower case.
        number: in the file.
        values: of a block, along the last axis.
        size: bytes of a block.
        decode: from blocks (B, size) of uint8 to values (B, values) of float32; None when it is not read here.
        encode: the inverse, to the nearest that the type has; None when it is not written here.
        scheme: of `qsim.scheme`, whose codes and scales the type holds one to one; None when none is the same.
    """

    name: str
    number: int
    values: int
    size: int
    decode: Callable[[np.ndarray], np.ndarray] | None = None
    encode: Callable[[np.ndarray], np.ndarray] | None = None
    scheme: str | None = None

    @property
    def bits_per_weight(self) -> Fraction:
        """With the scales."""
        return Fraction(8 * self.size, self.values)

    def dequantize(self, raw: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Values of a run of blocks.

        Arguments:
            raw: uint8, whole blocks; any shape.
            out: float32 of as many values, to be filled; None makes one.

        Returns:
            float32 (values,), bit for bit as ggml computes them.

        Raises:
            QsimError: the type is not read here.
        """
        self.check_read()
        assert self.decode is not None, "it was checked"
        blocks = raw.reshape(-1, self.size)
        flat = np.empty(blocks.shape[0] * self.values, np.float32) if out is None else out.reshape(-1)
        step = max(PIECE // self.values, 1)
        for first in range(0, blocks.shape[0], step):
            some = np.ascontiguousarray(blocks[first : first + step])
            flat[first * self.values : (first + some.shape[0]) * self.values] = self.decode(some).reshape(-1)
        return flat

    def check_read(self) -> None:
        """Refuse a type that is not read here.

        Raises:
            QsimError: it is such a type.
        """
        if self.decode is None:
            raise QsimError(f"GGUF type {self.name} is not read: {', '.join(READ)} are")

    def quantize(self, values: np.ndarray) -> np.ndarray:
        """The blocks nearest to values.

        Arguments:
            values: float32, finite; the last axis is a multiple of `values`.

        Returns:
            uint8 (..., bytes of a row).

        Raises:
            QsimError: the type is not written here; a row that does not divide into blocks; values beyond what its
                scales reach.
        """
        if self.encode is None:
            raise QsimError(f"GGUF type {self.name} is not written: {', '.join(WRITTEN)} are")
        if values.shape[-1] % self.values:
            raise QsimError(f"GGUF type {self.name} needs rows of a multiple of {self.values}: got {values.shape[-1]}")
        blocks = np.ascontiguousarray(values, np.float32).reshape(-1, self.values)
        out = np.empty((blocks.shape[0], self.size), np.uint8)
        step = max(PIECE // self.values, 1)
        for first in range(0, blocks.shape[0], step):
            some = blocks[first : first + step]
            out[first : first + some.shape[0]] = self.encode(some)
        return out.reshape(*values.shape[:-1], -1)


def _type(name: str, number: int, values: int, size: int, scheme: str | None = None) -> TensorType:
    return TensorType(
        name=name,
        number=number,
        values=values,
        size=size,
        decode=getattr(decode, name, None),
        encode=getattr(encode, name, None),
        scheme=scheme,
    )


TYPES = {
    one.number: one
    for one in (
        _type("f32", 0, 1, 4),
        _type("f16", 1, 1, 2),
        _type("q4_0", 2, 32, 18, "w4a16-g32-sym"),
        _type("q4_1", 3, 32, 20, "q4_1"),
        _type("q5_0", 6, 32, 22, "w5a16-g32-sym"),
        _type("q5_1", 7, 32, 24, "q5_1"),
        _type("q8_0", 8, 32, 34, "w8a16-g32-sym"),
        _type("q8_1", 9, 32, 36),
        _type("q2_k", 10, 256, 84, "q2_k"),
        _type("q3_k", 11, 256, 110, "q3_k"),
        _type("q4_k", 12, 256, 144, "q4_k"),
        _type("q5_k", 13, 256, 176, "q5_k"),
        _type("q6_k", 14, 256, 210, "q6_k"),
        _type("q8_k", 15, 256, 292),
        _type("iq2_xxs", 16, 256, 66),
        _type("iq2_xs", 17, 256, 74),
        _type("iq3_xxs", 18, 256, 98),
        _type("iq1_s", 19, 256, 50),
        _type("iq4_nl", 20, 32, 18),
        _type("iq3_s", 21, 256, 110),
        _type("iq2_s", 22, 256, 82),
        _type("iq4_xs", 23, 256, 136),
        _type("i8", 24, 1, 1),
        _type("i16", 25, 1, 2),
        _type("i32", 26, 1, 4),
        _type("i64", 27, 1, 8),
        _type("f64", 28, 1, 8),
        _type("iq1_m", 29, 256, 56),
        _type("bf16", 30, 1, 2),
        _type("tq1_0", 34, 256, 54),
        _type("tq2_0", 35, 256, 66),
        _type("mxfp4", 39, 32, 17, "mxfp4-weight-only"),
        _type("nvfp4", 40, 64, 36),
    )
}
"""Every type by its number."""

READ = tuple(one.name for one in TYPES.values() if one.decode is not None)
WRITTEN = tuple(one.name for one in TYPES.values() if one.encode is not None)
_NAMED = {one.name: one for one in TYPES.values()}


def get_type(name: str) -> TensorType:
    """A type that is written, by its name in any case.

    Raises:
        QsimError: none has it, or it is read only.
    """
    found = _NAMED.get(str(name).lower())
    if found is None or found.encode is None:
        raise QsimError(nearest("GGUF type to write", str(name).lower(), WRITTEN))
    return found
