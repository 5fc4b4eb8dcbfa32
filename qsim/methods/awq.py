"""AWQ (Lin et al., arXiv 2306.00978): scale up the input channels that matter before rounding, and the inputs down.

    W' = Q(W diag(s)) diag(s)^-1,    s_j = (mean |x_j|)^r,    r from a grid, by the error of the block's output

A weight whose input is large is rounded on a finer grid; diag(s)^-1 goes into the norm or Linear before. Then a search
for the range of each group. Formulae and defaults are those of mit-han-lab/llm-awq (auto_scale.py, auto_clip.py at
d6e797a); `duo` is AutoAWQ's (quantizer.py at 88e4c76).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np

from qsim.arrays import real_array
from qsim.errors import QsimError
from qsim.formats import BlockFormat
from qsim.models import Model
from qsim.scheme import Granularity, QuantizedTensor, Scheme, get_scheme, quantize, region_range
from qsim.scheme.tensor import expand

from .calibration import LayerInputs
from .checks import check_weight, own_rule_refusal, scaled_hessian, where
from .folding import Fold
from .linalg import dot, output_error
from .method import Method, Options, option, scale_rule_option
from .passes import by_windows
from .recipe import BlockView, LayerResult, Recipe
from .record import LayerRecord, measure

F32 = np.float32
Formula: TypeAlias = Literal["awq", "duo"]
Loss: TypeAlias = Callable[[Sequence[np.ndarray]], float]
GRID = 20
_ROWS = 256  # rows of the clip search at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class ScaleSearch:
    """What the grid search found.

    Arguments:
        scale: (K,) float32, the factor of each input channel.
        ratio: the r that gave it; None is the identity beside `duo`'s grid.
        loss: of the best; rtn_loss: of scale 1, which is in every grid.
        losses: (ratio, loss) of all.
    """

    scale: np.ndarray
    ratio: float | None
    loss: float
    rtn_loss: float
    losses: tuple[tuple[float | None, float], ...]


def awq(
    weight: Any,
    scheme: str | Scheme,
    *,
    mean_abs: Any,
    hessian: Any,
    formula: Formula = "awq",
    grid: int = GRID,
    clip: bool = True,
    scale_rule: str | None = None,
    ragged: bool = False,
    tokens: int | None = None,
    name: str = "",
) -> tuple[QuantizedTensor, LayerRecord]:
    """Quantise one layer with AWQ, the error of its own output as the objective.

    For Linears that share their input, and the output of a whole block as the objective, see `quantize_model`; it uses
    `search_scale` and `search_clip` below.

    Arguments:
        weight: (N, K) float; computed in float32.
        scheme: name or value, any weight format with a scale.
        mean_abs: (K,) mean of |x| over tokens.
        hessian: (K, K) sum of x x^T in any scaling, float32 or float64.
        formula: `awq`, s = x^r; `duo`, s = x^r / (w^(1-r) + 1e-4) with w the mean of |weight| over its group's largest.
        grid: number of ratios, 0, 1/grid, ...
        clip: search each group's range after scaling.
        scale_rule: None is `awq` for integers, else the format's default.
        ragged: allow a shorter last group, as a scheme with `ragged=True` does.
        tokens, name: for the record and messages.

    Returns:
        The quantised tensor of weight * s and its record. `record.channel_scale` is s: the layer before must divide its
        outputs by it. Errors are those of (Q(W s) / s, x).

    Raises:
        ValueError: shapes that do not fit, NaN or Inf (the layer is named).
    """
    started = time.perf_counter()
    scheme = get_scheme(scheme).with_ragged() if ragged else get_scheme(scheme)
    reason = own_rule_refusal(scheme, "AWQ", where(name))
    if reason is not None:
        raise QsimError(reason)
    w = check_weight(weight, scheme, name)
    h, exponent = scaled_hessian(hessian, w.shape[1], name)
    rule = rule_for(scheme, scale_rule)
    found = search_scale(
        [w], scheme, mean_abs, lambda ws: float(np.ldexp(output_error(ws[0] - w, h), exponent)), formula=formula,
        grid=grid, scale_rule=rule, name=name,
    )  # fmt: skip
    settings = {"formula": formula, "grid": grid, "clip": clip, "scale_rule": rule}
    return _quantize(w, h, scheme, found.scale, settings, told=_told(found), tokens=tokens, name=name, started=started)


def _quantize(
    w: np.ndarray, h: np.ndarray, scheme: Scheme, s: np.ndarray, settings: dict[str, Any], *,
    told: dict[str, Any] | None = None, tokens: int | None, name: str, started: float | None = None,
) -> LayerResult:  # fmt: skip
    """Scale, find the ranges, round."""
    started = time.perf_counter() if started is None else started
    rule, scaled, details = settings["scale_rule"], w * s, dict(told or {})
    h_scaled = h / np.outer(s, s)
    limits = search_clip(scaled, h_scaled, scheme, scale_rule=rule) if settings["clip"] else None
    if limits is not None:
        full = _amax(scaled, scheme)
        shrink = np.where(full > 0, limits / np.where(full > 0, full, F32(1)), F32(1))
        details |= {"clipped_groups": float((shrink < 1).mean()), "mean_shrink": float(shrink.mean())}
    q = quantize(clamp(scaled, limits, scheme), scheme, scale_rule=rule, name=name)
    time_s = time.perf_counter() - started
    return q, measure(scaled, q, "awq", hessian=h_scaled, original=(w, h), rounding={"scale_rule": rule},
                      tokens=tokens, time_s=time_s, channel_scale=s, settings=settings, details=details)  # fmt: skip


def _told(found: ScaleSearch) -> dict[str, Any]:
    """What records say of a search."""
    return {"ratio": found.ratio, "objective": found.loss, "rtn_objective": found.rtn_loss,
            "scale_range": float(found.scale.max() / found.scale.min())}  # fmt: skip


def rule_for(scheme: Scheme, scale_rule: str | None) -> str | None:
    """AWQ's own rule for integers; None, the format's default, for floats."""
    return scale_rule or ("awq" if scheme.weight.is_integer else None)


# --- the scale ----------------------------------------------------------------------------------------------


def candidates(
    mean_abs: np.ndarray, weights: Sequence[np.ndarray], formula: Formula, grid: int, group_size: int | None
) -> Iterator[tuple[float | None, np.ndarray]]:
    """(ratio, scale) of the whole grid; scale 1 first.

    The formula's least factor of 1e-4 is the originals', for inputs near 1. Where the largest input is below 2^-20 or
    above 2^40 (a nearly silent expert), inputs count as multiples of about that one: it is their ratios that matter.
    """
    exponent = int(np.frexp(mean_abs.max())[1])
    x = np.ldexp(mean_abs, 0 if -20 <= exponent <= 40 else -exponent).astype(F32)
    if formula == "duo":
        w = weight_mean(weights, group_size)
        yield None, np.ones_like(x)  # at r = 0 this formula is 1 / w, not round-to-nearest
    for i in range(grid):
        ratio = i / grid
        s = np.power(x, F32(ratio))
        if formula == "duo":
            s = s / (np.power(w, F32(1 - ratio)) + F32(1e-4))
        s = np.maximum(s, F32(1e-4))
        s = s / np.sqrt(s.max() * s.min())
        yield ratio, np.where(np.isfinite(s), s, F32(1))


def weight_mean(weights: Sequence[np.ndarray], group_size: int | None) -> np.ndarray:
    """AutoAWQ's w of each channel: the mean over rows of |w| / (largest |w| of its group + 1e-6). (K,) float32."""
    w = np.abs(np.concatenate(weights))
    kind = Granularity(kind="channel") if group_size is None else Granularity(kind="group", columns=group_size)
    w /= expand(region_range(w, kind)[1], kind, w.shape) + F32(1e-6)
    return w.mean(axis=0)


