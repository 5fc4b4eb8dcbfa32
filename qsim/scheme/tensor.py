"""A quantised tensor: codes, scales, zero points, and the scheme they follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from qsim.errors import QsimError, QsimTypeError
from qsim.formats import BlockFormat, IntFormat

from . import superblock
from .bits import bits_of, values_of
from .granularity import Granularity
from .scheme import Scheme
from .tensor_scheme import TensorScheme

Part: TypeAlias = Literal["weight", "activation", "kv_cache"]
_OWN_RULE = ("minima", "super_scales", "super_minima")
ARRAYS = ("codes", "scale_codes", "zeros", *_OWN_RULE, "group_index")
"""The fields of a `QuantizedTensor` that can be arrays."""


def expand(values: np.ndarray, granularity: Granularity, shape: tuple[int, ...]) -> np.ndarray:
    """Values per region, made to broadcast against a tensor of `shape`."""
    if granularity.kind in ("tensor", "channel", "token"):
        return values
    assert granularity.columns is not None
    if granularity.kind == "block":
        assert granularity.rows is not None
        values = np.repeat(values, granularity.rows, axis=-2)[..., : shape[-2], :]
    return np.repeat(values, granularity.columns, axis=-1)[..., : shape[-1]]


@dataclass(frozen=True, kw_only=True, eq=False, init=False)
class QuantizedTensor:
    """Codes with the scales and zero points that give them a value: value = (code - zero) * scale.

    With minima, value = code * scale - minimum. Scales are kept as the bits of their format, from where they are found
    or read to the kernel or file that takes them; `scales` are their values.

    Arguments:
        codes: the tensor's shape, one code per element, as `qsim.formats` defines them (two's complement for signed
            integers), in the format's unsigned dtype.
        scales: float32, `scheme.<part>.granularity.scale_shape(shape)`; each is a value of the scale format. Where they
            are given, they go before `scale_codes`, so that `dataclasses.replace(q, scales=...)` changes them.
        scale_codes: the same as bits of the scale format, in its unsigned dtype; of superblocks, the integers (two's
            complement where they are signed) as uint8. One of the two must be given.
        zeros: shape of `scales`; uint8 for packed integers, float32 for float zero points; None when symmetric.
        minima: shape of `scales`, float32; None unless the scheme has them.
        super_scales, super_minima: (..., K/S) float32, the float16 number of each superblock of S; `scales` and
            `minima` are its products with integers, which float32 holds exactly. None without superblocks.
        scheme: the whole scheme.
        part: which part of the scheme this tensor follows.
        tensor_scale: NVFP4's scale over the whole tensor, used as float32; None otherwise. Checkpoints store its
            reciprocal, which a float keeps to the last bit.
        input_scale: the stored scale of the activation that meets this weight, for static schemes.
        group_index: (K,) int32, the group of each column when it is not `column // group_size` (GPTQ with act order and
            groups found on the way, `g_idx` on disk).
        name: the layer, for messages.

    `numpy.asarray(q)` and every NumPy function take it for its values, those of `dequantize`.

    Raises:
        ValueError: what is no NumPy array, masked elements, shapes or dtypes that do not fit the scheme, a scale that
            is NaN, Inf or no value of its format.
    """

    codes: np.ndarray
    scale_codes: np.ndarray
    scheme: Scheme
    zeros: np.ndarray | None = None
    minima: np.ndarray | None = None
    super_scales: np.ndarray | None = None
    super_minima: np.ndarray | None = None
    part: Part = "weight"
    tensor_scale: float | None = None
    input_scale: float | None = None
    group_index: np.ndarray | None = None
    name: str = ""

    def __init__(
        self, *, codes: np.ndarray, scheme: Scheme, scales: np.ndarray | None = None,
        scale_codes: np.ndarray | None = None, zeros: np.ndarray | None = None, minima: np.ndarray | None = None,
        super_scales: np.ndarray | None = None, super_minima: np.ndarray | None = None, part: Part = "weight",
        tensor_scale: float | None = None, input_scale: float | None = None, group_index: np.ndarray | None = None,
        name: str = "",
    ) -> None:  # fmt: skip
        if scales is None and scale_codes is None:
            raise QsimError(f"a quantised tensor must have scales or scale_codes{f' ({name})' if name else ''}")
        given = {"codes": codes, "scheme": scheme, "zeros": zeros, "minima": minima, "super_scales": super_scales,
                 "super_minima": super_minima, "part": part, "tensor_scale": tensor_scale, "input_scale": input_scale,
                 "group_index": group_index, "name": name}  # fmt: skip
        for label, value in given.items():
            object.__setattr__(self, label, value)
        shown = {"scale_codes": scale_codes} if scales is None else {"scales": scales}
        self._check(shown)
        object.__setattr__(self, "scale_codes", scale_codes if scales is None else self._scale_bits(scales))

    def _check(self, scales: dict[str, Any]) -> None:
        """Refuse arrays that do not fit the scheme; `scales` are those given, by the name that they were given by."""
        part, where = self.tensor_scheme, f" ({self.name})" if self.name else ""
        if not part.is_quantized:
            raise QsimError(f"{part.format.name} stands for itself; there is nothing to quantise{where}")
        assert part.granularity is not None
        every = scales | {label: getattr(self, label) for label in ARRAYS if label != "scale_codes"}
        for label, array in every.items():
            if array is not None and (not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray)):
                raise QsimError(f"{label} must be a NumPy array without a mask: got {type(array).__name__}{where}")
        part.check_shape(self.shape, self.name)
        element = self.element
        if self.codes.dtype != element.code_dtype:
            raise QsimError(f"codes of {element.name} must be {element.code_dtype}: got {self.codes.dtype}{where}")
        if self.codes.size and element.bits < 8 and int(self.codes.max()) >> element.bits:
            raise QsimError(
                f"codes of {element.name} must have {element.bits} bits: got {int(self.codes.max())}{where}"
            )
        expected = part.granularity.scale_shape(self.shape)
        for label, array in (*scales.items(), ("zeros", self.zeros), ("minima", self.minima)):
            if array is not None and array.shape != expected:
                raise QsimError(
                    f"{label} of shape {expected} belong to {part.granularity} of {self.shape}: "
                    f"got {array.shape}{where}"
                )
        if part.has_own_rule:
            self._check_own_rule(where)
        elif any(getattr(self, label) is not None for label in _OWN_RULE):
            raise QsimError(f"minima and superblocks belong to schemes that have them: got {part.summary}{where}")
        elif (self.zeros is None) != part.symmetric:
            given = "none" if self.zeros is None else "zeros"
            raise QsimError(f"zeros must be given exactly when the scheme has a zero point: got {given}{where}")
        if self.group_index is not None and self.group_index.shape != self.shape[-1:]:
            raise QsimError(
                f"group_index must have one entry per column, {self.shape[-1:]}: got {self.group_index.shape}{where}"
            )
        assert part.scale_format is not None
        wanted = {"scales": np.dtype(np.float32), "scale_codes": np.dtype(part.scale_format.code_dtype)}
        for label, array in scales.items():
            if array.dtype != wanted[label]:
                what = "values" if label == "scales" else "codes"
                raise QsimError(f"{label} must be {wanted[label]} {what} of the scale format: got {array.dtype}{where}")

    def _check_own_rule(self, where: str) -> None:
        part = self.tensor_scheme
        wanted = {"minima": part.minimum_format is not None, "super_scales": part.superblock is not None}
        wanted["super_minima"] = all(wanted.values())
        for label, there in wanted.items():
            array = getattr(self, label)
            if (array is not None) != there or (there and array.dtype != np.float32):
                got = "none" if array is None else str(array.dtype)
                raise QsimError(
                    f"{label} must be {'float32' if there else 'None'} for {part.summary}: got {got}{where}"
                )
        if self.zeros is not None or self.group_index is not None:
            raise QsimError(f"{part.summary} has neither zero points nor a group_index{where}")
        if part.superblock is not None:
            shape = (*self.shape[:-1], self.shape[-1] // part.superblock)
            for label in ("super_scales", "super_minima"):
                array = getattr(self, label)
                if array is not None and array.shape != shape:
                    raise QsimError(f"{label} must have the shape {shape}: got {array.shape}{where}")
            if self.minima is not None:
                self.integers_of("minima")

    def _scale_bits(self, scales: np.ndarray) -> np.ndarray:
        """The codes of float32 scales."""
        fmt, where = self.tensor_scheme.scale_format, f" (layer {self.name})" if self.name else ""
        finite = np.isfinite(scales)
        if not finite.all():
            row = int(np.nonzero(~finite)[0][0])
            raise QsimError(
                f"scales must be finite: {int((~finite).sum())} of {scales.size} are NaN or Inf, the first in row "
                f"{row}{where}"
            )
        if not isinstance(fmt, IntFormat):
            return bits_of(scales, fmt, "scale", self.name)
        above = self.super_scales
        assert above is not None, "integer scales have superblocks"
        found = superblock.integers(scales, above, fmt, f"scales{f' of layer {self.name}' if self.name else ''}")
        return superblock.unsigned(found, fmt)

    # --- what it is ---------------------------------------------------------------------------------------

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that it has, by name."""
        return {label: array for label in ARRAYS if (array := getattr(self, label)) is not None}

    def integers_of(self, which: Literal["scales", "minima"]) -> np.ndarray:
        """The integers of superblocks whose products `scales` or `minima` are: float32 of that shape, whole numbers.

        Raises:
            QsimError: a product that is none of an integer of the format.
        """
        part = self.tensor_scheme
        fmt = part.scale_format if which == "scales" else part.minimum_format
        assert isinstance(fmt, IntFormat), "only superblocks have integers"
        if which == "scales":
            return superblock.signed(self.scale_codes, fmt).astype(np.float32)
        assert self.minima is not None
        assert self.super_minima is not None
        what = f"minima{f' of layer {self.name}' if self.name else ''}"
        return superblock.integers(self.minima, self.super_minima, fmt, what)

    @property
    def tensor_scheme(self) -> TensorScheme:
        """The part of the scheme that this tensor follows."""
        return getattr(self.scheme, self.part)

    @property
    def element(self) -> Any:
        """Format of one code (a block format's element)."""
        fmt = self.tensor_scheme.format
        return fmt.element if isinstance(fmt, BlockFormat) else fmt

    @cached_property
    def scales(self) -> np.ndarray:
        """The values of `scale_codes`, float32 of their shape; of superblocks the products with their numbers."""
        fmt = self.tensor_scheme.scale_format
        if not isinstance(fmt, IntFormat):
            return values_of(self.scale_codes, fmt)
        assert self.super_scales is not None, "integer scales have superblocks"
        return superblock.products(superblock.signed(self.scale_codes, fmt), self.super_scales)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def nbytes(self) -> int:
        """Bytes that cross the bus to read it: packed codes, scales and zero points in their formats."""
        return int(self.tensor_scheme.nbytes(self.shape))

    @property
    def integers(self) -> np.ndarray:
        """Codes as integers with their sign: int8, or uint8 for codes with a zero point."""
        fmt = self.element
        if not isinstance(fmt, IntFormat):
            raise QsimError(f"{fmt.name} codes are not integers; use qsim.formats.decode")
        if not fmt.signed:
            return self.codes
        shift = 8 - fmt.bits
        return (self.codes << shift).view(np.int8) >> shift

    def dequantize(self) -> np.ndarray:
        """float32 values: (code - zero) * scale, one rounding; code * scale - minimum, two; NVFP4 multiplies the tensor
        scale last."""
        part = self.tensor_scheme
        assert part.granularity is not None
        if isinstance(self.element, IntFormat):
            values = self.integers.astype(np.float32)
            if self.zeros is not None:
                values -= self._per_element(self.zeros.astype(np.float32))
            values = np.ldexp(values, -self.element.fraction_bits) if self.element.fraction_bits else values
        else:
            from qsim.formats import decode

            values = np.asarray(decode(self.codes, self.element), dtype=np.float32)
        values = values * self._per_element(self.scales)
        if self.minima is not None:
            values -= self._per_element(self.minima)
        return values if self.tensor_scale is None else values * np.float32(self.tensor_scale)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """`dequantize()`, for NumPy.

        Raises:
            ValueError: `copy` is False: the values are computed, so they cannot be a view.
        """
        if copy is False:
            raise QsimError("the values of a quantised tensor are computed: it has no array to share without a copy")
        values = self.dequantize()
        return values if dtype is None else values.astype(dtype, copy=False)

    def _per_element(self, values: np.ndarray) -> np.ndarray:
        if self.group_index is not None:
            return values[..., self.group_index]
        granularity = self.tensor_scheme.granularity
        assert granularity is not None
        return expand(values, granularity, self.shape)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Values of some rows of a weight (N, K), as an embedding looks them up: float32 (T, K) of row numbers (T,).

        Raises:
            ValueError: scales that rows do not have for themselves.
        """
        granularity = self.tensor_scheme.granularity
        if granularity is None or granularity.kind not in ("group", "channel", "token"):
            raise QsimError(f"rows are taken where each has its own scales: got {granularity}")
        some: dict[str, Any] = {k: v if k == "group_index" else v[rows] for k, v in self.arrays.items()}
        return replace(self, **some).dequantize()

    def with_scales(self, scales: np.ndarray, **changes: Any) -> QuantizedTensor:
        """The same tensor under other scales, float32 values of its scale format, and with other changed fields.

        Raises:
            QsimError: as `QuantizedTensor`.
        """
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "scale_codes"}
        return QuantizedTensor(**{**kept, **changes}, scales=scales)

    def __getitem__(self, rows: slice) -> QuantizedTensor:
        """Rows of the first axis, as views.

        Raises:
            TypeError: anything but a slice.
            ValueError: a slice that cuts through a block, or has a step.
        """
        if not isinstance(rows, slice):
            raise QsimTypeError(f"a quantised tensor must be sliced by rows, like q[:64]: got {type(rows).__name__}")
        start, stop, step = rows.indices(self.shape[0])
        granularity = self.tensor_scheme.granularity
        assert granularity is not None
        of_scales = rows
        if step != 1:
            raise QsimError(f"rows must be sliced with step 1: got {step}")
        if granularity.kind == "tensor":
            of_scales = slice(None)
        elif granularity.kind == "block" and len(self.shape) == 2:
            r = granularity.rows
            assert r is not None
            if start % r or (stop % r and stop != self.shape[0]):
                raise QsimError(f"a slice must not cut a block of {r} rows: got rows {start}:{stop}")
            of_scales = slice(start // r, -(-stop // r))
        more: dict[str, Any] = {k: v[of_scales] for k, v in self.arrays.items() if k in ("zeros", *_OWN_RULE)}
        return replace(self, codes=self.codes[start:stop], scale_codes=self.scale_codes[of_scales], **more)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QuantizedTensor):
            return NotImplemented
        if (self.scheme, self.part, self.input_scale) != (other.scheme, other.part, other.input_scale):
            return False
        scales = [None if q.tensor_scale is None else np.float32(q.tensor_scale) for q in (self, other)]
        if scales[0] != scales[1]:
            return False
        mine, theirs = self.arrays, other.arrays
        return mine.keys() == theirs.keys() and all(np.array_equal(mine[k], theirs[k]) for k in mine)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        label = self.scheme.name or self.tensor_scheme.format.name
        return f"QuantizedTensor({label}, {self.part}, shape={self.shape}, {self.nbytes} bytes)"

    # --- on disk, see `saved` -----------------------------------------------------------------------------

    def to_arrays(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """What is stored of it: packed codes, shape, scales and zero points in their formats, and a few texts."""
        from . import saved

        return saved.to_arrays(self)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, str]) -> QuantizedTensor:
        """The inverse of `to_arrays`: equal in codes, scales, zero points and scheme."""
        from . import saved

        return saved.from_arrays(arrays, meta)

    def save(self, path: str | Path) -> None:
        """Write to one file, `.safetensors` or `.npz`, which is there as a whole or not at all; see `to_arrays`.

        Raises:
            ValueError: another suffix.
            OSError: it cannot be written.
        """
        from . import saved

        saved.save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> QuantizedTensor:
        """The inverse of `save`: equal in codes, scales, zero points and scheme.

        Raises:
            ValueError: another suffix.
            OSError: it cannot be read.
        """
        from . import saved

        return saved.load(Path(path))
