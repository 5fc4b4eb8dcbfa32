"""`quantize`: from values to a `QuantizedTensor` under a scheme and a scale rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np

from qsim.arrays import real_array
from qsim.errors import QsimError
from qsim.formats import BlockFormat, FloatFormat, IntFormat

from . import superblock
from .granularity import Granularity
from .presets import get_scheme
from .rules import F32, ScaleRule, float_scale, get_rule
from .scheme import Scheme
from .tensor import Part, QuantizedTensor, expand
from .tensor_scheme import TensorScheme

ScaleRounding: TypeAlias = Literal["nearest", "up", "down"]


def region_range(x: np.ndarray, granularity: Granularity) -> tuple[np.ndarray, np.ndarray]:
    """Minimum and maximum of every region: two float32 arrays of `granularity.scale_shape(x.shape)`."""
    return _reduce(np.minimum, x, granularity), _reduce(np.maximum, x, granularity)


def _reduce(op: np.ufunc, x: np.ndarray, granularity: Granularity) -> np.ndarray:
    if granularity.kind == "tensor":
        return op.reduce(x, axis=None).reshape(1)
    if granularity.kind in ("channel", "token"):
        return op.reduce(x, axis=-1, keepdims=True)
    assert granularity.columns is not None
    k, g = x.shape[-1], granularity.columns
    if k % g == 0:
        out = op.reduce(x.reshape(*x.shape[:-1], k // g, g), axis=-1)
    else:
        out = op.reduceat(x, np.arange(0, k, g), axis=-1)
    if granularity.kind == "block":
        assert granularity.rows is not None
        out = op.reduceat(out, np.arange(0, x.shape[-2], granularity.rows), axis=-2)
    return out


def check_finite(x: np.ndarray, name: str = "", what: str = "weights") -> None:
    """Refuse NaN and Inf, naming the first row that has one.

    Raises:
        ValueError: with the count, the row and the layer.
    """
    finite = np.isfinite(x)
    if finite.all():
        return
    rows = np.flatnonzero(~finite.reshape(-1, x.shape[-1] if x.ndim else 1).all(axis=-1))
    row = int(rows[0])
    value = x.reshape(-1, x.shape[-1])[row][~finite.reshape(-1, x.shape[-1])[row]][0]
    where = f" (layer {name})" if name else ""
    raise QsimError(
        f"{what} must be finite: {int((~finite).sum())} values in {rows.size} rows are not, the first is "
        f"{value} in row {row}{where}"
    )


def quantize(
    w: Any,
    scheme: str | Scheme,
    *,
    part: Part = "weight",
    scale_rule: str | None = None,
    clip: float | None = None,
    clip_grid: int = 100,
    clip_shrink: float = 0.8,
    scale_rounding: ScaleRounding | None = None,
    block_scale_rule: str | None = None,
    input_scale: float | None = None,
    ragged: bool = False,
    name: str = "",
) -> QuantizedTensor:
    """Round a tensor to the codes of a scheme.

    Arguments:
        w: (N, K) weights, or (..., K) for other parts. float16, float32, bfloat16 or float64, all taken to float32,
            which is what the originals compute in.
        scheme: a name or a `Scheme`.
        part: which part of the scheme to follow.
        scale_rule: `gptq`, `awq`, `compressed-tensors`, `smoothquant` for integers, `amax`, `autofp8`,
            `compressed-tensors` for floats; None is `amax`, `smoothquant` for symmetric 8-bit integers, else `gptq`.
            Block formats have rules of their own, see `block_scale_rule`; weights with minima or superblocks (q4_k)
            have one, see `qsim.scheme.superblock`.
        clip: search for the range that minimises sum |q - x|^clip in each region (2 is the MSE, GPTQ's is 2.4), over
            ranges shrunk by 1 - i/clip_grid for i in 0 .. clip_shrink * clip_grid - 1; the first best wins.
        scale_rounding: how a scale is rounded to its format; None is `up` for E8M0 (nothing clips), else `nearest`.
        block_scale_rule: for block formats, `floor`, `ceil`, `even`, `rceil`; None is the format's default.
        input_scale: stored with the weight, the activation scale of a static scheme.
        ragged: allow a shorter last group or block, as a scheme with `ragged=True` does; the result's scheme has it.
        name: the layer, for messages.

    Raises:
        ValueError: what is no array of real floats (integers, texts, masked elements), or beyond float32; NaN or Inf
            (the row is named); a group that does not divide; a rule that does not fit the scheme; a scale outside its
            format, which includes one that underflows to 0; values that would come back as Inf.
    """
    scheme = get_scheme(scheme)
    if ragged:
        scheme = scheme.with_ragged()
    how: TensorScheme = getattr(scheme, part)
    layer = f" (layer {name})" if name else ""
    x = real_array(w, f"{'weights' if part == 'weight' else part}{layer}", dtype=np.float32)
    if not how.is_quantized:
        raise QsimError(f"{part} of scheme {scheme.name!r} is {how.format.name}: there is nothing to quantise")
    how.check_shape(x.shape, name)
    if x.size == 0:
        raise QsimError(f"cannot quantise an empty tensor: got shape {x.shape}{layer}")
    check_finite(x, name, "weights" if part == "weight" else part)
    common: dict[str, Any] = {"scheme": scheme, "part": part, "input_scale": input_scale, "name": name}
    if isinstance(how.format, BlockFormat):
        if scale_rule is not None or clip is not None:
            raise QsimError(f"{how.format.name} takes block_scale_rule; scale_rule and clip belong to other formats")
        return refuse_overflow(QuantizedTensor(**_blocks(x, how.format, block_scale_rule, how.ragged), **common))
    if how.has_own_rule:
        given = {"scale_rule": scale_rule, "clip": clip, "scale_rounding": scale_rounding}
        if (wrong := next((key for key, value in given.items() if value is not None), None)) is not None:
            raise QsimError(
                f"{scheme.name or how.summary} finds its scales by a rule of its own: {wrong} does not belong"
            )
        return QuantizedTensor(**superblock.find(x, how), **common)  # type: ignore[arg-type]
    if block_scale_rule is not None:
        raise QsimError(f"block_scale_rule belongs to block formats: got {how.format.name}")
    rule = get_rule(scale_rule, how)
    scales, exact, zeros = find_parameters(x, how, rule, scale_rounding=scale_rounding, name=name, clip=clip,
                                           clip_grid=clip_grid, clip_shrink=clip_shrink)  # fmt: skip
    codes = encode_with(x, how, scales if rule.stored_scale else exact, zeros, rule)
    return refuse_overflow(QuantizedTensor(codes=codes, scales=scales, zeros=zeros, **common))


def refuse_overflow(q: QuantizedTensor) -> QuantizedTensor:
    """The tensor itself, unless a code times its scale is beyond float32: the largest values may round up to there.

    Raises:
        ValueError: `dequantize` would give Inf; the row and the layer are named.
    """
    reach = 2.0**q.element.bits if isinstance(q.element, IntFormat) else float(q.element.max)
    scale = float(np.abs(q.scales).max(initial=0.0)) * abs(q.tensor_scale or 1.0)
    if scale * reach <= float(np.finfo(F32).max):
        return q
    with np.errstate(over="ignore"):
        lost = np.isinf(q.dequantize())
    if lost.any():
        where = f" (layer {q.name})" if q.name else ""
        raise QsimError(
            f"quantised values must be within float32's range: {int(lost.sum())} of {lost.size} round to Inf, the "
            f"first in row {int(np.nonzero(lost)[0][0])}{where}; scale the tensor down"
        )
    return q


def find_parameters(
    x: np.ndarray,
    how: TensorScheme,
    rule: ScaleRule,
    *,
    scale_rounding: ScaleRounding | None = None,
    clip: float | None = None,
    clip_grid: int = 100,
    clip_shrink: float = 0.8,
    name: str = "",
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Scales as stored, scales as computed (both float32), and zero points of every region of `x` (float32)."""
    assert how.granularity is not None
    lo, hi = region_range(x, how.granularity)
    if clip is not None:
        lo, hi = _clip_search(x, lo, hi, how, rule, clip, clip_grid, clip_shrink)
    exact, zeros = _parameters(lo, hi, how, rule)
    stored = round_scale(exact, how, scale_rounding, name)
    if zeros is not None:
        zero_format = how.zero_point_format
        zeros = zeros.astype(np.uint8) if isinstance(zero_format, IntFormat) else zeros.astype(np.float32)
    return stored, exact, zeros


def _parameters(
    lo: np.ndarray, hi: np.ndarray, how: TensorScheme, rule: ScaleRule
) -> tuple[np.ndarray, np.ndarray | None]:
    if isinstance(how.format, IntFormat):
        return rule.parameters(lo, hi, how.bits, how.symmetric)
    return float_scale(np.maximum(np.abs(lo), np.abs(hi)), how.format.max, rule.name), None


def encode_with(
    x: np.ndarray, how: TensorScheme, scales: np.ndarray, zeros: np.ndarray | None, rule: ScaleRule | None = None
) -> np.ndarray:
    """Codes of float32 values under given scales and zero points (static scales, a solver's column, a new token).

    Arguments:
        x: (..., K) float32.
        scales, zeros: one a region, as in `QuantizedTensor`.
        rule: the rounding order; None is `default_rule`.

    Returns:
        Unsigned codes of `x`'s shape.
    """
    assert how.granularity is not None
    rule = rule or get_rule(None, how)
    s = expand(scales, how.granularity, x.shape)
    if isinstance(how.format, IntFormat):
        z = None if zeros is None else expand(zeros.astype(np.float32), how.granularity, x.shape)
        mask = (1 << how.bits) - 1
        return (rule.codes(x, s, z, how.bits) & mask).astype(np.uint8)
    from qsim.formats import encode

    top = F32(how.format.max)
    scaled = x * (F32(1) / s) if rule.name == "autofp8" else x / s
    return np.asarray(encode(np.clip(scaled, -top, top), how.format))


def round_scale(
    scale: np.ndarray, how: TensorScheme, rounding: ScaleRounding | None = None, name: str = ""
) -> np.ndarray:
    """Float32 scales rounded to the scale format, as float32.

    Raises:
        ValueError: a scale that becomes 0 or Inf there; the message names the row.
    """
    fmt = how.scale_format
    assert isinstance(fmt, FloatFormat)
    if fmt.name == "float32":
        out = scale
    elif fmt.name == "float16" and rounding in (None, "nearest"):
        with np.errstate(over="ignore"):
            out = scale.astype(np.float16).astype(np.float32)
    else:
        from qsim.formats import cast

        mode: Any = {"nearest": "nearest_even", "up": "up", "down": "down"}[
            rounding or ("up" if fmt.name == "float8_e8m0fnu" else "nearest")
        ]
        out = np.asarray(cast(scale, fmt, rounding=mode), dtype=np.float32)
    bad = ~np.isfinite(out) | (out <= 0) | (scale <= 0)  # the last: E8M0 has no 0 and would round it up
    if bad.any():
        index = tuple(int(i[0]) for i in np.nonzero(bad))
        raise QsimError(
            f"scales must be positive {fmt.name} numbers: row {index[0]} needs {scale[index]!s}, which "
            f"becomes {out[index]!s}{f' (layer {name})' if name else ''}; use another scale format"
        )
    return out


def _clip_search(
    x: np.ndarray,
    lo: np.ndarray,
    hi: np.ndarray,
    how: TensorScheme,
    rule: ScaleRule,
    norm: float,
    grid: int,
    shrink: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The shrunk range of every region with the least sum of |q - x|^norm; ties keep the wider range.

    For `gptq` with norm 2.4 this is its `mse` option: the zero point of each candidate is found anew, errors are
    those of the scale as computed.
    """
    if not 0 < shrink <= 1 or grid < 1:
        raise QsimError(f"the clip search needs 0 < clip_shrink <= 1 and clip_grid >= 1: got {shrink}, {grid}")
    assert how.granularity is not None
    best = np.full(lo.shape, np.inf, dtype=np.float32)
    best_lo, best_hi = lo.copy(), hi.copy()
    where = replace(how.granularity)
    unit = _units(np.maximum(np.abs(lo), np.abs(hi)))
    units = None if (unit == 1).all() else expand(unit, where, x.shape)
    if rule.name == "gptq":
        lo, hi = _gptq_range(lo, hi, how.symmetric)
    for i in range(int(shrink * grid)):
        p = F32(1 - i / grid)
        with np.errstate(all="ignore"):  # a candidate whose scale underflows has an error of NaN and never wins
            scale, zero = _parameters(p * lo, p * hi, how, rule)
            codes = encode_with(x, how, scale, zero, rule)
            error = _values(codes, how, scale, zero, x.shape) - x
            np.abs(error, out=error)
            if units is not None:
                error *= units
            np.power(error, F32(norm), out=error)
            total = _reduce(np.add, error, where)
        better = total < best
        best[better] = total[better]
        best_lo[better], best_hi[better] = (p * lo)[better], (p * hi)[better]
    return best_lo, best_hi


def _units(amax: np.ndarray) -> np.ndarray:
    """A power of two for each region that brings its errors near 1, so that their powers stay in float32's range.

    1 from 2^-20 to 2^20, where nothing needs it and the originals' bits are kept.
    """
    exponent = np.frexp(amax)[1]
    far = (amax > 0) & (np.abs(exponent) > 20)
    return np.ldexp(F32(1), np.where(far, np.minimum(-exponent, 126), 0)).astype(F32)


def _gptq_range(lo: np.ndarray, hi: np.ndarray, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    """GPTQ shrinks the range after it was made to hold 0 and symmetric."""
    lo, hi = np.minimum(lo, F32(0)), np.maximum(hi, F32(0))
    if symmetric:
        hi = np.maximum(np.abs(lo), hi)
        lo = np.where(lo < 0, -hi, lo)
    return lo, hi


def _values(
    codes: np.ndarray, how: TensorScheme, scale: np.ndarray, zero: np.ndarray | None, shape: tuple[int, ...]
) -> np.ndarray:
    assert how.granularity is not None
    s = expand(scale, how.granularity, shape)
    if not isinstance(how.format, IntFormat):
        from qsim.formats import decode

        return np.asarray(decode(codes, how.format), dtype=np.float32) * s
    if zero is not None:
        return (codes.astype(np.float32) - expand(zero.astype(np.float32), how.granularity, shape)) * s
    shift = 8 - how.bits
    return ((codes << shift).view(np.int8) >> shift).astype(np.float32) * s


def _blocks(x: np.ndarray, fmt: BlockFormat, scale_rule: str | None, ragged: bool) -> dict[str, Any]:
    from qsim.formats import quantize_blocks

    tensor_scale = _tensor_scale(x) if fmt.tensor_scale else None
    q = quantize_blocks(x, fmt, scale_rule=scale_rule, ragged=ragged, tensor_scale=tensor_scale)  # type: ignore[arg-type]
    return {"codes": q.codes, "scale_codes": q.scales, "tensor_scale": q.tensor_scale}


def _tensor_scale(x: np.ndarray) -> float | None:
    """NVFP4's amax / (448 * 6) as the float32 reciprocal of a float32, since checkpoints store 448 * 6 / amax.

    None where the reciprocal does not exist; the format's own default then.
    """
    amax = float(np.abs(x).max())
    with np.errstate(over="ignore"):
        stored = np.float32(448 * 6 / amax) if amax else np.float32(np.inf)
    return float(np.float32(1.0 / float(stored))) if np.isfinite(stored) and stored else None
