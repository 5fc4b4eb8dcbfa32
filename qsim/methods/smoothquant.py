"""SmoothQuant (Xiao et al., arXiv 2211.10438): move the difficulty of outlier channels from activations into weights.

    s_j = max |x_j|^alpha / max |w_j|^(1 - alpha),      y = (x / s) (W s)^T

so that both sides round well to 8 bits. 1/s goes into the norm before; o_proj and down_proj, which have no norm before
them, are rounded as they are. Formulae are those of mit-han-lab/smoothquant (smooth.py, fake_quant.py at c61476d).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from qsim.arrays import real_array
from qsim.errors import QsimError
from qsim.scheme import (
    QuantizedTensor,
    Scheme,
    get_scheme,
    quantize,
    shared_scale,
    tensor_scale_of,
    with_tensor_scale,
)

from .activations import input_scale_of, joint_error
from .calibration import LayerInputs
from .checks import check_hessian, check_weight, where
from .folding import Fold
from .method import Method, Options, option, scale_rule_option
from .recipe import BlockView, LayerResult, Recipe
from .record import LayerRecord, measure
from .scales import shared_details

F32 = np.float32
LEVELS = {"O1": "w8a8-tensor-token", "O2": "w8a8-tensor-tensor", "O3": "w8a8-tensor-tensor-static"}
"""The paper's three: weights per tensor; activations per token, per tensor, per tensor with a stored scale."""
ALPHAS = tuple(i / 20 for i in range(21))


@dataclass(frozen=True, kw_only=True, eq=False)
class AlphaSearch:
    """The alpha of least output error with both sides rounded; `losses` are (alpha, loss) of all, None is no
    smoothing."""

    scale: np.ndarray
    alpha: float | None
    loss: float
    unsmoothed_loss: float
    losses: tuple[tuple[float | None, float], ...]


def smoothquant(
    weight: Any,
    scheme: str | Scheme = "w8a8-channel-token",
    *,
    max_abs: Any,
    alpha: float | None = 0.5,
    inputs: Any = None,
    hessian: Any = None,
    scale_rule: str | None = None,
    ragged: bool = False,
    tokens: int | None = None,
    name: str = "",
) -> tuple[QuantizedTensor, LayerRecord]:
    """Quantise one layer with SmoothQuant. For Linears that share their input see `quantize_model`.

    Arguments:
        weight: (N, K) float; computed in float32.
        scheme: name or value, or one of the paper's levels `O1`, `O2`, `O3`.
        max_abs: (K,) largest |x| of each channel.
        alpha: how much moves into the weight, 0 to 1; None searches 0, 0.05, ..., 1 and no smoothing, which needs
            `inputs`.
        inputs: (tokens, K) sampled inputs, for the search and for the record's joint error.
        hessian: (K, K), for the record.
        scale_rule, ragged: as `qsim.scheme.quantize`.

    Returns:
        The quantised tensor of weight * s, with the activation's scale when the scheme has a stored one, and its
        record. `record.channel_scale` is s: the norm before must divide its weight by it.

    Raises:
        ValueError: shapes that do not fit, NaN or Inf (the layer is named), alpha outside 0 .. 1, a search without
            inputs.
    """
    started = time.perf_counter()
    scheme = get_level(scheme).with_ragged() if ragged else get_level(scheme)
    w = check_weight(weight, scheme, name)
    x = None if inputs is None else real_array(inputs, f"inputs{where(name)}", dtype=F32)
    max_abs = real_array(max_abs, f"max_abs{where(name)}", integers=True, dtype=F32)
    found = None
    if alpha is None:
        if x is None:
            raise QsimError(f"the search for alpha compares outputs: give inputs{where(name)}")
        found = search_alpha([w], scheme, max_abs, x, scale_rule=scale_rule, name=name)
        s = found.scale
    else:
        s = smoothing_scale(max_abs, [w], alpha, name)
    h = None if hessian is None else check_hessian(hessian, w.shape[1], name)
    told = {"alpha": alpha} if found is None else details(found)
    return _quantize(w, scheme, s, max_abs, scale_rule, hessian=h, inputs=x, tokens=tokens,
                     settings={"alpha": alpha, "scale_rule": scale_rule}, told=told, name=name,
                     started=started)  # fmt: skip


