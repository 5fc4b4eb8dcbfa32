"""Generation: prefill, then one token at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from qsim.errors import QsimError

if TYPE_CHECKING:
    from .cache import KVCache
    from .model import Model
    from .tokenizer import Tokenizer

_ROOM = 64  # tokens that a cache has room for beyond the prompt, before it grows


def generate(
    model: Model,
    tokens: Any,
    max_new_tokens: int = 256,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    eos: Sequence[int] | None = None,
) -> Iterator[Any]:
    """Continue sequences of tokens.

    Arguments:
        tokens: (T,) ids, (B, T) ids, or a list of sequences that may differ in length.
        max_new_tokens: at most so many; fewer when the context is full or every sequence has ended.
        temperature: 0 takes the likeliest token (the first of equals); above, logits are divided by it and a token is
            drawn.
        top_p: draw among the fewest likeliest tokens whose probabilities sum to at least this.
        seed: of the draws; the same seed, model and tokens give the same continuation.
        eos: ids that end a sequence; None takes the config's, () never ends.

    Returns:
        An iterator. For (T,) ids it gives an int per step, the ending id included. Otherwise an int64 array (B,) per
        step, in which a sequence that has ended repeats its ending id.

    Raises:
        ValueError: before the first step: no tokens, ids outside the vocabulary, a prompt as long as the context,
            temperature, top_p or max_new_tokens out of range.
    """
    ragged = isinstance(tokens, list) and bool(tokens) and np.ndim(tokens[0]) == 1
    single = not ragged and np.ndim(tokens) == 1
    rows = [model.check_tokens(row)[0] for row in tokens] if ragged else list(model.check_tokens(tokens))
    if max_new_tokens < 0:
        raise QsimError(f"max_new_tokens must be at least 0: got {max_new_tokens}")
    if not temperature >= 0 or not np.isfinite(temperature):
        raise QsimError(f"temperature must be a number of at least 0: got {temperature}")
    if not 0 < top_p <= 1:
        raise QsimError(f"top_p must be above 0 and at most 1: got {top_p}")
    limit = model.config.max_position_embeddings
    longest = max(len(row) for row in rows)
    if longest > limit:
        raise QsimError(f"the model's context is {limit} tokens: got a prompt of {longest}; shorten it")
    stop = np.array(model.config.eos_token_ids if eos is None else eos, np.int64)
    steps = _steps(model, rows, max_new_tokens, _Sampler(temperature, top_p, seed, len(rows)), stop)
    return (int(ids[0]) for ids in steps) if single else steps


def _steps(
    model: Model, rows: list[np.ndarray], count: int, sampler: _Sampler, stop: np.ndarray
) -> Iterator[np.ndarray]:
    if count == 0:
        return
    longest = max(len(row) for row in rows)
    limit = model.config.max_position_embeddings
    cache = model.new_cache(len(rows), min(limit, longest + min(count, _ROOM)))
    ids = sampler(prefill(model, rows, cache))
    ended = np.isin(ids, stop)
    yield ids
    for _ in range(min(count - 1, limit - longest)):
        if ended.all():
            return
        new = sampler(model.logits(ids[:, None], cache=cache, last_only=True))
        ids = np.where(ended, ids, new)
        ended |= np.isin(ids, stop)
        yield ids


def prefill(model: Model, rows: Sequence[np.ndarray], cache: KVCache) -> np.ndarray:
    """Fill an empty cache with prompts, together where they are equally long; logits of their last tokens, (B, V)."""
    if len({len(row) for row in rows}) == 1:
        return model.logits(np.stack(rows), cache=cache, last_only=True)
    return np.concatenate(
        [model.logits(row[None], cache=cache[i : i + 1], last_only=True) for i, row in enumerate(rows)]
    )


class _Sampler:
    """Chooses a token of every row of logits (B, V); each sequence has a random stream of its own."""

    def __init__(self, temperature: float, top_p: float, seed: int, batch: int) -> None:
        self.temperature, self.top_p = temperature, top_p
        self.streams = [np.random.default_rng([seed, i]) for i in range(batch)] if temperature > 0 else []

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        if self.temperature == 0:
            return logits.argmax(axis=1)
        return np.array([self._draw(row, s) for row, s in zip(logits, self.streams, strict=True)], np.int64)

    def _draw(self, logits: np.ndarray, stream: np.random.Generator) -> int:
        scaled = (logits.astype(np.float64) - logits.max()) / self.temperature
        p = np.exp(scaled)
        order = np.argsort(-p, kind="stable")
        mass = np.cumsum(p[order])
        kept = int(np.searchsorted(mass, self.top_p * mass[-1])) + 1 if self.top_p < 1 else len(p)
        mass = mass[:kept]
        return int(order[min(int(np.searchsorted(mass, stream.random() * mass[-1], side="right")), kept - 1)])


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What was generated, and how fast.

    Arguments:
        prompt, text: given and generated.
        tokens: generated ids, an ending id included.
        prompt_tokens: number of ids of the prompt.
        prefill_s: time to the first token.
        decode_s: time of the others.
        stop: `length` (max_new_tokens), `eos` or `context` (it is full).
    """

    prompt: str
    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    prefill_s: float
    decode_s: float
    stop: Literal["length", "eos", "context"]

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens over the time to the first token."""
        return self.prompt_tokens / self.prefill_s

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Tokens after the first over their time; None when there is none."""
        return (len(self.tokens) - 1) / self.decode_s if len(self.tokens) > 1 else None


