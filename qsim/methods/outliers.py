"""Outliers of a model: what its layers read, how wide the rows of its weights are, and what each way to multiply makes
of it. One block is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from qsim._native.blas import one_blas_thread
from qsim.errors import QsimError
from qsim.evidence.outliers import WAYS, LayerOutliers, Verdict, Way, verdicts
from qsim.files import temporary_folder
from qsim.models import Model, tiny_text
from qsim.models.streaming import BlockByBlock
from qsim.scheme import QuantizedTensor, get_scheme, quantize

from .calibration import Calibration, HiddenStates, calibration_of
from .passes import for_many_tokens, is_small
from .ranges import channel_ratio, row_range
from .smoothquant import smoothing_scale

F32 = np.float32
Progress: TypeAlias = Callable[[int, int, str], None]
SAMPLE, ROWS = 192, 768
"""Tokens on which products are measured, and rows of the weight that take part: spread evenly."""
EXPERTS = 4
"""Experts of a block whose products are measured: those that most tokens chose."""
WINDOWS = 8
"""Windows of text that are looked at unless told otherwise."""
ALPHA = 0.5


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What looking at a model will take. Times are of this machine, from a product measured just before."""

    memory_bytes: int
    disk_bytes: int
    flop: float
    time_s: float
    streams: bool


@dataclass(frozen=True, kw_only=True)
class OutlierReport:
    """Outliers of a model and what follows from them.

    Attributes:
        model: its name. tokens: of the text that it was shown.
        layers: every product of the blocks, and the head's input.
        verdicts: one for each way of `qsim.evidence.outliers.WAYS`.
        notes: what a reader must know.
    """

    model: str
    tokens: int
    layers: tuple[LayerOutliers, ...]
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...] = ()
    seconds: float = field(default=0.0, compare=False)

    def verdict(self, way: str) -> Verdict:
        """The verdict on a way, by its name.

        Raises:
            QsimError: there is none of that name.
        """
        from qsim.errors import nearest

        found = {v.way: v for v in self.verdicts}
        if way not in found:
            raise QsimError(nearest("way to multiply", way, found))
        return found[way]

    def kinds(self) -> list[dict[str, Any]]:
        """The worst of every kind of layer, as plain rows."""
        out = []
        for kind in dict.fromkeys(one.kind for one in self.layers):
            mine = [one for one in self.layers if one.kind == kind]
            row: dict[str, Any] = {"kind": kind, "layers": len(mine)}
            for name in ("channel_ratio", "token_channel_ratio", "peak", "peak_ratio", "kurtosis", "row_range"):
                values = [v for one in mine if (v := getattr(one, name)) is not None]
                row[name] = max(values) if values else None
            ratio = [one for one in mine if one.channel_ratio is not None]
            row["worst_layer"] = max(ratio, key=lambda one: one.channel_ratio or 0).layer if ratio else mine[0].layer
            out.append(row)
        return out

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        from dataclasses import asdict

        return {
            "model": self.model, "tokens": self.tokens, "verdicts": [asdict(v) for v in self.verdicts],
            "kinds": self.kinds(), "layers": [one.to_dict() for one in self.layers], "notes": list(self.notes),
        }  # fmt: skip


def measure_outliers(
    model: Model | str | Path | BlockByBlock,
    text: Any = None,
    *,
    window: int | None = None,
    windows: int = WINDOWS,
    progress: Progress = lambda done, total, step: None,
    announce: Callable[[Estimate], None] | None = None,
) -> OutlierReport:
    """Look at the inputs and weights of every product of a model.

    Arguments:
        model: a model, or a path as `qsim.models.load` takes it; of a folder one block at a time is read. Or a
            `BlockByBlock` of either.
        text: what it is shown: text, token ids or a `Calibration`; None is the embedded calibration text.
        window, windows: tokens of a window, and how many; see `calibration_of`.
        progress: called with blocks done, blocks in all, and what comes next.
        announce: called with what it will take, before the start.

    Raises:
        ValueError: a text that is too short, a model without tokenizer, a checkpoint that cannot be read, activations
            that are NaN or Inf.
        OSError: a file cannot be read.
    """
    import time

    start = time.perf_counter()
    blocks = model if isinstance(model, BlockByBlock) else BlockByBlock(model)
    given = _windows_of(blocks, text, window, windows)
    estimate = _estimate(blocks, given)
    if announce is not None:
        announce(estimate)
    count = blocks.config.num_hidden_layers
    found: list[LayerOutliers] = []
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        hidden = HiddenStates(folder, "hidden", given, blocks.config.hidden_size)
        stack.callback(hidden.close)
        embedded = blocks.embed(given.tokens)
        for batch in given.batches():
            hidden[batch] = embedded[batch]
        del embedded
        for i in range(count):
            progress(i, count, f"block {i}")
            one, at = blocks.block(i)
            one = for_many_tokens(one)  # of a quantised checkpoint the values, of this block alone
            with one_blas_thread(is_small(one)):
                found += _block(blocks, one, at, i, hidden, given)
        head = _Seen(blocks.config.word_embed_proj_dim, given.token_count)
        for batch in given.batches():
            head.update(one.head_input(hidden[batch]), given.tokens[batch].reshape(-1), given.tokens.shape[1])
        found.append(head.result(layer=one.head_name, kind="lm_head", block=None))
    progress(count, count, "done")
    notes = tuple(blocks.notes)
    if blocks.was_read_whole:
        notes = (*notes, "the file was read whole: only folders of safetensors are read one block at a time")
    return OutlierReport(model=blocks.name or blocks.config.architecture, tokens=given.token_count,
                         layers=tuple(found), verdicts=verdicts(found), notes=notes,
                         seconds=time.perf_counter() - start)  # fmt: skip