def search_scale(
    weights: Sequence[np.ndarray],
    scheme: Scheme,
    mean_abs: Any,
    loss: Loss,
    *,
    formula: Formula = "awq",
    grid: int = GRID,
    scale_rule: str | None = None,
    name: str = "",
) -> ScaleSearch:
    """The scale of the grid whose quantised weights lose least; the first of equals.

    Arguments:
        weights: the Linears (N_i, K) that share the input, float32.
        mean_abs: (K,) mean of |x|.
        loss: function of the weights Q(W s) / s, in the order of `weights`; less is better. NaN never wins.
        name: for messages.

    Raises:
        ValueError: `mean_abs` of another length, negative, NaN or Inf; an empty grid; no finite loss.
    """
    x = real_array(mean_abs, f"mean_abs{where(name)}", integers=True, dtype=np.float64)
    if x.shape != (weights[0].shape[1],):
        raise QsimError(f"mean_abs has one entry an input, {(weights[0].shape[1],)}: got {x.shape}{where(name)}")
    if not np.isfinite(x).all() or (x < 0).any():
        raise QsimError(f"mean_abs must be finite and at least 0: an activation was NaN or Inf{where(name)}")
    if formula not in ("awq", "duo"):
        raise QsimError(f"formula is awq or duo: got {formula!r}")
    if grid < 1:
        raise QsimError(f"grid must be at least 1: got {grid}")
    best: tuple[float, float | None, np.ndarray] | None = None
    losses = []
    for ratio, s in candidates(x, weights, formula, grid, scheme.weight.group_size):
        rounded = [quantize(w * s, scheme, scale_rule=scale_rule, name=name).dequantize() / s for w in weights]
        value = loss(rounded)
        losses.append((ratio, value))
        if np.isfinite(value) and (best is None or value < best[0]):
            best = value, ratio, s
    if best is None:
        raise QsimError(f"no scale of the grid has a finite loss{where(name)}")
    return ScaleSearch(scale=best[2], ratio=best[1], loss=best[0], rtn_loss=losses[0][1], losses=tuple(losses))


