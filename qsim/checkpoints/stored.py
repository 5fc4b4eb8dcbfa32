"""Arrays as safetensors files hold them: a dtype name beside the bits, since NumPy lacks bfloat16 and FP8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qsim.errors import QsimError
from qsim.formats import FloatFormat

# safetensors name -> NumPy dtype of its bits; floats that NumPy lacks are kept as unsigned integers.
NUMPY_OF: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind)
    for name, kind in {
        "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1", "F8_E8M0": "u1",
        "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
        "BOOL": "?",
    }.items()
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0")
# formats that scales and unquantised tensors are stored in
DTYPE_OF = {
    "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip
FORMAT_OF = {dtype: name for name, dtype in DTYPE_OF.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored:
    """One tensor of a file.

    Arguments:
        dtype: safetensors name: `BF16`, `F8_E4M3`, `I32`, ...
        bits: the array; BF16 as uint16, FP8 as uint8, every other dtype as itself.

    Raises:
        ValueError: an unknown dtype, or an array of another one.
    """

    dtype: str
    bits: np.ndarray

    def __post_init__(self) -> None:
        if self.dtype not in NUMPY_OF:
            raise QsimError(f"safetensors dtypes are {', '.join(NUMPY_OF)}: got {self.dtype!r}")
        if self.bits.dtype != NUMPY_OF[self.dtype]:
            raise QsimError(f"{self.dtype} is kept as {NUMPY_OF[self.dtype]}: got {self.bits.dtype}")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bits.shape

    @property
    def nbytes(self) -> int:
        return self.bits.nbytes

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOATS

    def values(self) -> np.ndarray:
        """float32 values of a float dtype (float64 is rounded); integers as they are."""
        if self.dtype == "BF16":
            return (self.bits.astype(np.uint32) << 16).view(np.float32)
        if self.dtype.startswith("F8_"):
            from qsim.formats import decode

            return np.asarray(decode(self.bits, FORMAT_OF[self.dtype]), dtype=np.float32)
        return self.bits.astype(np.float32) if self.is_float else self.bits


def integers(array: np.ndarray, dtype: str) -> Stored:
    """An integer array as that dtype."""
    return Stored(dtype=dtype, bits=np.ascontiguousarray(array, dtype=NUMPY_OF[dtype]))


def words(array: np.ndarray) -> Stored:
    """uint32 words as the int32 that PyTorch stores them in."""
    return Stored(dtype="I32", bits=np.ascontiguousarray(array).view(np.int32))


def exactly(values: np.ndarray, fmt: str | FloatFormat) -> Stored | None:
    """float32 values in a format, or None when one of them would change.

    Arguments:
        values: float32.
        fmt: `float32`, `float16`, `bfloat16`, an FP8 format or E8M0.
    """
    name = fmt if isinstance(fmt, str) else fmt.name
    values = np.ascontiguousarray(values, dtype=np.float32)
    patterns = values.view(np.uint32)
    if name == "float32":
        return Stored(dtype="F32", bits=values)
    if name == "bfloat16":
        exact = not (patterns & np.uint32(0xFFFF)).any()
        return Stored(dtype="BF16", bits=(patterns >> 16).astype(np.uint16)) if exact else None
    if name == "float16":
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        exact = np.array_equal(half.astype(np.float32).view(np.uint32), patterns)
        return Stored(dtype="F16", bits=half) if exact else None
    from qsim.formats import decode, encode

    if not np.isfinite(values).all() or (name == "float8_e8m0fnu" and (values <= 0).any()):
        return None
    codes = np.asarray(encode(values, name))
    exact = np.array_equal(np.asarray(decode(codes, name), dtype=np.float32), values)
    return Stored(dtype=DTYPE_OF[name], bits=codes) if exact else None