def _windows_of(blocks: BlockByBlock, text: Any, window: int | None, windows: int) -> Calibration:
    if text is None and blocks.tokenizer is None:
        raise QsimError(f"{blocks.name or 'the model'} has no tokenizer: give the text as token ids (a .npy or .json "
                        "file), or --tokenizer bytes")  # fmt: skip
    return calibration_of(blocks, tiny_text("calibration") if text is None else text, window=window, windows=windows)


def _estimate(blocks: BlockByBlock, given: Calibration) -> Estimate:
    c, tokens = blocks.config, given.token_count
    weights = blocks.block_bytes // 4 * c.num_hidden_layers
    active = weights if not any(c.sparse_layers) else weights * c.num_experts_per_tok / max(c.num_experts, 1)
    flop = 2.0 * tokens * active + 2.0 * SAMPLE * (len(WAYS) + 1) * min(weights, active)
    held = blocks.bytes_held or max(2 * blocks.block_bytes, 6 * c.vocab_size * c.word_embed_proj_dim)
    micro = given.micro_batch * given.tokens.shape[1]
    activations = 4 * micro * (8 * c.hidden_size + 4 * max(c.intermediate_size, c.moe_intermediate_size))
    work = 6 * 4 * ROWS * max(c.intermediate_size, c.hidden_size)
    return Estimate(
        memory_bytes=int(held + activations + work), disk_bytes=4 * tokens * c.hidden_size, flop=flop,
        time_s=flop / _flop_per_s() + weights * 2e-8, streams=blocks.streams,
    )  # fmt: skip


def _flop_per_s() -> float:
    """Of a float32 product on this machine as it is now."""
    import time

    a = np.ones((512, 512), F32)
    a @ a
    start = time.perf_counter()
    for _ in range(4):
        a @ a
    return 4 * 2 * 512**3 / max(time.perf_counter() - start, 1e-9)


def _block(
    blocks: BlockByBlock, model: Model, at: int, i: int, hidden: HiddenStates, given: Calibration
) -> Iterator[LayerOutliers]:
    """Push every window through block i, and say what its products read."""
    stages, sparse = model.block_stages(at), model.config.sparse_layers[at]
    kinds = {g[0]: _kind(n, sparse) for n, stage in enumerate(stages) for g in stage}
    groups = {g[0]: g for stage in stages for g in stage}
    seen = {name: _Seen(model.input_size(name), _share(model, kinds[name], given)) for name in groups}
    folded = {names[0] for source, names in model.fold_groups(at) if source not in model.linears()}
    for batch in given.batches():
        tokens = given.tokens[batch]

        def observe(name: str, x: np.ndarray, tokens: np.ndarray = tokens) -> None:
            if name in seen:
                seen[name].update(x, tokens.reshape(-1) if len(x) == tokens.size else None, tokens.shape[1])

        hidden[batch] = model.block(at, hidden[batch], observe=observe)
    measured = _measured(kinds, seen)
    for name, group in groups.items():
        weights = [_values(model, one) for one in group]
        noise = {}
        if name in measured:
            noise = noise_of_ways(seen[name].sample, seen[name].largest, weights, smooth=name in folded, name=name)
        typical, worst = row_range(weights[0] if len(weights) == 1 else np.concatenate(weights))
        yield seen[name].result(
            layer=blocks.own_name(name, i), kind=kinds[name], block=i, noise=noise, row_range=typical,
            row_range_max=worst,
        )  # fmt: skip


def _kind(stage: int, sparse: bool) -> str:
    return ("experts " if sparse and stage >= 2 else "") + ("qkv", "o", "gate/up", "down")[stage]


