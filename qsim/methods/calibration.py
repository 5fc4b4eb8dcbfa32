"""Calibration that streams: windows of tokens in, running statistics of every Linear's input out.

Nothing grows with the number of tokens but one file of hidden states between two blocks. In memory there are one
micro-batch, and a Hessian, moments and a histogram for each input that is being observed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from qsim._native.threads import for_chunks
from qsim.errors import QsimError
from qsim.files import create_sized, remove_file
from qsim.models import Model
from qsim.models.streaming import BlockByBlock

from .checks import where
from .linalg import accumulate, mirror

F32 = np.float32
WINDOW = 512
MICRO_BATCH_TOKENS = 4096
_BINS = 255 * 8  # of |x|: exponent and three bits of the fraction, so eight bins an octave
_SHIFT = np.uint32(20)
_COLUMNS = 128  # columns that a thread takes at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """What a model is shown.

    Arguments:
        tokens: (B, T) int64, windows of equal length.
        micro_batch: windows at a time.
    """

    tokens: np.ndarray
    micro_batch: int

    @property
    def windows(self) -> int:
        return self.tokens.shape[0]

    @property
    def token_count(self) -> int:
        return self.tokens.size

    @property
    def digest(self) -> str:
        """Which tokens: the start of a SHA-256."""
        return hashlib.sha256(np.ascontiguousarray(self.tokens).tobytes()).hexdigest()[:16]

    def batches(self) -> Iterator[slice]:
        """Micro-batches, as slices of the windows."""
        return (slice(b, min(b + self.micro_batch, self.windows)) for b in range(0, self.windows, self.micro_batch))


def calibration_of(
    model: Model | BlockByBlock,
    text: Any,
    *,
    window: int | None = None,
    windows: int | None = None,
    micro_batch: int | None = None,
) -> Calibration:
    """Cut a text into windows.

    Arguments:
        text: str or UTF-8 bytes for the model's tokenizer; or token ids, (T,) to be cut or (B, T) as windows.
        window: tokens of a window; None is 512, or the model's context when that is shorter.
        windows: at most so many, spread evenly over the text; None is all. What is left behind the last whole window
            is not used.
        micro_batch: windows at a time; None is as many as make 4096 tokens.

    Raises:
        ValueError: a text shorter than one window, a model without a tokenizer, a window longer than the context.
    """
    if isinstance(text, Calibration):
        return text
    context = model.config.max_position_embeddings
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise QsimError(
                f"a calibration text must be UTF-8: byte {error.start} is {text[error.start]:#04x}"
            ) from None
    if isinstance(text, str):
        if model.tokenizer is None:
            raise QsimError(
                f"{model.name or 'the model'} has no tokenizer: give calibration as token ids "
                "(a .npy or .json file), or --tokenizer bytes"
            )
        ids = model.tokenizer.encode(text)
    else:
        ids = np.asarray(text)
    if ids.ndim == 2 and window is None:
        tokens = model.check_tokens(ids)
    else:
        flat, size = model.check_tokens(ids.reshape(-1)).reshape(-1), window or min(WINDOW, context)
        if size < 1:
            raise QsimError(f"a window has at least one token: got {size}")
        if flat.size < size:
            raise QsimError(
                f"calibration needs at least one window of {size} tokens: got {flat.size}; give more text or a shorter "
                "window"
            )
        tokens = flat[: flat.size // size * size].reshape(-1, size)
    if tokens.shape[1] > context:
        raise QsimError(f"a calibration window of {tokens.shape[1]} tokens exceeds the model's context of {context}")
    if windows is not None:
        if windows < 1:
            raise QsimError(f"windows must be at least 1: got {windows}")
        tokens = tokens[np.unique(np.linspace(0, len(tokens) - 1, min(windows, len(tokens))).round().astype(int))]
    batch = micro_batch or max(1, MICRO_BATCH_TOKENS // tokens.shape[1])
    return Calibration(tokens=tokens, micro_batch=min(batch, len(tokens)))


# --- statistics of one input --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerInputs:
    """What calibration knows of the input of some Linears. Plain arrays, so that it can be sent to another process.

    Arguments:
        tokens: how many.
        hessian: (K, K) float32, 2 / tokens * sum of x x^T; None when it was not asked for, as the others.
        mean_abs, max_abs: (K,) float32.
        histogram: (2040,) int64, counts of |x| by exponent and three bits of the fraction.
        sample: (S, K) float32, rows spread evenly over the tokens.
        correction: (K, K) float32, 2 / tokens * sum of (x - x~) x~^T against the original model's input x.
    """

    tokens: int
    hessian: np.ndarray | None = None
    mean_abs: np.ndarray | None = None
    max_abs: np.ndarray | None = None
    histogram: np.ndarray | None = None
    sample: np.ndarray | None = None
    correction: np.ndarray | None = None

    @property
    def peak(self) -> float | None:
        """Largest |x| of all."""
        return None if self.max_abs is None else float(self.max_abs.max())

    def percentile(self, share: float) -> float:
        """The upper end of the histogram's bin below which `share` percent of |x| lie; 100 is the exact largest."""
        assert self.histogram is not None
        assert self.max_abs is not None
        if share >= 100:
            return float(self.max_abs.max())
        total = np.cumsum(self.histogram)
        bin_ = int(np.searchsorted(total, share / 100 * total[-1]))
        return min(float(_edges()[bin_ + 1]), float(self.max_abs.max()))

    def clip_fraction(self, limit: float) -> float:
        """Share of |x| above `limit`, from the histogram; a bin that holds the limit is shared linearly."""
        assert self.histogram is not None
        if limit >= (self.peak or 0.0) * (1 - 2.0**-22):  # a scale that was found from the peak, and rounded
            return 0.0
        edges, count = _edges(), self.histogram
        inside = np.clip((edges[1:] - limit) / (edges[1:] - edges[:-1]), 0, 1)
        return float((inside * count).sum() / max(count.sum(), 1))