def _quantize(
    w: np.ndarray, scheme: Scheme, s: np.ndarray, max_abs: np.ndarray, scale_rule: str | None, *,
    hessian: np.ndarray | None, inputs: np.ndarray | None, tokens: int | None, settings: dict[str, Any],
    told: dict[str, Any] | None = None, name: str, started: float | None = None, tensor_scale: float | None = None,
) -> LayerResult:  # fmt: skip
    """Scale, find the activation's scale if it is stored, round."""
    started = time.perf_counter() if started is None else started
    scaled = w * s
    input_scale = input_scale_of(float((max_abs / s).max()), scheme, name)
    q = quantize(scaled, scheme, scale_rule=scale_rule, input_scale=input_scale, name=name)
    shared = shared_details(tensor_scale_of(q), tensor_scale)
    q = with_tensor_scale(q, scaled, tensor_scale, scale_rule=scale_rule)
    time_s = time.perf_counter() - started
    known: dict[str, Any] = {"original": (w, hessian)}
    if hessian is not None:
        known["hessian"] = hessian / np.outer(s, s)
    if inputs is not None:
        plain = quantize(w, scheme, scale_rule=scale_rule,
                         input_scale=input_scale_of(float(max_abs.max()), scheme, name))  # fmt: skip
        known |= {"joint_error": joint_error(inputs / s, scaled, q), "rtn_joint_error": joint_error(inputs, w, plain)}
    return q, measure(scaled, q, "smoothquant", rounding={"scale_rule": scale_rule}, tokens=tokens, time_s=time_s,
                      channel_scale=s, settings=settings, details={**shared, **(told or {})}, **known)  # fmt: skip


def get_level(scheme: str | Scheme) -> Scheme:
    """A scheme, or the one of `O1`, `O2` or `O3`."""
    return get_scheme(LEVELS.get(scheme, scheme) if isinstance(scheme, str) else scheme)


def details(found: AlphaSearch) -> dict[str, Any]:
    """What the record says of the search."""
    return {"alpha": found.alpha, "objective": found.loss, "rtn_objective": found.unsmoothed_loss}


def smoothing_scale(max_abs: Any, weights: Sequence[np.ndarray], alpha: float, name: str = "") -> np.ndarray:
    """s of the input channels that some Linears share.

    s_j = clamp(max |x_j|^alpha / clamp(max |w_j|, 1e-5)^(1 - alpha), 1e-5), the maximum over all their rows.

    Arguments:
        max_abs: (K,) largest |x|. weights: (N_i, K) float32. alpha: 0 to 1.

    Returns:
        (K,) float32, at least 1e-5.

    Raises:
        ValueError: another length, NaN or Inf, alpha outside 0 .. 1.
    """
    x = real_array(max_abs, f"max_abs{where(name)}", integers=True, dtype=F32)
    if x.shape != (weights[0].shape[1],):
        raise QsimError(f"max_abs has one entry an input, {(weights[0].shape[1],)}: got {x.shape}{where(name)}")
    if not np.isfinite(x).all() or (x < 0).any():
        raise QsimError(f"max_abs must be finite and at least 0: an activation was NaN or Inf{where(name)}")
    if not 0 <= alpha <= 1:
        raise QsimError(f"alpha is from 0 (leave activations) to 1 (leave weights): got {alpha}{where(name)}")
    largest = np.max([np.abs(w).max(axis=0) for w in weights], axis=0)
    largest = np.maximum(largest, F32(1e-5))
    s = np.power(x, F32(alpha)) / np.power(largest, F32(1 - alpha))
    return np.maximum(s, F32(1e-5)).astype(F32)


