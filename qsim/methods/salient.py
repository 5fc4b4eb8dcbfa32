"""Salient channels: few inputs of a layer are large, and the weights that meet them are the ones to round with care.

AWQ starts from this (Lin et al., arXiv 2306.00978, section 3.1 and table 1): round all weights to nearest, but keep the
weights of 0.1, 1 or 3 % of the input channels in float16. Chosen by the size of the activations that is nearly
the float model; chosen by the size of the weights, or by chance, it is hardly better than rounding everything. Kept
channels are a lesson, not a format: no kernel wants a matrix of two precisions, so AWQ scales instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from qsim.arrays import whole_array
from qsim.errors import QsimError
from qsim.models import Evaluation, Model, evaluate
from qsim.models.evaluation import Reference
from qsim.scheme import QuantizedTensor, Scheme, get_scheme, quantize

from .calibration import calibration_of
from .checks import check_weight, where

if TYPE_CHECKING:
    import pandas as pd

F32 = np.float32
Choice: TypeAlias = Literal["activation", "weight", "random"]
CHOICES: tuple[Choice, ...] = ("activation", "weight", "random")
SHARES = (0.001, 0.01, 0.03)
_FLOAT16_MAX = 65504.0


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelSize:
    """How large the inputs of a layer are, channel by channel.

    Arguments:
        tokens: how many were seen.
        mean_abs: (K,) float64, mean of |x|.
        mean_square: (K,) float64, mean of x^2.
    """

    tokens: int
    mean_abs: np.ndarray
    mean_square: np.ndarray

    @property
    def half(self) -> float:
        """The smallest share of the channels that holds half of the inputs' energy; 0.5 when all are alike.

        Were all weights rounded equally badly, half of the error of the layer's output would come from these.
        """
        energy = np.sort(self.mean_square)[::-1].cumsum()
        return float(np.searchsorted(energy, energy[-1] / 2) + 1) / energy.size if energy[-1] else 0.5


def channel_sizes(model: Model, calibration: Any, *, windows: int | None = None) -> dict[str, ChannelSize]:
    """The sizes of every block Linear's inputs on a text.

    Arguments:
        calibration: text, UTF-8 bytes, token ids or a `Calibration`; `windows` of it, see `calibration_of`.

    Raises:
        ValueError: too little text; NaN or Inf in an input, the layer is named.
    """
    given = calibration_of(model, calibration, windows=windows)
    first = {name: np.zeros(one.in_features) for name, one in model.linears().items()}
    second = {name: np.zeros_like(total) for name, total in first.items()}
    tokens = dict.fromkeys(first, 0)

    def observe(name: str, x: np.ndarray) -> None:
        if name not in tokens:
            return
        wide = x.astype(np.float64)
        if not np.isfinite(wide).all():
            raise QsimError(f"activations must be finite: calibration gives NaN or Inf{where(name)}")
        first[name] += np.abs(wide).sum(axis=0)
        second[name] += np.square(wide).sum(axis=0)
        tokens[name] += len(wide)

    for batch in given.batches():
        model.logits(given.tokens[batch], observe=observe, last_only=True)
    seen = {name: max(count, 1) for name, count in tokens.items()}  # an expert that no token chose has sizes of 0
    return {k: ChannelSize(tokens=tokens[k], mean_abs=first[k] / n, mean_square=second[k] / n)
            for k, n in seen.items()}  # fmt: skip


def rank_channels(
    by: Choice, weight: np.ndarray, size: ChannelSize | None = None, *, seed: int | Sequence[int] = 0, name: str = ""
) -> np.ndarray:
    """(K,) the input channels of a weight (N, K), those to keep first.

    Arguments:
        by: `activation`: by the mean of |x|, for which `size` is needed; `weight`: by the L2 norm of the channel's
            weights; `random`: by chance.
        seed: of chance.

    Raises:
        ValueError: an unknown choice; no sizes, or of another K.
    """
    if by not in CHOICES:
        raise QsimError(f"channels are chosen by {', '.join(CHOICES)}: got {by!r}")
    k = weight.shape[1]
    if by == "random":
        return np.random.default_rng(seed).permutation(k)
    if by == "weight":
        return np.argsort(-np.linalg.norm(weight.astype(np.float64), axis=0), kind="stable")
    if size is None or size.mean_abs.shape != (k,):
        got = "none" if size is None else str(size.mean_abs.shape)
        raise QsimError(f"a choice by activation needs the size of every input, ({k},): got {got}{where(name)}")
    return np.argsort(-size.mean_abs, kind="stable")


def kept_count(share: float, columns: int) -> int:
    """How many channels a share is: to the nearest, but one at least unless the share is 0.

    Raises:
        ValueError: a share outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise QsimError(f"a share of channels is from 0 to 1: got {share}")
    return max(round(share * columns), 1) if share else 0


