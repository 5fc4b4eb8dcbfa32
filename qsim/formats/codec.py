"""Values to codes and back: the public codec over arrays.

Policies are settled here, once per call, into the few numbers that the compiled loops take.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from qsim._native.threads import CHUNK, for_chunks
from qsim.errors import QsimError

from . import _plans, _sources
from .catalogue import FormatLike, get_element_format
from .rounding import NAN_POLICIES, OVERFLOWS, ROUNDINGS, NanPolicy, Overflow, Rounding, check_choice
from .spec import ElementFormat

RandomSource: TypeAlias = np.random.Generator | np.ndarray
Via: TypeAlias = FormatLike | Sequence[FormatLike]

_SMALL_CHUNK = 1 << 16
"""Elements per piece where a piece passes through scratch memory: 256 KiB of float32 stays in a 1 MiB L2 cache."""

_NO_RANDOM = np.zeros(1, np.uint32)


def encode(
    x: Any,
    fmt: FormatLike,
    *,
    rounding: Rounding = "nearest_even",
    overflow: Overflow = "saturate",
    nan: NanPolicy = "canonical",
    rng: RandomSource | None = None,
    random_bits: int = 32,
    via: Via = (),
    out: np.ndarray | None = None,
    as_ml_dtypes: bool = False,
) -> np.ndarray:
    """The codes of values in a format, each value rounded once.

    Arguments:
        x: array of any shape (0-d, empty and non-contiguous included) of float16, bfloat16, float32, float64, an
            integer type, or an ml_dtypes type; or anything `numpy.asarray` makes one of these. float64 is rounded
            directly, never through float32; 64-bit integers likewise.
        fmt: element format by name or value.
        rounding: see `qsim.formats.Rounding`; default nearest, ties to the even code.
        overflow: see `qsim.formats.Overflow`; default `saturate`: too large values and infinities become +-max. Values
            below the smallest one of a format without sign or zero (negative into E8M0) are treated likewise.
        nan: see `qsim.formats.NanPolicy`; default the canonical NaN, or an error if the format has none.
        rng: for `stochastic`: a NumPy Generator, or the random bits themselves, an unsigned integer array of x's shape
            with values below 2^random_bits. A Generator is drawn in C order, so the result does not depend on threads.
        random_bits: N of the stochastic rule, 1 to 32.
        via: formats through which every value passes first, in order, nearest even and saturating never
            (`via="bfloat16"`: a pipeline that really holds bfloat16 in between).
        out: C-contiguous array of x's shape and the format's `code_dtype` to write to; it is returned.
        as_ml_dtypes: return the codes viewed as the ml_dtypes type of that name.

    Returns:
        Codes, shape of x, dtype `fmt.code_dtype` (uint8 up to 8 bits, uint16, uint32). A narrow code stands in the
        low bits of its word; integers are two's complement. -0 keeps its sign where the format has -0.

    Raises:
        ValueError: unknown names; a NaN, or an overflow with `nonsaturating`, that the format has no code for: how
            many and where the first is; complex, object, string and other arrays; wrong `rng` or `out`.

    Sources: IEEE 754-2019 4.3 and 7.4 (rounding, overflow); OCP OFP8 v1.0 5 (saturation modes); PTX ISA cvt.
    """
    element = get_element_format(fmt)
    policy = _policy(rounding, overflow, nan, random_bits)
    source = _sources.open_source(x)
    codes = _make_out(out, source.shape, element.code_dtype, "encode")
    flat = codes.reshape(-1)
    _run(source, element, policy, _stages(via), _random(rng, source, policy), lambda start, stop: flat[start:stop])
    return _as_ml_dtypes(codes, element) if as_ml_dtypes else codes


def decode(
    codes: Any, fmt: FormatLike | None = None, *, dtype: Any = None, out: np.ndarray | None = None
) -> np.ndarray:
    """The values of codes, exactly.

    Arguments:
        codes: unsigned integer array of any shape; signed integers are read as the values of a signed `IntFormat`'s
            codes (int8 as it is); or an ml_dtypes array of the format.
        fmt: element format by name or value; None: that of the ml_dtypes array.
        dtype: float32 or float64. Default float32, or float64 for a format whose values float32 cannot hold.
        out: C-contiguous array of the shape and dtype to write to; it is returned.

    Returns:
        Values, shape of codes. NaN codes give NaN, -0 keeps its sign.

    Raises:
        ValueError: a code outside the format (which and where), float32 asked for a format that does not fit it,
            arrays of another kind.
    """
    array, element = _sources.open_codes(codes, fmt)
    target = _float_dtype(_plans.default_dtype(element) if dtype is None else dtype, "decode")
    plan = _plans.decode_plan(element, target)
    values = _make_out(out, array.shape, target, "decode")
    flat_codes, flat_values = array.reshape(-1), values.reshape(-1)
    seen = []
    for_chunks(array.size, lambda start, stop: seen.append(plan(flat_codes[start:stop], flat_values[start:stop])))
    mask = _plans.code_mask(element)
    if functools.reduce(operator.or_, seen, 0) & ~mask:
        _sources.raise_foreign_codes(array, element, mask)
    return values


def cast(
    x: Any,
    fmt: FormatLike,
    *,
    rounding: Rounding = "nearest_even",
    overflow: Overflow = "saturate",
    nan: NanPolicy = "canonical",
    rng: RandomSource | None = None,
    random_bits: int = 32,
    via: Via = (),
    dtype: Any = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Values rounded to a format and kept as values ("fake quantisation"): decode(encode(x)).

    Arguments:
        x, fmt, rounding, overflow, nan, rng, random_bits, via: as in `encode`.
        dtype: float32 or float64; default float64 for float64 and 64-bit integer input, else float32, and float64
            whenever float32 cannot hold the format's values.
        out: C-contiguous array of x's shape and that dtype.

    Returns:
        Values on the format's grid, shape of x.

    Raises:
        ValueError: as `encode` and `decode`.
    """
    element = get_element_format(fmt)
    policy = _policy(rounding, overflow, nan, random_bits)
    source = _sources.open_source(x, "cast")
    if dtype is None:
        dtype = np.float64 if source.carrier == np.float64 else _plans.default_dtype(element)
    target = _float_dtype(dtype, "cast")
    plan = _plans.decode_plan(element, target)
    values = _make_out(out, source.shape, target, "cast")
    flat = values.reshape(-1)
    _run(
        source,
        element,
        policy,
        _stages(via),
        _random(rng, source, policy),
        lambda start, stop: np.empty(stop - start, element.code_dtype),
        lambda start, stop, codes: plan(codes, flat[start:stop]),
    )
    return values