def complete(
    model: Model,
    prompt: str,
    max_new_tokens: int = 256,
    *,
    stream: Callable[[str], None] | None = None,
    eos: Sequence[int] | None = None,
    **sampling: Any,
) -> Generation:
    """Continue a text.

    Arguments:
        prompt: text.
        stream: called with each new piece of text as soon as its characters are whole.
        max_new_tokens, eos, sampling: as in `generate`.

    Raises:
        ValueError: the model has no tokenizer, the prompt has no tokens; and as `generate`.
    """
    tokenizer = require_tokenizer(model)
    ids = tokenizer.encode(prompt)
    if ids.size == 0:
        raise QsimError("the prompt has no tokens: give at least one character")
    stop = model.config.eos_token_ids if eos is None else tuple(eos)
    text = TextStream(tokenizer)
    start = time.perf_counter()
    first = start
    tokens: list[int] = []
    for token in generate(model, ids, max_new_tokens, eos=stop, **sampling):
        if not tokens:
            first = time.perf_counter()
        tokens.append(token)
        piece = "" if token in stop else text.add(token)
        if stream is not None and piece:
            stream(piece)
    end = time.perf_counter()
    piece = text.flush()
    if stream is not None and piece:
        stream(piece)
    ended = bool(tokens) and tokens[-1] in stop
    return Generation(
        prompt=prompt,
        text=text.text,
        tokens=tuple(tokens),
        prompt_tokens=int(ids.size),
        prefill_s=first - start,
        decode_s=end - first,
        stop="eos" if ended else "length" if len(tokens) == max_new_tokens else "context",
    )


class TextStream:
    """Text of tokens as they come; characters that are not whole yet are held back."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.text = tokenizer, ""
        self._ids: list[int] = []
        self._start = self._read = 0  # ids before `_read` are written; decoding starts at `_start`, for the spaces

    def add(self, token: int) -> str:
        """The text that this token completes; "" when its character is not whole."""
        self._ids.append(token)
        return self._advance(hold=True)

    def flush(self) -> str:
        """What was held back."""
        return self._advance(hold=False)

    def _advance(self, hold: bool) -> str:
        before = self.tokenizer.decode(self._ids[self._start : self._read])
        now = self.tokenizer.decode(self._ids[self._start :])
        if len(now) <= len(before) or (hold and now.endswith("\ufffd") and len(self._ids) - self._read < 4):
            return ""
        self._start, self._read = self._read, len(self._ids)
        piece = now[len(before) :]
        self.text += piece
        return piece


def require_tokenizer(model: Model) -> Tokenizer:
    """The model's tokenizer.

    Raises:
        ValueError: it has none.
    """
    if model.tokenizer is None:
        raise QsimError(f"{model.path or model.name or 'the model'} has no tokenizer.json: text cannot become tokens; "
                         "put it there, or give token ids (a .npy or .json file), or --tokenizer bytes")  # fmt: skip
    return model.tokenizer
