"""Packed weights: the layout that the kernels stream, made once from a quantised tensor.

64 output rows are the lanes of a vector loop, so weights are interleaved 64 rows at a time in words of 32 bits:

    words   [N/64][K/F][64]     uint32, field j of a word is column F*i + j; F = 32/bits (16, 8, 4 for 2, 4, 8 bits)
            [N/64][K/32*3][64]  for 3 bits: word w of three holds columns 10w .. 10w+9 of 32 in its low 30 bits; columns
                                30 and 31 are the two top bits of words 0 and 1, their third bits the top two of word 2
    scales  [N/64][K/g][64]     in the scale's own format (or as they are for tensor and block granularity)
    zeros   [N/64][K/g][...]    packed integers, or floats

Integer codes are kept unsigned, q + 2^(bits-1), so that a symmetric weight is one with the constant zero point
2^(bits-1); codes of floats as they are. Rows are padded to 64 and columns to whole groups; padding is counted apart in
`traffic`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numba
import numpy as np

from qsim._native.memory import aligned_copy
from qsim.arrays import real_array
from qsim.errors import QsimError
from qsim.formats import FloatFormat, IntFormat, get_format
from qsim.scheme import QuantizedTensor, Scheme, TensorScheme
from qsim.scheme.bits import bits_of
from qsim.scheme.tensor import expand

from .stored import STORED
from .weights import Weights

LANES = 64
# Many tokens at a time, and tiles of 64 rows in one task: their sums, 64 KiB for each tile, stay in L2.
TOKENS, TILES = 256, 4
_SCALE_KINDS = {"float32": 0, "float16": 1, "bfloat16": 2, "float8_e8m0fnu": 3, "float8_e4m3fn": 4}
_FLOATS = {"float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2", "float6_e2m3fn": "e2m3", "float6_e3m2fn": "e3m2",
           "float4_e2m1fn": "e2m1"}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedWeight:
    """A weight (N, K) as the kernels read it. Made by `pack`.

    Arguments:
        shape: (N, K).
        scheme: the scheme of the quantised tensor.
        kind: `uint` (integers), `float` (floats of 4 to 8 bits), `dense` (formats without a fused kernel: `source` is
            dequantised a slice at a time).
        stored: what a word holds, a name of `stored.STORED`; empty for `dense`.
        group: columns that share a scale, padded columns included.
        words, scales, zeros: see the module's text; scales are unsigned integers holding the bits of their format.
        scale_kind: 0 float32, 1 float16, 2 bfloat16, 3 E8M0, 4 E4M3.
        rows_per_scale: 1, r of a block of r rows, or 0 for one scale.
        zero_bits: 0 no array (the constant `zero`), 2..8 packed integers, 16 float16, 17 bfloat16, 32 float32.
        zero: the zero point of symmetric codes.
        factor: what every product is multiplied by: the tensor scale of NVFP4, 2^-6 of MXINT8's fixed point.
        columns: order in which columns are stored (GPTQ act order), or None.
        source: the quantised tensor, for `dense` and for exact=True.
    """

    shape: tuple[int, int]
    scheme: Scheme
    kind: str
    source: QuantizedTensor
    stored: str = ""
    group: int = 0
    words: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    scale_kind: int = 0
    rows_per_scale: int = 1
    zero_bits: int = 0
    zero: float = 0.0
    factor: float = 1.0
    columns: np.ndarray | None = None
    bias: np.ndarray | None = None
    input_scale: float | None = None

    @property
    def bits(self) -> int:
        """Bits of a stored code; 0 for `dense`."""
        return STORED[self.stored].bits if self.stored else 0

    @property
    def padded_k(self) -> int:
        """Columns with padding: a whole number of groups and words."""
        return self.words.shape[1] * 32 // self.bits

    @property
    def one_scale(self) -> bool:
        """Whether a row has one scale."""
        return self.group == self.padded_k

    @cached_property
    def folds(self) -> bool:
        """Whether code times scale is a BF16 number, so that the BF16 kernels may multiply the scale in beforehand.

        Floats by E8M0 or E4M3 scales have at most 8 significant bits. The range matters too: the field's 2^shift times
        the scale must be finite, and `vdpbf16ps` takes products below 2^-126 as 0, which 2^-48 leaves room for.
        """
        if self.kind != "float" or self.scale_kind not in (3, 4):
            return False
        size = np.abs(self.source.scales[self.source.scales != 0])
        high = 2.0 ** (127 - STORED[self.stored].shift)
        return size.size == 0 or bool(size.min() >= 2.0**-48 and size.max() <= high)

    @cached_property
    def weights(self) -> Weights:
        """The first argument of every kernel."""
        bias = np.zeros(self.shape[0], np.float32) if self.bias is None else self.bias
        return Weights(
            words=self.words.view(STORED[self.stored].dtype), scales=self.scales, scale_kind=self.scale_kind,
            rows_per_scale=self.rows_per_scale, zeros=self.zeros, zero_bits=self.zero_bits, zero=np.float32(self.zero),
            group=self.group, bias=bias,
        )  # fmt: skip

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers that a product streams, padding included."""
        if self.kind == "dense":
            return self.source.nbytes
        tensor_scale = 0 if self.source.tensor_scale is None else 4
        return self.words.nbytes + self.scales.nbytes + (self.zeros.nbytes if self.zero_bits else 0) + tensor_scale

    def __repr__(self) -> str:
        return f"PackedWeight({self.scheme.name or self.kind}, shape={self.shape}, {self.nbytes} bytes)"