# --- the range ----------------------------------------------------------------------------------------------


def search_clip(
    weight: np.ndarray,
    hessian: np.ndarray,
    scheme: Scheme,
    *,
    steps: int = 20,
    most: float = 0.5,
    scale_rule: str | None = None,
) -> np.ndarray | None:
    """The largest magnitude that each group keeps: the one of least output error of the group alone.

    llm-awq sums that error over about 512 tokens, (x w - x q)^2; over tokens it is (w - q)^T H_g (w - q) with the
    group's own block H_g of the Hessian, so here all tokens count.

    Arguments:
        weight: (N, K) float32, scaled. hessian: (K, K) of the scaled inputs.
        Both may be in any units: errors are compared in units of the largest weight.
        steps, most: magnitudes 1 - i/steps for i in 0 .. most * steps - 1; the first best wins.

    Returns:
        (N, G) float32; None for block formats and for scales that span rows, which have no range of their own.
    """
    how = scheme.weight
    assert how.granularity is not None
    if isinstance(how.format, BlockFormat) or how.granularity.kind not in ("channel", "group"):
        return None
    n, k = weight.shape
    size = how.group_size or k
    limits = np.empty((n, -(-k // size)), F32)
    exponent = int(np.frexp(np.abs(weight).max())[1])
    unit = F32(1) if abs(exponent) <= 20 else np.ldexp(F32(1), min(-exponent, 126))  # squares stay in float32's range
    one = scheme.replace(weight=replace(how, granularity=Granularity(kind="channel")))
    for g in range(limits.shape[1]):
        columns = slice(g * size, min((g + 1) * size, k))
        block = np.ascontiguousarray(hessian[columns, columns])
        for r in range(0, n, _ROWS):
            w = np.ascontiguousarray(weight[r : r + _ROWS, columns])
            full = np.abs(w).max(axis=1)
            best, chosen = np.full(len(w), np.inf), full.copy()
            for i in range(int(most * steps)):
                limit = full * F32(1 - i / steps)
                kept = np.clip(w, -limit[:, None], limit[:, None])
                d = (quantize(kept, one, scale_rule=scale_rule).dequantize() - w) * unit
                error = np.einsum("nk,nk->n", d @ block, d)
                better = error < best
                best[better], chosen[better] = error[better], limit[better]
            limits[r : r + _ROWS, g] = chosen
    return limits


def clamp(weight: np.ndarray, limits: np.ndarray | None, scheme: Scheme) -> np.ndarray:
    """Weights (N, K) held within their group's largest magnitude (N, G)."""
    if limits is None:
        return weight
    assert scheme.weight.granularity is not None
    bound = expand(limits, scheme.weight.granularity, weight.shape)
    return np.clip(weight, -bound, bound)


def _amax(weight: np.ndarray, scheme: Scheme) -> np.ndarray:
    assert scheme.weight.granularity is not None
    low, high = region_range(weight, scheme.weight.granularity)
    return np.maximum(np.abs(low), np.abs(high))


# --- on a model ---------------------------------------------------------------------------------------------

VIEW_WINDOWS = 8  # windows on which outputs of attention and MLP are compared
_UNCLIPPED = ("q_proj", "k_proj", "qkv_proj", "query_key_value")
"""auto_clip.py: clipping these moves attention scores too much."""


@dataclass(frozen=True, kw_only=True)
class AwqOptions(Options):
    """Options of AWQ; see `awq`. `view_windows` calibration windows, spread over the text, serve to compare outputs."""

    formula: Formula = option(
        "awq", "how scales follow from activations", kinds=(), words={"awq": "awq", "duo": "duo"}, metavar="[awq|duo]"
    )
    grid: int = option(GRID, "candidates of the search for scales", flag=None)
    clip: bool = option(True, "do not search for the ranges that lose least", flag="--no-clip")
    scale_rule: str | None = scale_rule_option()
    view_windows: int = option(VIEW_WINDOWS, "windows that outputs are compared on", flag=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid < 1 or self.view_windows < 1:
            raise QsimError(f"grid and view_windows must be at least 1: got {self.grid} and {self.view_windows}")


def _recipe(scheme: Scheme, options: AwqOptions) -> Recipe:
    """Scales by the error of attention's or the MLP's output, folded into the norm or Linear before; then ranges."""
    settings = {**options.settings(), "scale_rule": rule_for(scheme, options.scale_rule)}
    own = {k: v for k, v in settings.items() if k != "view_windows"}
    return Recipe(
        method="awq", scheme=scheme, settings=settings, moments=True, view_windows=options.view_windows,
        fold=partial(_fold, scheme, own), quantize=partial(_layer, scheme, own),
    )  # fmt: skip


METHOD = Method(
    name="awq", title="AWQ", says="scales salient input channels up before rounding", order=30,
    default_scheme="w4a16-g128", options=AwqOptions, recipe=_recipe, marker="D", rank=30,
    refuses=lambda scheme: own_rule_refusal(scheme, "AWQ"),
    unusual=lambda scheme: None if scheme.weight.is_integer and not scheme.activation.is_quantized else
        "awq is for integer weights with 16-bit activations",
    searched=lambda candidates: {"grid": candidates, "view_windows": 2},
    work=lambda n, k: 25.0 * n * k * min(k, 1024),
)  # fmt: skip


def _fold(scheme: Scheme, settings: dict[str, Any], view: BlockView) -> list[Fold]:
    out = []
    seen = view.sublayer_inputs()
    for source, names in view.model.fold_groups(view.index):
        inputs, weights = view.inputs[view.observed(source, names)], [view.weight(n) for n in names]
        loss = (
            _own_loss(inputs, weights[0])
            if source in view.inputs
            else _output_loss(view, names, seen[view.observed(source, names)])
        )
        found = search_scale(weights, scheme, inputs.mean_abs, loss, formula=settings["formula"],
                             grid=settings["grid"], scale_rule=settings["scale_rule"], name=names[0])  # fmt: skip
        out.append(Fold(source=source, names=tuple(names), scale=found.scale, details=_told(found)))
    return out


def _own_loss(inputs: LayerInputs, weight: np.ndarray) -> Loss:
    """A Linear behind a Linear is compared on its own output, over all tokens."""
    assert inputs.hessian is not None
    h = inputs.hessian
    return lambda rounded: output_error(rounded[0] - weight, h)


def _output_loss(view: BlockView, names: Sequence[str], x: np.ndarray) -> Loss:
    """Linears behind a norm are compared on what attention or MLP adds to the residual."""
    model, i = view.model, view.index
    attention = names[0] in model.block_linears(i)[0]

    def output(one: Model) -> np.ndarray:
        out = np.empty(x.shape, F32)

        def work(first: int, stop: int) -> None:
            windows = x[first:stop]
            out[first:stop] = one.attention_output(i, windows) if attention else one.mlp_output(i, windows)

        by_windows(one, i, x.shape, work)
        return out

    target = output(model)

    def loss(rounded: Sequence[np.ndarray]) -> float:
        d = output(model.replace(tensors={f"{n}.weight": w for n, w in zip(names, rounded, strict=True)}))
        d -= target
        return dot(d.reshape(-1, d.shape[-1]), d.reshape(-1, d.shape[-1])) / d.size

    return loss


def _layer(
    scheme: Scheme,
    settings: dict[str, Any],
    weight: np.ndarray,
    inputs: LayerInputs | None,
    scale: np.ndarray | None,
    name: str,
) -> LayerResult:
    assert inputs is not None
    assert inputs.hessian is not None
    s = np.ones(weight.shape[1], F32) if scale is None else scale
    clip = settings["clip"] and not name.endswith(_UNCLIPPED)
    return _quantize(weight, inputs.hessian, scheme, s, {**settings, "clip": clip}, tokens=inputs.tokens, name=name)