def _run(
    source: _sources.Source,
    element: ElementFormat,
    policy: _plans.Policy,
    stages: tuple[ElementFormat, ...],
    random: _Random,
    room: Callable[[int, int], np.ndarray],
    done: Callable[[int, int, np.ndarray], object] | None = None,
) -> None:
    """Encode a source piece by piece: each into `room(start, stop)`, then `done(start, stop, codes)` is called."""
    refused = []
    steps = []
    carrier = source.carrier
    for stage in stages:
        steps.append(_stage_step(stage, carrier))
        carrier = _plans.default_dtype(stage)
    plan = _plans.encode_plan(element, policy, carrier)

    def load(start: int, stop: int) -> np.ndarray:
        values = source.load(start, stop)
        for step in steps:
            values = step(values)
        return values

    def work(start: int, stop: int) -> None:
        codes = room(start, stop)
        refused.append(plan(load(start, stop), codes, random.piece(start, stop)))
        if done is not None:
            done(start, stop, codes)

    chunk = CHUNK if source.direct and not stages and done is None else _SMALL_CHUNK
    if random.is_stream:  # one stream of numbers: in order, on one thread
        for start in range(0, source.size, chunk):
            work(start, min(start + chunk, source.size))
    else:
        for_chunks(source.size, work, chunk=chunk)
    if any(refused):
        _sources.raise_unencodable(source, element, policy, load)