def stored_name(qt: QuantizedTensor) -> str:
    """What the words of this tensor would hold; empty when no fused kernel takes its format or its group size."""
    element, group = qt.element, qt.tensor_scheme.group_size
    if isinstance(element, IntFormat):
        in_four = element.bits == 3 and group is not None and group % STORED["uint3"].columns  # Q3_K's groups of 16
        name = f"uint{4 if in_four else element.bits if element.bits <= 4 else 8}"
    else:
        name = _FLOATS.get(element.name, "")
    return name if name and (group is None or group % STORED[name].columns == 0) else ""


def has_fused_kernel(qt: QuantizedTensor) -> bool:
    """Whether `linear` streams the codes of this weight, instead of dequantising them for every product."""
    return bool(stored_name(qt))


def pack(qt: QuantizedTensor, bias: Any = None) -> PackedWeight:
    """Lay a quantised weight out for `linear`.

    Arguments:
        qt: a weight (N, K). Integers of 2 to 8 bits, E4M3, E5M2, E2M3, E3M2 and E2M1, also in MX and NVFP4 blocks, have
            fused kernels (5- to 7-bit codes are stored in 8, 3-bit codes in groups that are no multiple of 32 in 4).
            Other formats, and group sizes that are not whole 32-bit words, are multiplied after dequantisation. Scales
            of superblocks are stored as float32, and minima as the float32 zero points minimum / scale.
        bias: (N,) or None, added to the product in float32.

    Raises:
        ValueError: not a weight matrix; a bias of another length; NaN or Inf codes in an FP8 weight (the row is named);
            a scale or zero point that is NaN, Inf or no value of its format. Scales may be negative or zero.
    """
    if len(qt.shape) != 2 or qt.part != "weight":
        raise QsimError(f"pack takes a weight (N, K): got part {qt.part!r} of shape {qt.shape}")
    n, k = qt.shape
    if bias is not None:
        bias = real_array(bias, f"biases{_of(qt)}", integers=True, dtype=np.float32)
        if bias.shape != (n,):
            raise QsimError(f"a bias must have one entry per output row, ({n},): got {bias.shape}{_of(qt)}")
    _refuse_specials_beside(qt)
    common: dict[str, Any] = {
        "shape": (n, k), "scheme": qt.scheme, "source": qt, "bias": bias, "input_scale": qt.input_scale,
    }  # fmt: skip
    name = stored_name(qt)
    if not name:
        empty = np.zeros((0, 0, 0), dtype=np.uint32)
        return PackedWeight(kind="dense", words=empty, scales=empty, zeros=np.zeros((0, 0, 0), np.uint8), **common)

    qt = _one_level(qt)
    how, element = qt.tensor_scheme, qt.element
    granularity = how.granularity
    assert granularity is not None
    bits, is_int = STORED[name].bits, isinstance(element, IntFormat)
    group = granularity.columns or -(-k // 64) * 64
    columns = _column_order(qt, group)
    codes = qt.codes if columns is None else qt.codes[:, columns]
    if not is_int:
        _refuse_specials(codes, element, qt)
    elif qt.zeros is None:
        codes = (qt.integers if columns is None else qt.integers[:, columns]).view(np.uint8) + np.uint8(1 << (bits - 1))

    tiles, groups = -(-n // LANES), -(-k // group)
    padded = np.zeros((tiles * LANES, groups * group), dtype=np.uint8)
    padded[:n, :k] = codes
    assert how.scale_format is not None
    scales, scale_kind = qt.scale_codes, _SCALE_KINDS[how.scale_format.name]
    rows_per_scale = {"tensor": 0, "block": granularity.rows or 1}.get(granularity.kind, 1)
    if rows_per_scale == 1:
        scales = _tile(scales, tiles)
    else:
        scales = np.ascontiguousarray(scales.reshape(scales.shape[0], -1, 1))
    zeros, zero_bits = _zeros(qt, tiles)
    factor = 1.0 if qt.tensor_scale is None else float(qt.tensor_scale)
    return PackedWeight(
        kind="uint" if is_int else "float",
        stored=name,
        group=group,
        words=aligned_copy(_words(padded, bits)),
        scales=aligned_copy(scales),
        scale_kind=scale_kind,
        rows_per_scale=rows_per_scale,
        zeros=aligned_copy(zeros),
        zero_bits=zero_bits,
        zero=float(1 << (bits - 1)) if is_int and qt.zeros is None else 0.0,
        factor=factor * 2.0**-element.fraction_bits if is_int else factor,
        columns=columns,
        **common,
    )


def _one_level(qt: QuantizedTensor) -> QuantizedTensor:
    """A weight with superblocks or minima as one with float32 scales and float32 zero points; others as they are.

    A zero point minimum / scale is rounded once, which moves a value by at most 2^-24 of its minimum. A group whose
    scale is 0 has only its minimum: code 0, zero point 1 and the minimum as its scale.
    """
    how = qt.tensor_scheme
    if not how.has_own_rule:
        return qt
    single = get_format("float32")
    plain = TensorScheme(
        format=how.format, granularity=how.granularity, symmetric=how.symmetric,
        scale_format=single if how.superblock is not None else how.scale_format,  # type: ignore[arg-type]
        zero_point_format=None if qt.minima is None else single,  # type: ignore[arg-type]
    )  # fmt: skip
    codes, scales, zeros = qt.codes, qt.scales, None
    if qt.minima is not None:
        flat = (scales == 0) & (qt.minima != 0)
        if flat.any():
            plain = replace(plain, scale_format=single)  # type: ignore[arg-type]
            codes = np.where(expand(flat, plain.granularity, qt.shape), np.uint8(0), codes)  # type: ignore[arg-type]
            scales = np.where(flat, qt.minima, scales)
        zeros = np.divide(qt.minima, scales, out=np.zeros_like(scales), where=scales != 0)
    scheme = replace(qt.scheme, weight=plain)
    return qt.with_scales(scales, codes=codes, zeros=zeros, minima=None, super_scales=None, super_minima=None,
                          scheme=scheme)  # fmt: skip


def tiles_per_task(packed: PackedWeight, most: int = TILES) -> int:
    """At most `most` tiles, so that tasks come out even on all threads."""
    tiles, threads = packed.words.shape[0], numba.get_num_threads()
    tasks = -(-tiles // (most * threads)) * threads
    return -(-tiles // tasks)


def _column_order(qt: QuantizedTensor, group: int) -> np.ndarray | None:
    """Columns sorted by group, for GPTQ's act order; None when they are in order."""
    if qt.group_index is None:
        return None
    counts = np.bincount(qt.group_index, minlength=-(-qt.shape[1] // group))
    if (counts[:-1] != group).any():
        raise QsimError(f"group_index must give every group {group} columns: got {counts.tolist()[:8]}...{_of(qt)}")
    return np.argsort(qt.group_index, kind="stable").astype(np.int64)


def _of(qt: QuantizedTensor) -> str:
    return f" (layer {qt.name})" if qt.name else ""


def _refuse_specials_beside(qt: QuantizedTensor) -> None:
    """Refuse NaN and Inf in whatever multiplies or shifts the codes."""
    for what, values in (
        ("scales", qt.scales),
        ("zero points", qt.zeros),
        ("minima", qt.minima),
        ("the tensor scale", qt.tensor_scale),
    ):
        finite = np.isfinite(np.atleast_1d(np.asarray(0.0 if values is None else values, dtype=np.float64)))
        if not finite.all():
            first = int(np.flatnonzero(~finite.reshape(finite.shape[0], -1).all(axis=1))[0])
            raise QsimError(
                f"{what} must be finite: {int((~finite).sum())} of {finite.size} are NaN or Inf, the first in row "
                f"{first}{_of(qt)}"
            )


def _refuse_specials(codes: np.ndarray, fmt: FloatFormat, qt: QuantizedTensor) -> None:
    special = (codes & 0x7F) > fmt.max_code if fmt.bits == 8 else np.zeros(0, bool)  # smaller floats have none
    if special.any():
        row = int(np.flatnonzero(special.any(axis=1))[0])
        raise QsimError(
            f"FP8 weights must be finite: {int(special.sum())} codes are NaN or Inf, the first in row {row}{_of(qt)}"
        )


def _words(codes: np.ndarray, bits: int) -> np.ndarray:
    """(64 T, K) uint8 codes to the interleaved words."""
    n, k = codes.shape
    tiles = n // LANES
    if bits == 3:
        c = codes.reshape(tiles, LANES, k // 32, 32).astype(np.uint32)
        out = np.zeros((tiles, k // 32, 3, LANES), dtype=np.uint32)
        for w in range(3):
            for j in range(10):
                out[:, :, w] |= (c[..., 10 * w + j] << np.uint32(3 * j)).transpose(0, 2, 1)
        for i, w in ((30, 0), (31, 1)):
            out[:, :, w] |= ((c[..., i] & 3) << np.uint32(30)).transpose(0, 2, 1)
            out[:, :, 2] |= ((c[..., i] >> 2) << np.uint32(31 - w)).transpose(0, 2, 1)
        return out.reshape(tiles, -1, LANES)
    fields = 32 // bits
    out = np.zeros((tiles, k // fields, LANES), dtype=np.uint32)
    c = codes.reshape(tiles, LANES, k // fields, fields)
    for j in range(fields):
        out |= c[..., j].transpose(0, 2, 1).astype(np.uint32) << np.uint32(bits * j)
    return out


def _tile(per_row: np.ndarray, tiles: int) -> np.ndarray:
    """(N, G) to [T][G][64], padded rows 0."""
    n, g = per_row.shape
    padded = np.zeros((tiles * LANES, g), dtype=per_row.dtype)
    padded[:n] = per_row
    return np.ascontiguousarray(padded.reshape(tiles, LANES, g).transpose(0, 2, 1))


def _zeros(qt: QuantizedTensor, tiles: int) -> tuple[np.ndarray, int]:
    if qt.zeros is None:
        return np.zeros((1, 1, 1), dtype=np.uint8), 0
    how = qt.tensor_scheme
    per_row = np.broadcast_to(qt.zeros, (qt.shape[0], qt.zeros.shape[-1])) if qt.zeros.ndim == 1 else qt.zeros
    if how.granularity is not None and how.granularity.kind == "block":
        rows = how.granularity.rows or 1
        per_row = np.repeat(per_row, rows, axis=0)[: qt.shape[0]]
    if isinstance(how.zero_point_format, IntFormat):
        lanes = _tile(np.ascontiguousarray(per_row, dtype=np.uint8), tiles)
        bits = how.zero_point_format.bits
        if bits == 8:
            return lanes, 8
        if bits == 4:  # lane i beside lane i + 32: both halves are whole vectors
            return lanes[..., :32] | (lanes[..., 32:] << 4), 4
        flags = np.unpackbits(lanes[..., None], axis=-1, count=bits, bitorder="little")
        return np.packbits(flags.reshape(*lanes.shape[:2], -1), axis=-1, bitorder="little"), bits
    assert how.zero_point_format is not None
    codes = bits_of(per_row, how.zero_point_format, "zero point", qt.name)
    return _tile(codes, tiles), {"float32": 32, "float16": 16, "bfloat16": 17}[how.zero_point_format.name]
