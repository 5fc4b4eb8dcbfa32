"""What formats do to a tensor: rounding errors, outliers and their smoothing, salient channels, of a real layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qsim.analysis.error import sqnr_db
from qsim.models import Model
from qsim.notes import Note
from qsim.scheme import Scheme, TensorScheme, get_scheme, quantize

from .quality import Subject, calibration
from .rows import ChannelRow, HistogramRow, SalientRow, TensorErrorRow
from .spec import StudySpec

FORMATS: dict[str, str] = {
    "INT8, one scale": "w8a8-tensor", "INT8, scale per row": "w8a8-channel-token", "FP8, one scale": "fp8-tensor",
    "INT4, groups of 128": "w4a16-g128-sym", "MXFP4": "mxfp4", "NVFP4": "nvfp4",
}  # fmt: skip
"""What the figures call a format -> the scheme whose part for the tensor is used."""
BINS = np.linspace(-0.6, 0.6, 121)
ROWS = 2048
"""Rows of activations that are looked at."""
LOOKED_AT = 4
"""Windows of the calibration text that give them."""
OWN_OUTLIERS = 10.0
"""A model whose largest channel is less than so many times the median one has no outliers to show."""
ALPHA = 0.5
"""SmoothQuant's migration strength (its default)."""
KEPT = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A Linear with what came in: weight (N, K) and inputs (M, K), float32."""

    name: str
    weight: np.ndarray
    inputs: np.ndarray


def outlier_layer(spec: StudySpec, subject: Subject) -> Layer:
    """The Linear behind a norm whose input has the largest channel against the median one: where outliers live.

    Only Linears that a norm feeds are looked at, for their factors can be folded.
    """
    return _widest(subject.model, calibration(subject, spec).tokens[:LOOKED_AT])


def _widest(model: Model, tokens: np.ndarray) -> Layer:
    folded = {names[0] for names in _behind_norms(model)}
    seen: dict[str, list[np.ndarray]] = {}

    def observe(name: str, x: np.ndarray) -> None:
        if name in folded:
            seen.setdefault(name, []).append(x.copy())

    model.logits(tokens, observe=observe)
    inputs = {name: np.concatenate(parts)[:ROWS] for name, parts in seen.items()}
    worst = max(inputs, key=lambda name: spread(inputs[name]))
    return Layer(name=worst, weight=weight_of(model, worst), inputs=inputs[worst])


def _behind_norms(model: Model) -> Iterator[list[str]]:
    """Names of the Linears that each norm of each block feeds; a block's first ones where no norm does."""
    for i in range(model.config.num_hidden_layers):
        behind = [names for before, names in model.fold_groups(i) if "norm" in before]
        yield from behind or [model.block_linears(i)[0]]  # OLMo 2's norms are behind attention and MLP


def spread(x: np.ndarray) -> float:
    """The largest channel of inputs (M, K) over the median one, each by its largest magnitude."""
    largest = np.abs(x).max(axis=0)
    return float(largest.max() / np.median(largest))


def weight_of(model: Model, name: str) -> np.ndarray:
    """The float32 weight of a Linear, dequantised if it has to be."""
    weight = model.linears()[name].weight
    return weight if isinstance(weight, np.ndarray) else weight.dequantize()


def _rounded(x: np.ndarray, scheme: Scheme, part: str) -> np.ndarray:
    """x as a part of the scheme keeps it; a scheme that leaves the part in 16 bit lends it the weight's format."""
    how: TensorScheme = getattr(scheme, part)
    return quantize(x, scheme, part=part if how.is_quantized else "weight").dequantize()  # type: ignore[arg-type]


def error_tables(layer: Layer) -> tuple[tuple[HistogramRow, ...], tuple[TensorErrorRow, ...]]:
    """Histograms of rounding errors over the tensor's rms, and signal-to-noise, of a weight and its input."""
    histograms: list[HistogramRow] = []
    errors: list[TensorErrorRow] = []
    for tensor, x, part in (("weight", layer.weight, "weight"), ("activations", layer.inputs, "activation")):
        rms = float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))
        for fmt, name in FORMATS.items():
            scheme = get_scheme(name)
            y = _rounded(x, scheme, part)
            count, _ = np.histogram(np.clip((y - x) / rms, BINS[0], BINS[-1]), BINS)
            histograms += [
                HistogramRow(tensor=tensor, format=fmt, low=float(low), high=float(high), share=float(c / x.size))
                for low, high, c in zip(BINS[:-1], BINS[1:], count, strict=True)
            ]
            how: TensorScheme = getattr(scheme, part)
            bits = (how if how.is_quantized else scheme.weight).bits_per_element(x.shape)
            relative = float(np.sqrt(np.mean(np.square(y - x, dtype=np.float64))) / rms)
            errors.append(TensorErrorRow(tensor=tensor, format=fmt, bits=float(bits), sqnr_db=sqnr_db(x, y),
                                         rms_relative=relative))  # fmt: skip
    return tuple(histograms), tuple(errors)


def salient_rows(layer: Layer, seed: int) -> Iterator[SalientRow]:
    """Output error with 3-bit weights when some input channels keep 16 bit, chosen in three ways."""
    x, w = layer.inputs.astype(np.float64), layer.weight
    off = (quantize(w, "w3a16-g128").dequantize() - w).astype(np.float64)
    norm = float(np.linalg.norm(x @ w.T.astype(np.float64)))
    orders = {
        "input": np.argsort(-np.abs(x).mean(axis=0), kind="stable"),
        "weight": np.argsort(-np.abs(w).mean(axis=0), kind="stable"),
        "chance": np.random.default_rng(seed).permutation(x.shape[1]),
    }
    for chosen_by, order in orders.items():
        for percent in KEPT:
            left = order[round(percent / 100 * len(order)) :]
            error = float(np.linalg.norm(x[:, left] @ off[:, left].T)) / norm
            yield SalientRow(layer=layer.name, chosen_by=chosen_by, kept_percent=percent, relative_error=error)


def channel_rows(spec: StudySpec, subject: Subject, layer: Layer) -> tuple[tuple[ChannelRow, ...], tuple[str, ...]]:
    """Largest magnitudes of a layer's input channels and weight columns before and after SmoothQuant, and notes.

    A model without outliers of its own lends its layers with synthetic ones; the note says so.
    """
    from qsim.methods.smoothquant import smoothing_scale
    from qsim.models import with_outliers

    model, own = subject.model, spread(layer.inputs)
    notes: tuple[Note, ...] = ()
    if own < OWN_OUTLIERS:
        model = with_outliers(model, seed=spec.quality.seed)
        layer = _widest(model, calibration(subject, spec).tokens[:LOOKED_AT])
        told = f"{subject.model.name} has no outlier channels of its own (largest {own:.1f} times the median)"
        then = "the figure of smoothing shows the same function with synthetic ones"
        notes = (Note("synthetic_outliers", f"{told}: {then}"),)
    shared = next(names for names in _behind_norms(model) if layer.name in names)
    weights = [weight_of(model, name) for name in shared]
    x = np.abs(layer.inputs).max(axis=0)
    w = np.max([np.abs(one).max(axis=0) for one in weights], axis=0)
    s = smoothing_scale(x, weights, ALPHA, layer.name)
    rows = tuple(
        ChannelRow(layer=layer.name, channel=j, activation_max=float(x[j]), weight_max=float(w[j]),
                   smoothed_activation_max=float(x[j] / s[j]), smoothed_weight_max=float(w[j] * s[j]))
        for j in range(len(x))
    )  # fmt: skip
    return rows, notes