def _edges() -> np.ndarray:
    """Lower end of every bin, and the end of the last; float64."""
    exponent, eighths = np.divmod(np.arange(_BINS + 1), 8)
    return np.ldexp(np.where(exponent > 0, 1.0, 0.0) + eighths / 8, np.maximum(exponent, 1) - 127)


@njit(cache=True, nogil=True, boundscheck=False)
def _observe(x: Any, first: int, stop: int, total: Any, peak: Any, counts: Any) -> None:
    bits = x.view(np.uint32)
    for m in range(x.shape[0]):
        for j in range(first, stop):
            b = np.uint32(bits[m, j] & np.uint32(0x7FFFFFFF))
            total[j] += np.float64(abs(x[m, j]))
            peak[j] = max(peak[j], b)  # as integers: NaN lies above Inf above all numbers
            counts[min(np.int64(b >> _SHIFT), _BINS - 1)] += 1  # NaN and Inf are refused right after


class InputStatistics:
    """Running statistics of the rows that `update` is given."""

    def __init__(
        self, columns: int, *, hessian: bool = False, moments: bool = False, sample: int = 0, correction: bool = False,
        expected_tokens: int = 0, name: str = "",
    ) -> None:  # fmt: skip
        """Arguments:
        columns: K. name: the layer, for messages.
        hessian, moments: what to keep; moments are mean and largest |x| and the histogram.
        sample: rows to keep, spread evenly over `expected_tokens`.
        correction: keep the sum of (x - x~) x~^T, too.
        """
        self.name, self.tokens = name, 0
        self._sum = np.zeros((columns, columns), F32) if hessian else None
        self._cross = np.zeros((columns, columns), F32) if correction else None
        self._moments = moments
        self._total, self._peak = np.zeros(columns), np.zeros(columns, np.uint32)
        self._counts = np.zeros(_BINS, np.int64)
        rows = min(sample, expected_tokens)
        self._wanted = (
            np.unique(np.linspace(0, expected_tokens - 1, rows).astype(np.int64)) if rows else np.zeros(0, int)
        )
        self._sample = np.empty((len(self._wanted), columns), F32)

    def update(self, x: np.ndarray, original: np.ndarray | None = None) -> None:
        """Take in x (M, K) float32, and with a correction the original model's input of the same tokens.

        Raises:
            ValueError: NaN or Inf; the message names the layer and the first token.
        """
        x = np.ascontiguousarray(x, dtype=F32)
        self._moments_of(x)
        if self._sum is not None:
            accumulate(self._sum, x)
        if self._cross is not None:
            assert original is not None
            self._cross += (original - x).T @ x
        inside = (self._wanted >= self.tokens) & (self._wanted < self.tokens + len(x))
        self._sample[inside] = x[self._wanted[inside] - self.tokens]
        self.tokens += len(x)

    def _moments_of(self, x: np.ndarray) -> None:
        k = x.shape[1]
        counts = [np.zeros(_BINS, np.int64) for _ in range(0, k, _COLUMNS)]  # one each, threads do not share them

        def work(first: int, stop: int) -> None:
            _observe(x, first, stop, self._total, self._peak, counts[first // _COLUMNS])

        for_chunks(k, work, chunk=_COLUMNS)
        if (self._peak >= 0x7F800000).any():
            row = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
            raise QsimError(
                f"activations must be finite: token {self.tokens + row} of calibration has NaN or Inf{where(self.name)}"
            )
        self._counts += np.sum(counts, axis=0)

    def result(self) -> LayerInputs:
        """The statistics. The Hessian's array is handed over: update no more."""
        scale = F32(2.0 / max(self.tokens, 1))
        kept = int((self._wanted < self.tokens).sum())  # an expert can see fewer tokens than were expected
        if self._sum is not None:
            mirror(self._sum)
            self._sum *= scale
        if self._cross is not None:
            self._cross *= scale
        return LayerInputs(
            tokens=self.tokens, hessian=self._sum, correction=self._cross,
            mean_abs=(self._total / max(self.tokens, 1)).astype(F32) if self._moments else None,
            max_abs=self._peak.view(F32).copy() if self._moments else None,
            histogram=self._counts if self._moments else None,
            sample=self._sample[:kept] if kept else None,
        )  # fmt: skip


# --- hidden states between blocks ---------------------------------------------------------------------------


class HiddenStates:
    """Hidden states of all windows between two blocks, in a file: memory holds what a micro-batch touches."""

    def __init__(self, folder: Path, name: str, calibration: Calibration, size: int) -> None:
        shape = (*calibration.tokens.shape, size)
        self._path = folder / f"{name}.f32"
        create_sized(self._path, 4 * math.prod(shape))
        self._file = np.memmap(self._path, dtype=F32, mode="r+", shape=shape)

    def __getitem__(self, windows: slice | np.ndarray) -> np.ndarray:
        return np.array(self._file[windows])

    def __setitem__(self, windows: slice, hidden: np.ndarray) -> None:
        self._file[windows] = hidden

    def close(self) -> None:
        """Remove the file."""
        del self._file
        remove_file(self._path)