def search_alpha(
    weights: Sequence[np.ndarray],
    scheme: Scheme,
    max_abs: Any,
    inputs: np.ndarray,
    *,
    alphas: Sequence[float] = ALPHAS,
    scale_rule: str | None = None,
    name: str = "",
    loss: Callable[[np.ndarray], float] | None = None,
) -> AlphaSearch:
    """The alpha whose rounded activations and weights give the outputs nearest to the exact ones, on sampled inputs.

    Arguments:
        weights: (N_i, K) float32 that share the input. inputs: (tokens, K) float32.
        loss: function of s, in place of the sum of squared output errors of the Linears.
    """
    peaks = real_array(max_abs, f"max_abs{where(name)}", integers=True, dtype=F32)

    def of(s: np.ndarray) -> float:
        input_scale = input_scale_of(float((peaks / s).max()), scheme, name)
        total = 0.0
        for w in weights:
            q = quantize(w * s, scheme, scale_rule=scale_rule, input_scale=input_scale, name=name)
            total += joint_error(inputs / s, w * s, q, relative=False)
        return total

    loss = loss or of
    one = np.ones(weights[0].shape[1], F32)
    best: tuple[float, float | None, np.ndarray] = (loss(one), None, one)
    losses: list[tuple[float | None, float]] = [(None, best[0])]
    for alpha in alphas:
        s = smoothing_scale(max_abs, weights, alpha, name)
        value = loss(s)
        losses.append((alpha, value))
        if value < best[0]:
            best = value, alpha, s
    return AlphaSearch(scale=best[2], alpha=best[1], loss=best[0], unsmoothed_loss=losses[0][1], losses=tuple(losses))


# --- on a model ---------------------------------------------------------------------------------------------

SAMPLE_ROWS = 512  # inputs that the search for alpha compares outputs on


@dataclass(frozen=True, kw_only=True)
class SmoothQuantOptions(Options):
    """Options of SmoothQuant; `alpha` None searches one for each norm."""

    alpha: float | None = option(
        0.5, "how much moves into the weights: 0 to 1, or `search`", words={"search": None}, metavar="A", optional=True
    )
    scale_rule: str | None = scale_rule_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise QsimError(f"alpha is from 0 (leave activations) to 1 (leave weights): got {self.alpha}")


def _refusal(scheme: Scheme) -> str | None:
    if not scheme.activation.is_quantized:
        return (
            f"SmoothQuant is for quantised activations: got {scheme.activation.format.name}; use awq for weights alone"
        )
    return None


def _recipe(scheme: Scheme, options: SmoothQuantOptions) -> Recipe:
    alpha, scale_rule = options.alpha, options.scale_rule
    return Recipe(
        method="smoothquant", scheme=scheme, settings=options.settings(), moments=True, sample=SAMPLE_ROWS,
        fold=partial(_fold, scheme, alpha, scale_rule), quantize=partial(_layer, scheme, alpha, scale_rule),
        shared_scale=partial(shared_scale, scheme=scheme, scale_rule=scale_rule),
    )  # fmt: skip


METHOD = Method(
    name="smoothquant", title="SmoothQuant", says="moves outliers of the activations into the weights", order=40,
    default_scheme="w8a8-channel-token", schemes=LEVELS, options=SmoothQuantOptions, recipe=_recipe, marker="^",
    rank=10, refuses=_refusal,
    unusual=lambda scheme: None if scheme.weight.is_integer and scheme.activation.is_quantized else
        "smoothquant is for integer weights and activations",
)  # fmt: skip


def _fold(scheme: Scheme, alpha: float | None, scale_rule: str | None, view: BlockView) -> list[Fold]:
    """The factor of each norm. Outputs of attention and of the MLP's activation have no norm before the next Linear."""
    out = []
    for source, names in view.model.fold_groups(view.index):
        if source in view.inputs:
            continue  # a Linear
        inputs, weights = view.inputs[view.observed(source, names)], [view.weight(n) for n in names]
        assert inputs.max_abs is not None
        if alpha is not None:
            s, told = smoothing_scale(inputs.max_abs, weights, alpha, names[0]), {"alpha": alpha}
        else:
            assert inputs.sample is not None
            found = search_alpha(weights, scheme, inputs.max_abs, inputs.sample, scale_rule=scale_rule, name=names[0])
            s, told = found.scale, details(found)
        out.append(Fold(source=source, names=tuple(names), scale=s, details=told))
    return out


def _layer(
    scheme: Scheme,
    alpha: float | None,
    scale_rule: str | None,
    weight: np.ndarray,
    inputs: LayerInputs | None,
    scale: np.ndarray | None,
    name: str,
    tensor_scale: float | None = None,
) -> LayerResult:
    assert inputs is not None
    assert inputs.max_abs is not None
    s = np.ones(weight.shape[1], F32) if scale is None else scale
    return _quantize(weight, scheme, s, inputs.max_abs, scale_rule, hessian=inputs.hessian, inputs=inputs.sample,
                     tokens=inputs.tokens, settings={"alpha": alpha, "scale_rule": scale_rule}, name=name,
                     tensor_scale=tensor_scale)  # fmt: skip
