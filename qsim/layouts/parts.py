"""What every codec needs: parts of a layer with clear errors when they do not fit, and notes on what was met."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qsim.errors import QsimError
from qsim.formats import FloatFormat, get_format
from qsim.safetensors import DTYPE_OF, FORMAT_OF, NUMPY_OF, Stored
from qsim.scheme import QuantizedTensor, Scheme, TensorScheme
from qsim.scheme.bits import values_of


@dataclass(kw_only=True)
class Notes:
    """Remarks that belong in the result, each once with the layers that it holds for."""

    layers: dict[str, list[str]] = field(default_factory=dict)

    def add(self, text: str, layer: str = "") -> None:
        """Remember a remark; `layer` is where it was met."""
        seen = self.layers.setdefault(text, [])
        if layer and layer not in seen:
            seen.append(layer)

    def lines(self) -> tuple[str, ...]:
        """One sentence a remark, with how many layers and the first of them."""
        out = []
        for text, layers in self.layers.items():
            where = f" ({layers[0]}{f' and {len(layers) - 1} more' if len(layers) > 1 else ''})" if layers else ""
            out.append(text + where)
        return tuple(out)


class Parts:
    """The stored tensors of one layer, by their last name.

    Arguments:
        name: the layer, without `.weight`.
        stored: `qweight` -> tensor, and so on.
    """

    def __init__(self, name: str, stored: Mapping[str, Stored]) -> None:
        self.name, self.stored = name, stored

    def __contains__(self, key: str) -> bool:
        return key in self.stored

    def get(self, key: str, dtypes: tuple[str, ...], ndim: int | None = None) -> Stored:
        """A tensor of one of these dtypes.

        Raises:
            QsimError: it is missing, is empty, or has another dtype or number of axes.
        """
        if key not in self.stored:
            raise QsimError(f"tensor {self.name}.{key} is missing; there are {', '.join(sorted(self.stored))}")
        found = self.stored[key]
        if found.dtype not in dtypes:
            raise QsimError(f"tensor {self.name}.{key} is {found.dtype}, expected {' or '.join(dtypes)}")
        if found.bits.size == 0:
            raise QsimError(f"tensor {self.name}.{key} has shape {found.shape}, which holds nothing")
        if ndim is not None and len(found.shape) != ndim:
            raise QsimError(f"tensor {self.name}.{key} has shape {found.shape}, expected {ndim} axes")
        return found

    def shaped(self, key: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> Stored:
        """As `get`, of exactly this shape."""
        found = self.get(key, dtypes)
        if found.shape != shape:
            raise QsimError(f"tensor {self.name}.{key} has shape {found.shape}, expected {shape}")
        return found

    def scales(self, key: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> tuple[np.ndarray, str]:
        """float32 scales of that shape and the format they are stored in; (N,) is taken for (N, 1) and () for (1,)."""
        codes, fmt = self.scale_codes(key, dtypes, shape)
        return values_of(codes, get_format(fmt)), fmt

    def scale_codes(self, key: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> tuple[np.ndarray, str]:
        """As `scales`, as the codes of their format that are stored."""
        found = self.get(key, dtypes)
        if found.dtype == "U8":  # MX scales are written as the integers that their codes are
            found = Stored(dtype="F8_E8M0", bits=found.bits)
        values = found.values()
        if values.shape != shape:
            loose = tuple(n for n in shape if n != 1)
            if tuple(n for n in values.shape if n != 1) != loose:
                raise QsimError(f"tensor {self.name}.{key} has shape {values.shape}, expected {shape}")
        bad = ~np.isfinite(values)
        if bad.any():
            raise QsimError(f"tensor {self.name}.{key} has {int(bad.sum())} scales that are NaN or Inf")
        fmt = get_format(FORMAT_OF[found.dtype])
        assert isinstance(fmt, FloatFormat), "dtypes of scales are floats"
        return found.bits.view(fmt.code_dtype).reshape(shape), fmt.name

    def scalar(self, *keys: str) -> float | None:
        """The one number of the first of these tensors that is there; None when none is."""
        for key in keys:
            if key in self.stored:
                values = self.get(key, ("F32", "BF16", "F16")).values()
                if values.size != 1:
                    raise QsimError(f"tensor {self.name}.{key} has shape {values.shape}, expected one number")
                return float(values.reshape(()))
        return None


def stored_scales(qt: QuantizedTensor, *, transposed: bool = False) -> Stored:
    """The scales of a weight as a file holds them, in their format: the codes as they are."""
    fmt = qt.tensor_scheme.scale_format
    assert isinstance(fmt, FloatFormat)
    dtype = DTYPE_OF[fmt.name]
    codes = np.ascontiguousarray(qt.scale_codes.T if transposed else qt.scale_codes)
    return Stored(dtype=dtype, bits=codes.view(NUMPY_OF[dtype]))


def no_own_rule(scheme: Scheme, who: str) -> str:
    """Why layouts of one scale per group refuse a weight with minima or superblocks."""
    return f"{who} has no place for minima or superblocks: got {scheme.weight.summary}; gguf holds them"


def with_scale_format(scheme: Scheme, fmt: str, *, ragged: bool | None = None, **changes: Any) -> Scheme:
    """The scheme with the scale format that a file was found to have."""
    weight = scheme.weight
    settings = {
        "format": weight.format, "granularity": weight.granularity, "symmetric": weight.symmetric,
        "scale_format": get_format(fmt), "zero_point_format": weight.zero_point_format,
        "ragged": weight.ragged if ragged is None else ragged, **changes,
    }  # fmt: skip
    return scheme.replace(weight=TensorScheme(**settings), compute=scheme.compute, name=scheme.name)


def unsigned_codes(qt: QuantizedTensor) -> np.ndarray:
    """Integer codes counted from the lowest: q + 2^(bits - 1) of signed ones. uint8."""
    return qt.codes ^ np.uint8(1 << (qt.element.bits - 1)) if qt.zeros is None else qt.codes


def signed_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """The inverse for symmetric schemes: two's complement of `bits` bits, in the same array."""
    return np.bitwise_xor(codes, np.uint8(1 << (bits - 1)), out=codes)


def as_int8(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes counted from the lowest as the signed integers that compressed-tensors stores, code - 2^(bits - 1)."""
    return (codes - np.uint8(1 << (bits - 1))).view(np.int8)


def from_int8(values: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of `as_int8`."""
    return values.view(np.uint8) + np.uint8(1 << (bits - 1))
