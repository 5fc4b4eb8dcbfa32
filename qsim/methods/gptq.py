"""GPTQ (Frantar et al., arXiv 2210.17323): round column by column, and let the columns to come make up for each error.

With H the Hessian of the layer's squared output error, and U the upper factor of its inverse, H^-1 = U^T U:

    for each column i:   q_i = round(w_i),   e = (w_i - q_i) / U[i, i],   W[:, i:] -= e U[i, i:]

Columns go in blocks; the errors E of a block reach the columns behind it as one product, E @ U. Steps, defaults and
quirks are those of IST-DASLab/gptq (gptq.py and quant.py at 2d65066); options come from GPTQModel, llm-compressor and
GPTAQ (arXiv 2504.02692). `reference.gptq` is the same without any of the arrangements for speed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from qsim._native.blas import one_blas_thread
from qsim._native.threads import for_chunks
from qsim.arrays import real_array
from qsim.errors import QsimError
from qsim.formats import IntFormat
from qsim.scheme import QuantizedTensor, Scheme, get_rule, get_scheme

from .calibration import LayerInputs
from .checks import check_weight, own_rule_refusal, scaled_hessian, where
from .columns import ActOrder, ColumnPlan, plan_columns
from .errors import RowLosses
from .linalg import inverse_factor
from .method import Method, Options, option, scale_rule_option
from .recipe import LayerResult, Recipe
from .record import LayerRecord, measure
from .rtn import rtn
from .scales import ScaleFinder, Scales
from .solver import solve_block

F32 = np.float32
MSE_NORM = 2.4  # quant.py minimises sum |q - x|^2.4
_ROWS = 512  # rows that a thread solves at a time: 8 MiB at 4096 columns, which stays in the last-level cache
_PRODUCT = 1024  # columns of one product: it is subtracted while it is in the cache, and takes no memory to speak of
_LAZY = 512  # columns whose errors reach the rest of the matrix in one product


def gptq(
    weight: Any,
    hessian: Any,
    scheme: str | Scheme,
    act_order: ActOrder = False,
    static_groups: bool = False,
    percdamp: float = 0.01,
    block_size: int = 128,
    mse: bool | float = False,
    scale_rule: str | None = "gptq",
    *,
    ragged: bool = False,
    stored_scales: bool = True,
    correction: Any = None,
    correction_strength: float = 0.25,
    tokens: int | None = None,
    name: str = "",
) -> tuple[QuantizedTensor, LayerRecord]:
    """Quantise one layer with GPTQ.

    Arguments:
        weight: (N, K) float; computed in float32.
        hessian: (K, K), the sum of x x^T over the layer's inputs, float32 or float64. Its scaling does not matter: the
            codes of H and of 2^n H are the same while both are normal numbers.
        scheme: name or value; integer weights with one scale per group, row, block or tensor.
        act_order: process columns by descending diagonal of the Hessian. Groups found on the way are then scattered:
            the result has a `group_index`. `"group_aware"` sorts inside groups and then whole groups, which keeps them
            together (GPTQModel's default).
        static_groups: find all scales from the given weight, beforehand. Act order then leaves no trace in the result
            (llm-compressor's "static").
        percdamp: what is added to the diagonal, as a fraction of its mean over the inputs that are not dead. While the
            Hessian is not positive definite, or its factor is beyond float32, it is doubled, up to 1; after that the
            layer falls back to round-to-nearest. The record says which.
        block_size: columns of a block. It shows in the result: the scale of a group that starts inside a block is found
            from weights that lack the block's own updates, as in the original.
        mse: search for the range of least sum |q - x|^p; True is p = 2.4.
        scale_rule: see `qsim.scheme.quantize`.
        ragged: allow a shorter last group, as a scheme with `ragged=True` does.
        stored_scales: solve with scales as they are stored (float16, say), so that later columns make up for their
            rounding as well. False is the original: float32 scales while solving, rounded at the end.
        correction: (K, K), GPTAQ's sum of (x - x~) x~^T in the scaling of `hessian`; x~ is the input that the quantised
            layers before this one give, x that of the original model.
        correction_strength: GPTAQ's alpha.
        tokens: inputs that the Hessian sums, for a note when they are fewer than K.
        name: the layer, for messages.

    Returns:
        The quantised tensor and its record. The record's `loss` is the original's sum of e^2 / 2, for which
        2 loss = tr(D (H + damp I) D^T), D = W - Q (without `correction`).

    Raises:
        ValueError: shapes that do not fit, arrays of other things than real numbers, masked elements, NaN or Inf (the
            layer is named), a scheme that GPTQ cannot do.

    Corner cases: inputs that are always 0 are dead; their weights become 0, and act order has them last. A Hessian of
    zeros (no token reached the layer) falls back to round-to-nearest.

    Unlike the original, which puts 1 on the diagonal of dead inputs before it takes the mean and sorts: what a 1 is
    beside the others depends on how the Hessian was scaled.
    """
    started = time.perf_counter()
    scheme = get_scheme(scheme).with_ragged() if ragged else get_scheme(scheme)
    check_scheme(scheme, name)
    options = GptqOptions(
        act_order=act_order, static_groups=static_groups, percdamp=percdamp, block_size=block_size, mse=mse,
        scale_rule=scale_rule, stored_scales=stored_scales, correction_strength=correction_strength,
    )  # fmt: skip
    w, norm = check_weight(weight, scheme, name), MSE_NORM if mse is True else float(mse) or None
    h, exponent = scaled_hessian(hessian, w.shape[1], name)
    rule = get_rule(scale_rule, scheme.weight)
    finder = ScaleFinder(how=scheme.weight, rule=rule, norm=norm, stored=stored_scales)
    diagonal = h.diagonal().copy()
    dead = diagonal == 0
    notes: list[str] = []
    known: dict[str, Any] = {
        "hessian": h, "rounding": {"scale_rule": rule.name, "clip": norm}, "tokens": tokens,
        "dead_columns": int(dead.sum()),
        "settings": _told(options, norm, rule.name, correction is not None),
    }  # fmt: skip
    if tokens is not None and tokens < w.shape[1]:
        notes.append(f"{tokens} tokens for {w.shape[1]} columns: the Hessian is not of full rank")

    plan = plan_columns(diagonal, scheme.weight, act_order, static_groups)
    own = int(np.frexp(diagonal.max())[1])  # the factor is that of H 2^-own: the same bits however H was scaled
    factor = _damped_factor(h, plan.order, dead, percdamp, 2.0**-own, notes)
    if factor is None:
        q, record = rtn(w, scheme, hessian=h, scale_rule=rule.name, mse=norm or False, name=name)
        known = {k: known[k] for k in ("tokens", "dead_columns", "settings")}
        return q, replace(record, method="gptq", fallback="rtn", notes=tuple(notes), **known,
                          time_s=time.perf_counter() - started)  # fmt: skip
    u, damp, percent, condition = factor
    p = _correction_matrix(correction, u, plan.order, dead, correction_strength, -own - exponent, name)
    codes, scales, losses = _solve(w, dead, u, p, plan, finder, block_size)
    losses, damp = np.ldexp(losses, own), math.ldexp(damp, own)
    if stored_scales and correction is None and not dead.any():  # then the losses are those of the result
        known["losses"] = RowLosses(loss=losses, damp=damp)
    del u, p, factor

    stored, zeros = scales.result()
    q = QuantizedTensor(
        codes=codes, scales=stored, zeros=zeros, scheme=scheme, group_index=plan.group_index, name=name
    )  # fmt: skip
    time_s = time.perf_counter() - started
    loss, damp = (float(np.ldexp(value, exponent)) for value in (losses.sum(), damp))  # as the Hessian was given
    return q, measure(w, q, "gptq", loss=loss, damp=damp, damp_percent=percent, condition=condition,
                      notes=tuple(notes), time_s=time_s, **known)  # fmt: skip


def _solve(
    w: np.ndarray, dead: np.ndarray, u: np.ndarray, p: np.ndarray, plan: ColumnPlan, finder: ScaleFinder,
    block_size: int,
) -> tuple[np.ndarray, Scales, np.ndarray]:  # fmt: skip
    """Codes (N, K), their scales, and the loss of each row (N,) float64.

    Rows do not meet, so each thread does some at a time, with products of its own; and a few blocks' errors are held
    back from the columns behind them, so that one larger product carries them on. Neither changes the result but for
    rounding.
    """
    n, k = w.shape
    codes, loss, scales = np.empty((n, k), np.uint8), np.zeros(n), Scales(finder, (n, k))
    span, steps = plan.lazy_columns(block_size, _LAZY), list(_steps(n, k))
    if not plan.segments:
        # a whole row is measured before dead columns are cleared, groups after, as in the original
        scales.find_all(w if scales.granularity.kind == "channel" else _alive(w, dead), iter(steps))

    def work(first: int, stop: int) -> None:
        for rows in steps[first:stop]:
            _solve_rows(w, dead, u, p, plan, scales, rows, block_size, span, codes[rows], loss[rows])

    with one_blas_thread():
        for_chunks(len(steps), work, chunk=1)
    return codes, scales, loss


def _solve_rows(
    w: np.ndarray, dead: np.ndarray, u: np.ndarray, p: np.ndarray, plan: ColumnPlan, scales: Scales, rows: slice,
    block_size: int, span: int, codes: np.ndarray, loss: np.ndarray,
) -> None:  # fmt: skip
    """Some rows of `_solve`; `codes` and `loss` are theirs."""
    k = w.shape[1]
    moving = np.take(w[rows], plan.order, axis=1)
    moving[:, dead[plan.order]] = 0
    err, met = np.empty((len(moving), span), F32), np.empty((len(moving), span if p.size else 0), F32)
    for s1 in range(0, k, span):
        s2 = min(s1 + span, k)
        for i1 in range(s1, s2, block_size):
            i2 = min(i1 + block_size, s2)
            for group in plan.segments:
                if i1 <= group.start < i2:
                    scales.find_group(moving[:, group.start : group.stop], rows, group.group)
            solve_block(moving, u, p, (i1, i2), *scales.lanes(rows), plan, scales.finder, err, met, i1 - s1,
                        codes, loss)  # fmt: skip
            _carry_on(moving[:, i2:s2], err[:, i1 - s1 : i2 - s1], u[i1:i2, i2:s2])
            if p.size:
                _carry_on(moving[:, i2:s2], -met[:, i1 - s1 : i2 - s1], p[i1:i2, i2:s2])
        _carry_on(moving[:, s2:], err[:, : s2 - s1], u[s1:s2, s2:])
        if p.size:
            _carry_on(moving[:, s2:], -met[:, : s2 - s1], p[s1:s2, s2:])


def _carry_on(behind: np.ndarray, errors: np.ndarray, u: np.ndarray) -> None:
    for first in range(0, behind.shape[1], _PRODUCT):
        here = slice(first, first + _PRODUCT)
        behind[:, here] -= errors @ u[:, here]


def _steps(rows: int, columns: int) -> Iterator[slice]:
    """Rows solved at a time; fewer where the codes already take half as much memory as the Hessian."""
    step = _ROWS if rows <= 2 * columns else _ROWS // 2
    return (slice(r, min(r + step, rows)) for r in range(0, rows, step))


def _alive(w: np.ndarray, dead: np.ndarray) -> np.ndarray:
    return np.where(dead, F32(0), w) if dead.any() else w


def _damped_factor(
    h: np.ndarray, order: np.ndarray, dead: np.ndarray, percdamp: float, unit: float, notes: list[str]
) -> tuple[np.ndarray, float, float, float] | None:
    """U of H times `unit` with the least damping of the ladder, that damping, its fraction of the mean diagonal, the
    condition."""
    if dead.all():
        notes.append("no calibration token reached this layer")
        return None
    mean = float(h.diagonal()[~dead].mean(dtype=np.float64)) * unit
    percent = percdamp
    while (found := inverse_factor(h, order, dead, percent * mean, unit=unit)) is None:
        if percent >= 1:
            notes.append(f"the Hessian is not positive definite, even with percdamp {percent:g}")
            return None
        percent = min(max(2 * percent, 0.01), 1.0)
    if percent != percdamp:
        notes.append(f"the Hessian is not positive definite with percdamp {percdamp:g}; used {percent:g}")
    return found[0], percent * mean, percent, found[1]


def _correction_matrix(
    correction: Any, u: np.ndarray, order: np.ndarray, dead: np.ndarray, strength: float, exponent: int, name: str
) -> np.ndarray:
    """GPTAQ's P = alpha triu(C U^T, 1) U in processing order, C times 2^exponent; (0, 0) without C."""
    if correction is None:
        return np.zeros((0, 0), F32)
    c = real_array(correction, f"elements of the correction{where(name)}", integers=True)
    c = c if c.dtype == F32 else c.astype(np.float64)
    with np.errstate(over="ignore"):
        c = np.ldexp(c, exponent).astype(F32, copy=False)
    if not np.isfinite(c).all():
        raise QsimError(f"the correction must be finite, and of the Hessian's scaling{where(name)}")
    if c.shape != u.shape:
        raise QsimError(f"correction has the Hessian's shape {u.shape}: got {c.shape}{where(name)}")
    c = np.where(dead, F32(0), c)[np.ix_(order, order)]
    u = np.triu(u)
    return F32(strength) * (np.triu(c @ u.T, 1) @ u)


def check_scheme(scheme: Scheme, name: str = "") -> None:
    """Refuse a scheme that GPTQ cannot do.

    Raises:
        ValueError: weights that are not plain integers; activations that are floats of 8 bits or less.
    """
    reason = _refusal(scheme, where(name))
    if reason is not None:
        raise QsimError(reason)


def _refusal(scheme: Scheme, layer: str = "") -> str | None:
    fmt, activation = scheme.weight.format, scheme.activation
    if not scheme.weight.is_quantized or not isinstance(fmt, IntFormat) or fmt.fraction_bits:
        return f"GPTQ rounds weights to integer codes: got {fmt.name}{layer}; rtn and fp8 round to floats"
    if scheme.weight.has_own_rule:
        return own_rule_refusal(scheme, "GPTQ", layer)
    if activation.is_quantized and not activation.is_integer:
        return (
            "GPTQ's integer weights are multiplied by 16-bit floats or by integers: got "
            f"{activation.format.name} activations{layer}"
        )
    return None


# --- on a model ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GptqOptions(Options):
    """Options of GPTQ; see `gptq`, except that `correction` says whether to find GPTAQ's matrix."""

    act_order: ActOrder = option(
        False, "columns by descending Hessian diagonal", kinds=bool, metavar="[on|off|group-aware]",
        words={"on": True, "off": False, "group-aware": "group_aware"},
    )  # fmt: skip
    static_groups: bool = option(False, "compute all group scales from the original weights first")
    percdamp: float = option(0.01, "damping, as a fraction of the mean diagonal of the Hessian", metavar="P")
    block_size: int = option(128, "columns of a block", flag=None)
    mse: bool | float = option(False, "search each range for the least error", kinds=(bool, float))
    scale_rule: str | None = scale_rule_option("gptq")
    stored_scales: bool = option(True, "solve with scales as they are stored", flag=None)
    correction_strength: float = option(0.25, "GPTAQ's alpha", flag=None)
    correction: bool = option(False, "correct towards what the original model's layers see (GPTAQ)", flag="--gptaq")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.percdamp < float("inf"):
            raise QsimError(f"percdamp is a fraction of the mean diagonal, at least 0: got {self.percdamp}")
        if self.block_size < 1:
            raise QsimError(f"block_size must be at least 1: got {self.block_size}")


def _told(options: GptqOptions, norm: float | None, rule: str, corrected: bool) -> dict[str, Any]:
    """What the record of a layer says of the options."""
    told = {**options.settings(), "mse": norm or False, "scale_rule": rule}
    del told["correction"]
    if not corrected:
        del told["correction_strength"]
    return told


def _recipe(scheme: Scheme, options: GptqOptions) -> Recipe:
    get_rule(options.scale_rule, scheme.weight)
    settings = options.settings()
    return Recipe(
        method="gptq", scheme=scheme, settings=settings, quantised_prefix=True, correction=options.correction,
        scattered=options.act_order is True and not options.static_groups,
        quantize=partial(_layer, scheme, {k: v for k, v in settings.items() if k != "correction"}),
    )  # fmt: skip


METHOD = Method(
    name="gptq", title="GPTQ", order=20, default_scheme="w4a16-g128", options=GptqOptions, recipe=_recipe, marker="s",
    says="rounds column by column and passes each error on, by the Hessian of the inputs",
    refuses=_refusal, suits=lambda scheme: not scheme.activation.is_quantized, rank=20,
    work=lambda n, k: 2 / 3 * float(k) ** 3 + 3.0 * n * k * min(k, 1024),
    memory=lambda n, k, recipe: 4 * k * k * (1 + 3 * int(recipe.correction)),
)  # fmt: skip


def _layer(
    scheme: Scheme, options: dict[str, Any], weight: np.ndarray, inputs: LayerInputs | None, scale: Any, name: str
) -> LayerResult:
    assert inputs is not None
    return gptq(weight, inputs.hessian, scheme, correction=inputs.correction, tokens=inputs.tokens, name=name,
                **options)  # fmt: skip
