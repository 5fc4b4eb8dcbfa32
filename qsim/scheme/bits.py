"""What is stored of codes, scales and zero points: bits of their formats, and streams of packed codes."""

from __future__ import annotations

from typing import Any

import numpy as np

from qsim.errors import QsimError


def bits_of(values: np.ndarray, fmt: Any, what: str, name: str = "") -> np.ndarray:
    """The bits of values in their format, which must be able to hold each of them. An unsigned dtype, same shape.

    Arguments:
        values: float32.
        fmt: a `FloatFormat`.
        what: what they are, in the singular, and
        name: the layer, for the message.

    Raises:
        QsimError: a value that the format does not have; its row is named.
    """
    values = np.ascontiguousarray(values, dtype=np.float32)
    if fmt.name == "float32":
        return values.view(np.uint32)
    if fmt.name == "float16":  # NumPy's own conversion: the codec would have to be compiled first
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if np.isfinite(half).all() and np.array_equal(half, values):
            return half.view(np.uint16)
    from qsim.formats import encode

    bits = np.asarray(encode(values, fmt))
    back = values_of(bits, fmt)
    other = (back != values) & ~(np.isnan(back) & np.isnan(values))
    if other.any():
        index = tuple(int(i[0]) for i in np.nonzero(other))
        row = f" in row {index[0]}" if index else ""
        raise QsimError(
            f"a {what} must be a value of its format: {values[index]!s}{row} is no {fmt.name} number"
            f"{f' (layer {name})' if name else ''}; round it, or give the scheme another format for it"
        )
    return bits


def values_of(bits: np.ndarray, fmt: Any) -> np.ndarray:
    """The inverse of `bits_of`, float32."""
    if fmt.name == "float32":
        return bits.view(np.float32)
    if fmt.name == "float16":  # as in `bits_of`
        return bits.view(np.float16).astype(np.float32)
    from qsim.formats import decode

    return np.asarray(decode(bits, fmt), dtype=np.float32)


def pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes as a dense bit stream, least significant bit first: code i at bits [i*bits, (i+1)*bits). uint8."""
    flat = np.ascontiguousarray(codes, dtype=np.uint8).reshape(-1, 1)
    if bits == 8:
        return flat.reshape(-1)
    return np.packbits(np.unpackbits(flat, axis=1, count=bits, bitorder="little").reshape(-1), bitorder="little")


def unpack_bits(stream: np.ndarray, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `pack_bits`. uint8 of that shape."""
    count = int(np.prod(shape, dtype=np.int64))
    if bits == 8:
        return stream.reshape(shape)
    flags = np.unpackbits(stream, count=count * bits, bitorder="little").reshape(count, bits)
    return np.packbits(flags, axis=1, bitorder="little").reshape(shape)


_KEPT = {"float32": np.float32, "float16": np.float16}  # dtypes that files have: their bits are kept as such numbers


def stored(bits: np.ndarray, fmt: Any) -> np.ndarray:
    """Bits as a file holds them."""
    return bits.view(_KEPT[fmt.name]) if fmt.name in _KEPT else bits


def codes_of(array: np.ndarray, fmt: Any) -> np.ndarray:
    """The bits that `stored` was given."""
    return array.view(fmt.code_dtype) if fmt.name in _KEPT else array


def restored(array: np.ndarray, fmt: Any) -> np.ndarray:
    """The values of what `stored` gave, float32."""
    return array.astype(np.float32) if fmt.name in _KEPT else values_of(array, fmt)