def _share(model: Model, kind: str, given: Calibration) -> int:
    c, tokens = model.config, given.token_count
    return max(tokens * c.num_experts_per_tok // c.num_experts, 1) if kind.startswith("experts") else tokens


def _measured(kinds: Mapping[str, str], seen: Mapping[str, _Seen]) -> set[str]:
    """Groups whose products are measured: all, but of experts those that most tokens chose."""
    out = {name for name, kind in kinds.items() if not kind.startswith("experts")}
    for kind in ("experts gate/up", "experts down"):
        mine = sorted((name for name in kinds if kinds[name] == kind), key=lambda name: -seen[name].tokens)
        out |= set(mine[:EXPERTS])
    return {name for name in out if len(seen[name].sample)}


def _values(model: Model, name: str) -> np.ndarray:
    weight = model.linears()[name].weight
    return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight


class _Seen:
    """Running numbers of what one product reads, and a sample of it."""

    def __init__(self, columns: int, expected: int) -> None:
        self.largest = np.zeros(columns, F32)
        self.tokens = 0
        self._wanted = np.unique(np.linspace(0, max(expected - 1, 0), min(SAMPLE, max(expected, 1))).astype(np.int64))
        self._rows: list[np.ndarray] = []
        self._peaks: list[np.ndarray] = []
        self._kurtosis: list[np.ndarray] = []
        self._top: tuple[float, int | None, int | None, np.ndarray | None] = (-1.0, None, None, None)

    def update(self, x: np.ndarray, tokens: np.ndarray | None, length: int) -> None:
        """Rows (M, K) float32, and the tokens that they are of, where all have come in order."""
        if not len(x):
            return
        size = np.abs(x)
        peaks = size.max(axis=1)
        if not np.isfinite(peaks).all():
            raise QsimError("activations must be finite: a product reads NaN or Inf")
        np.maximum(self.largest, size.max(axis=0), out=self.largest)
        self._peaks.append(peaks)
        inside = self._wanted[(self._wanted >= self.tokens) & (self._wanted < self.tokens + len(x))] - self.tokens
        self._rows.append(x[inside].copy())
        square = np.square(x[inside], dtype=np.float64)
        self._kurtosis.append((square**2).mean(axis=1) / np.maximum(square.mean(axis=1) ** 2, 1e-300))
        at = int(peaks.argmax())
        if peaks[at] > self._top[0]:
            token = None if tokens is None else int(tokens[at])
            self._top = (float(peaks[at]), token, None if tokens is None else at % length, x[at].copy())
        self.tokens += len(x)

    @property
    def sample(self) -> np.ndarray:
        """Rows spread evenly over the tokens, (S, K); the last is the one that holds the peak."""
        rows = [*self._rows, *([] if self._top[3] is None else [self._top[3][None]])]
        return np.concatenate(rows) if rows else np.empty((0, len(self.largest)), F32)

    def result(self, **known: Any) -> LayerOutliers:
        if not self.tokens:
            return LayerOutliers(tokens=0, **known)
        typical = float(np.median(np.abs(self.sample[:-1] if len(self.sample) > 1 else self.sample)))
        typical = typical or float(np.abs(self.sample).mean()) or 1.0
        peak, token, position, _ = self._top
        return LayerOutliers(
            tokens=self.tokens, channel_ratio=channel_ratio(self.largest),
            token_channel_ratio=float(np.median(np.concatenate(self._peaks)) / typical), peak=peak,
            peak_ratio=peak / typical, peak_token=token, peak_position=position,
            kurtosis=float(np.median(np.concatenate(self._kurtosis))), **known,
        )  # fmt: skip


def noise_of_ways(
    sample: np.ndarray, largest: np.ndarray, weights: Sequence[np.ndarray], *, smooth: bool, name: str = ""
) -> dict[str, float]:
    """What every way of `WAYS` does to a product: squared error over squared output, of the median token.

    Arguments:
        sample: (S, K) inputs; the last row holds the largest |x| of all tokens, and takes part in a scale for all, but
            not in the median.
        largest: (K,) largest |x| of each channel over all tokens, for smoothing.
        weights: (N, K) each, of the Linears that read the input; of wide ones some rows take part.
        smooth: whether a norm before the product can take SmoothQuant's factors; without, smoothing changes nothing.
    """
    every = np.concatenate(weights) if len(weights) > 1 else weights[0]
    rows = every[np.unique(np.linspace(0, len(every) - 1, min(ROWS, len(every))).astype(np.int64))]
    exact = sample @ rows.T
    size = np.square(exact, dtype=np.float64).sum(axis=1)
    out = {}
    for way in WAYS:
        x, w = sample, rows
        if way.smoothed and smooth:
            s = smoothing_scale(largest, list(weights), ALPHA, name)
            x, w = sample / s, rows * s
        y = _rounded(x, way, "activation") @ _rounded(w, way, "weight").T
        error = np.square(y - exact, dtype=np.float64).sum(axis=1)
        ratio = error[size > 0] / size[size > 0]
        counted = ratio[:-1] if len(ratio) > 1 else ratio
        out[way.name] = float(np.median(counted)) if len(counted) else 0.0
    return out


def _rounded(x: np.ndarray, way: Way, part: Any) -> np.ndarray:
    """x as the way keeps it: weights row by row, so that some rows stand for all."""
    scheme = get_scheme(way.scheme)
    rule = "smoothquant" if way.is_integer and part == "activation" else None
    return quantize(np.ascontiguousarray(x), scheme, part=part, scale_rule=rule, ragged=True).dequantize()