def keep_channels(weight: Any, scheme: str | Scheme, channels: Any, *, name: str = "") -> np.ndarray:
    """A weight rounded to nearest, but some input channels in float16.

    Groups have the ranges that they have without: the channels are put back after rounding, as in the paper.

    Arguments:
        weight: (N, K) float.
        scheme: of weights only.
        channels: (C,) indices of the columns to keep; may be empty.

    Returns:
        (N, K) float32.

    Raises:
        ValueError: as `rtn`; a scheme that quantises activations; channels outside K; a kept weight beyond float16.
    """
    scheme = _weights_only(scheme)
    w = check_weight(weight, scheme, name)
    kept = whole_array(channels, f"channels{where(name)}").astype(np.int64).reshape(-1)
    if kept.size and not 0 <= kept.min() <= kept.max() < w.shape[1]:
        raise QsimError(f"channels are 0 to {w.shape[1] - 1}: got {kept.min()} to {kept.max()}{where(name)}")
    if kept.size and np.abs(w[:, kept]).max() > _FLOAT16_MAX:
        raise QsimError(f"a kept channel has weights beyond float16's {_FLOAT16_MAX:.0f}{where(name)}")
    out = quantize(w, scheme, name=name).dequantize()
    out[:, kept] = w[:, kept].astype(np.float16)
    return out


def protect(
    model: Model,
    scheme: str | Scheme,
    share: float,
    by: Choice = "activation",
    *,
    sizes: Mapping[str, ChannelSize] | None = None,
    seed: int = 0,
) -> Model:
    """The model with its block Linears rounded to nearest, but a share of every one's input channels in float16.

    Arguments:
        share: of the channels, 0 to 1; at least one channel of each Linear unless it is 0, see `kept_count`.
        by: see `rank_channels`. sizes: from `channel_sizes`, for `activation`.

    Raises:
        ValueError: as `keep_channels` and `rank_channels`; quantised weights.
    """
    scheme = _weights_only(scheme)
    tensors: dict[str, Any] = {}
    kept = total = 0
    for i, name in enumerate(model.linears()):
        weight = model.tensors[f"{name}.weight"]
        if isinstance(weight, QuantizedTensor):
            raise QsimError(f"weights to quantise are float: {name} is quantised ({weight.scheme.name})")
        count = kept_count(share, weight.shape[1])
        order = rank_channels(by, weight, (sizes or {}).get(name), seed=(seed, i), name=name)
        tensors[f"{name}.weight"] = keep_channels(weight, scheme, order[:count], name=name)
        kept, total = kept + count * weight.shape[0], total + weight.size
    told = f"{kept / total:.2%} of the weights, channels chosen by {by}, stay float16"
    return model.replace(
        tensors=tensors, name=f"{model.name} {scheme.name}".strip(),
        notes=(*model.own_notes, f"weights rounded to nearest: {scheme.name}; {told}"),
    )  # fmt: skip


def salient_table(
    model: Model,
    text: str | bytes,
    calibration: Any,
    *,
    schemes: Sequence[str | Scheme] = ("w3a16-g128", "w4a16-g128"),
    shares: Sequence[float] = SHARES,
    choices: Sequence[Choice] = CHOICES,
    reference: Model | Reference | None = None,
    max_bytes: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """AWQ's motivating table: what protecting a few channels brings, by how they are chosen.

    Arguments:
        text: to evaluate on, `max_bytes` of it. calibration: to see the activations on, see `channel_sizes`.
        reference: the float model; None is `model` itself.

    Returns:
        A row for each scheme, choice and share, before them one of each scheme with share 0 (`by` is then "none"):
        scheme, by, share, kept (the share of the weights that stay float16, since a channel is the least), and of the
        evaluation bits_per_byte, loss and loss_se (paired with the reference), perplexity, kl.
    """
    import pandas as pd

    known = Reference(model) if reference is None else reference
    sizes = channel_sizes(model, calibration) if "activation" in choices else None
    rows = []
    for scheme in map(get_scheme, schemes):
        for by, share in [("none", 0.0), *((by, share) for by in choices for share in shares if share)]:
            one = protect(model, scheme, share, "random" if by == "none" else by, sizes=sizes, seed=seed)  # type: ignore[arg-type]
            found = evaluate(one, text, reference=known, max_bytes=max_bytes)
            rows.append({"scheme": scheme.name, "by": by, "share": share, "kept": _kept(model, share), **_told(found)})
    return pd.DataFrame(rows)


def _kept(model: Model, share: float) -> float:
    shapes = [one.weight.shape for one in model.linears().values()]
    return sum(n * kept_count(share, k) for n, k in shapes) / sum(n * k for n, k in shapes)


def _told(found: Evaluation) -> dict[str, Any]:
    return {"bits_per_byte": found.bits_per_byte, "loss": found.bits_per_byte_delta,
            "loss_se": found.bits_per_byte_delta_se, "perplexity": found.perplexity, "kl": found.kl}  # fmt: skip


def _weights_only(scheme: str | Scheme) -> Scheme:
    scheme = get_scheme(scheme)
    if scheme.activation.is_quantized or scheme.kv_cache.is_quantized:
        raise QsimError(f"kept channels are shown with schemes of weights only: got {scheme.name}")
    return scheme