def _policy(rounding: Rounding, overflow: Overflow, nan: NanPolicy, random_bits: int) -> _plans.Policy:
    check_choice("rounding", rounding, ROUNDINGS)
    check_choice("overflow", overflow, OVERFLOWS)
    check_choice("nan policy", nan, NAN_POLICIES)
    if not 1 <= random_bits <= 32:
        raise QsimError(f"random_bits must be 1 to 32: got {random_bits}")
    return _plans.Policy(rounding=rounding, overflow=overflow, nan=nan, random_bits=int(random_bits))


def _stages(via: Via) -> tuple[ElementFormat, ...]:
    if isinstance(via, str) or not isinstance(via, Sequence):
        via = (via,)
    return tuple(get_element_format(stage) for stage in via)


def _stage_step(stage: ElementFormat, carrier: np.dtype) -> Callable[[np.ndarray], np.ndarray]:
    """Values after an intermediate format: nearest even, overflow as that format's own conversion does it."""
    overflow: Overflow = "nonsaturating" if stage.has_inf or stage.has_nan else "saturate"
    plan = _plans.encode_plan(stage, _plans.Policy(overflow=overflow), carrier)
    target = _plans.default_dtype(stage)
    back = _plans.decode_plan(stage, target)

    def step(values: np.ndarray) -> np.ndarray:
        codes = np.empty(values.shape, stage.code_dtype)
        if plan(values, codes, _NO_RANDOM):
            raise QsimError(f"via={stage.name!r}: NaN cannot pass through a format that has none")
        result = np.empty(values.shape, target)
        back(codes, result)
        return result

    return step


@dataclass(frozen=True)
class _Random:
    """Random bits for the pieces of a source: none, an array's, or a Generator's in C order."""

    source: RandomSource | None
    bits: int = 32

    @property
    def is_stream(self) -> bool:
        return isinstance(self.source, np.random.Generator)

    def piece(self, start: int, stop: int) -> np.ndarray:
        if self.source is None:
            return _NO_RANDOM
        if isinstance(self.source, np.ndarray):
            return self.source[start:stop]
        return self.source.integers(0, 1 << 32, stop - start, dtype=np.uint32) >> np.uint32(32 - self.bits)


def _random(rng: RandomSource | None, source: _sources.Source, policy: _plans.Policy) -> _Random:
    if policy.rounding != "stochastic":
        if rng is not None:
            raise QsimError(f"rng is for rounding='stochastic': got it with rounding={policy.rounding!r}")
        return _Random(None)
    if isinstance(rng, np.random.Generator):
        return _Random(rng, policy.random_bits)
    if not isinstance(rng, np.ndarray) or rng.dtype.kind != "u":
        given = f"an array of {rng.dtype}" if isinstance(rng, np.ndarray) else type(rng).__name__
        raise QsimError(f"rounding='stochastic' needs rng: a numpy Generator or unsigned random bits; got {given}")
    if rng.shape != source.shape:
        raise QsimError(f"random bits need the shape of the values: got {rng.shape} for {source.shape}")
    if rng.size and int(rng.max()) >> policy.random_bits:
        raise QsimError(f"random bits must be below 2^{policy.random_bits} (random_bits): got {int(rng.max())}")
    return _Random(np.ascontiguousarray(rng).reshape(-1), policy.random_bits)


def _float_dtype(dtype: Any, what: str) -> np.dtype:
    target = np.dtype(dtype)
    if target not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise QsimError(f"{what} gives float32 or float64: got dtype={target}")
    return target


def _make_out(out: np.ndarray | None, shape: tuple[int, ...], dtype: np.dtype, what: str) -> np.ndarray:
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
        given = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise QsimError(f"{what}: out must be a C-contiguous {dtype} array of shape {shape}: got {given}")
    if not out.flags.writeable:
        raise QsimError(f"{what}: out is read-only")
    return out


def _as_ml_dtypes(codes: np.ndarray, fmt: ElementFormat) -> np.ndarray:
    try:
        import ml_dtypes
    except ImportError:
        raise QsimError("as_ml_dtypes=True needs the package ml_dtypes, which is not installed") from None
    if not hasattr(ml_dtypes, fmt.name):
        raise QsimError(f"ml_dtypes has no type for {fmt.name}")
    return codes.view(getattr(ml_dtypes, fmt.name))
