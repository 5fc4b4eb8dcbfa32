"""What a model knows of a text, and what it has lost against another."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

import numpy as np

from qsim._native.blas import one_blas_thread
from qsim._native.threads import for_each
from qsim.arrays import as_plain_array
from qsim.errors import QsimError
from qsim.notes import Note

from . import statistics
from .generation import require_tokenizer
from .linear import Linear
from .model import Model
from .windows import Protocol, Window, batches_of, plan_windows

Progress: TypeAlias = "bool | Callable[[int, int], None] | None"

_LOGITS = 1 << 24  # logits held at a time: 64 MiB
_ALONE = 8  # tokens up to which a Linear runs in Numba's threads, which two threads must not enter
_WIDE = 1024  # columns from which BLAS's own threads are worth their start
LOOK_EVERY = 32
"""Windows after which `evaluate` asks whether they are enough."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Quality of a model on a text. Values are means over scored tokens; `_se` are standard errors (see `ratio`).

    Arguments:
        model, protocol, window, stride: what was measured and how; stride is of `sliding`.
        tokens, bytes: scored tokens, and bytes of text they stand for (None when token ids were given).
        windows: sampling units of the standard errors. An error is None when there is one window only.
        nll: mean negative log-likelihood, nats per token.
        bits_per_byte: total bits over total bytes; comparable between tokenizers. None without bytes.
        perplexity: exp(nll).
        accuracy: share of tokens that the model finds likeliest.
        kl: mean KL(reference || model) of the next-token distribution, nats per token. None without a reference, as:
        top1_agreement: share of tokens for which both find the same token likeliest;
        bits_per_byte_delta, nll_delta: model minus reference; errors are of the paired difference.
        time_s: of the whole evaluation.
        notes: the model's and the reference's.
        per_window: sums of each window, (windows,) arrays by name.
    """

    model: str
    protocol: Protocol
    window: int
    stride: int | None
    tokens: int
    bytes: int | None
    windows: int
    nll: float
    nll_se: float | None
    bits_per_byte: float | None
    bits_per_byte_se: float | None
    perplexity: float
    perplexity_se: float | None
    accuracy: float
    accuracy_se: float | None
    reference: str | None = None
    kl: float | None = None
    kl_se: float | None = None
    top1_agreement: float | None = None
    top1_agreement_se: float | None = None
    nll_delta: float | None = None
    nll_delta_se: float | None = None
    bits_per_byte_delta: float | None = None
    bits_per_byte_delta_se: float | None = None
    time_s: float = 0.0
    notes: tuple[str, ...] = ()
    per_window: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the sums of each window."""
        out = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "per_window"}
        return {**out, "notes": list(self.notes)}


class Reference:
    """A model to compare others with, which remembers its logits within a memory budget.

    Give the same one to several evaluations of one text: windows that it remembers are not computed again.

    Arguments:
        model: the reference.
        budget_bytes: for remembered logits, or the hidden states before the head where the logits of a window do not
            fit (a large vocabulary); the first windows are kept, later ones are computed each time.
    """

    def __init__(self, model: Model, budget_bytes: int = 256_000_000) -> None:
        self.model, self.budget_bytes = model, budget_bytes
        self._kept: dict[bytes, np.ndarray] = {}
        self._hidden: dict[bytes, np.ndarray] = {}
        self._used = 0
        self._lock = threading.Lock()

    def hidden_or_logits(self, inputs: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(hidden states, None), or (None, logits) when they are remembered or fit; rows are tokens."""
        key = repr(inputs.shape).encode() + inputs.tobytes()
        logits = self._kept.get(key)
        if logits is not None:
            return None, logits
        hidden = self._hidden.get(key)
        if hidden is not None:
            return hidden, None
        hidden = self.model.hidden(inputs)
        hidden = hidden.reshape(-1, hidden.shape[-1])
        if self._fits(4 * hidden.shape[0] * self.model.config.vocab_size):
            logits = self._kept[key] = self.model.unembed(hidden)
            return None, logits
        if self._fits(hidden.nbytes):
            self._hidden[key] = hidden
        return hidden, None

    def _fits(self, size: int) -> bool:
        """Take so many bytes of the budget, if they are left."""
        with self._lock:
            if self._used + size > self.budget_bytes:
                return False
            self._used += size
            return True


def evaluate(
    model: Model,
    text: Any,
    *,
    window: int = 512,
    stride: int | None = None,
    protocol: Protocol = "windows",
    reference: Model | Reference | None = None,
    max_bytes: int | None = None,
    first: int | None = None,
    enough: Callable[[Evaluation], bool] | None = None,
    progress: Progress = None,
) -> Evaluation:
    """Bits per byte and perplexity of a text; with a reference, KL divergence and agreement of the likeliest token.

    Arguments:
        text: a string or UTF-8 bytes, made tokens by the model's tokenizer; or token ids (T,), an array or a list of
            whole numbers, for which there are no bits per byte.
        window: tokens that go into the model at once.
        stride: of `sliding`, tokens between windows; None is half a window.
        protocol: `windows`: one after the other; every token but the text's first is scored once, with up to `window`
            tokens before it. `sliding`: every token but the first is scored once, with at least window - stride before
            it (where the text has them); with stride = window the first token of each window has none and is not
            scored, as in the guide of transformers. `gptq`: the GPTQ paper's: whole windows only, the tail of the text
            is dropped, and the first token of each window is not scored.
        reference: the unquantised model, or a `Reference` that remembers its logits from one evaluation to the next.
        max_bytes: use only the first so many bytes of the text (whole characters).
        first: a token that goes before every window, as a model saw its texts in training (`first_token(model)`); it is
            not scored. None leaves the text as it is.
        enough: called after every 32 windows with what they give so far; the rest is left out once it returns True.
        progress: True shows a bar on stderr; a function is called with the numbers of windows done and in all.

    The result is the same to the last bit for any number of threads of this project's own kernels. Products of float32
    weights (the head always, the blocks of an unquantised model) are BLAS's, and OpenBLAS adds in another order on
    another number of threads: means then differ in about the ninth digit. `OPENBLAS_NUM_THREADS=1` fixes the order.

    Memory is bounded by the activations of one window (or 1024 tokens) and 64 MiB of logits for each model.

    Raises:
        ValueError: a window longer than the context, a text too short for the protocol, a model without tokenizer, a
            reference with another vocabulary.
    """
    start = time.perf_counter()
    ids, sizes = _tokens(model, text, max_bytes)
    if first is not None:
        first = int(model.check_tokens([first])[0][0])
        if ids[0] == first:  # the tokenizer put it before the text
            ids, sizes = ids[1:], None if sizes is None else sizes[1:]
    plan = plan_windows(model, len(ids), window, stride, protocol, room=first is not None)
    ref = reference if reference is None or isinstance(reference, Reference) else Reference(reference, 0)
    if ref is not None and ref.model.config.vocab_size != model.config.vocab_size:
        raise QsimError(
            f"model and reference must have the same vocabulary: got {model.config.vocab_size} and "
            f"{ref.model.config.vocab_size} tokens"
        )
    names = ["tokens", "bytes", "nll", "hits"] + (["kl", "same", "reference_nll"] if ref is not None else [])
    sums = {name: np.zeros(len(plan)) for name in names}
    side_by_side = _may_share(model) and (ref is None or _may_share(ref.model))
    side_by_side &= min(one.stop - one.start for one in plan) > _ALONE
    batches, seen = list(batches_of(plan, len(plan) if enough is None else LOOK_EVERY)), 0
    lock, done = threading.Lock(), [0]
    with _Reporter(progress, len(plan)) as report, one_blas_thread(side_by_side):

        def work(batch: range) -> None:
            _run(model, ref, ids, sizes, first, [plan[i] for i in batch], {k: v[batch.start : batch.stop] for k, v in
                                                                    sums.items()})  # fmt: skip
            with lock:
                done[0] += len(batch)
                report(done[0])

        while batches:
            until = len(plan) if enough is None else seen + LOOK_EVERY
            now = [batch for batch in batches if batch.start < until]
            batches = batches[len(now) :]
            for_each(len(now), lambda i, now=now: work(now[i]), threads=None if side_by_side else 1)  # type: ignore[misc]
            seen = now[-1].stop
            if enough is not None and batches:
                so_far = {name: values[:seen] for name, values in sums.items()}
                took = time.perf_counter() - start
                if enough(_summary(model, ref, protocol, window, stride, so_far, sizes is not None, took)):
                    break
    sums = {name: values[:seen] for name, values in sums.items()}
    return _summary(model, ref, protocol, window, stride, sums, sizes is not None, time.perf_counter() - start)


def _may_share(model: Model) -> bool:
    """Whether windows may go through the model on several threads: its products are BLAS's, on one thread each, and
    nothing enters Numba's parallel loops, which two threads must not."""
    linears = (*model.linears().values(), model.lm_head)
    narrow = max(one.in_features for one in model.linears().values()) < _WIDE
    plain = model.attention.is_plain and not any(model.config.sparse_layers)
    return narrow and plain and all(_is_dequantized(one) for one in linears)


def _is_dequantized(one: Linear) -> bool:
    return one.engine == "dequantized" or (one.engine == "fused" and isinstance(one.weight, np.ndarray))


def first_token(model: Model) -> int | None:
    """The token that a model's tokenizer puts before every text; None where it puts none."""
    first = model.config.bos_token_id
    if model.tokenizer is None or first is None:
        return None
    ids = model.tokenizer.encode("a")
    return first if len(ids) and ids[0] == first else None


def _tokens(model: Model, text: Any, max_bytes: int | None) -> tuple[np.ndarray, np.ndarray | None]:
    if not isinstance(text, str | bytes | bytearray | memoryview):
        if max_bytes is not None:
            raise QsimError("max_bytes cuts a text: got token ids, so cut them")
        ids = as_plain_array(text, "token ids")
        if ids.ndim == 0:
            raise QsimError(f"a text must be a string, UTF-8 bytes or token ids (T,): got {type(text).__name__}")
        if ids.ndim != 1:
            raise QsimError(f"token ids of a text must be one list (T,): got shape {ids.shape}")
        return model.check_tokens(ids)[0], None
    raw = text.encode("utf-8") if isinstance(text, str) else bytes(text)
    cut = raw if max_bytes is None else raw[:max_bytes]
    try:
        string = cut.decode("utf-8", errors="strict" if len(cut) == len(raw) else "ignore")
    except UnicodeDecodeError as error:
        raise QsimError(f"a text is UTF-8: byte {error.start} is not") from None
    return require_tokenizer(model).spans(string)


def _run(
    model: Model,
    ref: Reference | None,
    ids: np.ndarray,
    sizes: np.ndarray | None,
    first: int | None,
    windows: list[Window],
    sums: Mapping[str, np.ndarray],
) -> None:
    """Add the sums of some windows of equal length."""
    inputs = np.stack([ids[w.start : w.stop] for w in windows])
    length = inputs.shape[1]
    if first is not None:
        inputs = np.insert(inputs, 0, first, axis=1)
    # the head is BLAS's between blocks that are Numba's: its workers would spin into the next windows
    compiled = any(one.runs_compiled for one in model.linears().values())
    ref_hidden, ref_logits = ref.hidden_or_logits(inputs) if ref is not None else (None, None)
    if ref is not None and ref.model is model:  # held against itself: once is enough
        hidden, known = ref_hidden, ref_logits
    else:
        with one_blas_thread(compiled):
            hidden, known = model.hidden(inputs), None
        hidden = hidden.reshape(-1, hidden.shape[-1])
    if first is not None:
        hidden, known, ref_hidden, ref_logits = (
            None if rows is None else rows.reshape(len(windows), length + 1, -1)[:, 1:].reshape(-1, rows.shape[-1])
            for rows in (hidden, known, ref_hidden, ref_logits)
        )
    owner = np.repeat(np.arange(len(windows)), length)
    at = (np.array([w.start for w in windows])[:, None] + np.arange(length)).reshape(-1)
    rows = np.flatnonzero(at >= np.array([w.scored for w in windows])[owner])
    step = max(1, _LOGITS // model.config.vocab_size)
    for begin in range(0, len(rows), step):
        part = rows[begin : begin + step]
        targets = ids[at[part] + 1]
        if known is None:
            with one_blas_thread(compiled):
                logits = model.unembed(_take(hidden, part))
        else:
            logits = _take(known, part)
        nll, top = np.empty(len(part)), np.empty(len(part), np.int64)
        statistics.score(logits, targets, nll, top)
        values = {"tokens": np.ones(len(part)), "nll": nll, "hits": top == targets}
        if sizes is not None:
            values["bytes"] = sizes[at[part] + 1]
        if ref is not None:
            theirs = ref.model.unembed(_take(ref_hidden, part)) if ref_logits is None else _take(ref_logits, part)
            kl, same, ref_nll = np.empty(len(part)), np.empty(len(part), np.bool_), np.empty(len(part))
            statistics.divergence(theirs, logits, kl, same)
            statistics.score(theirs, targets, ref_nll, top)
            values |= {"kl": kl, "same": same, "reference_nll": ref_nll}
        for name, value in values.items():
            sums[name][:] += np.bincount(owner[part], value, len(windows))


def _take(rows: np.ndarray | None, part: np.ndarray) -> np.ndarray:
    assert rows is not None
    return rows if len(part) == len(rows) else rows[part]


def _summary(
    model: Model,
    ref: Reference | None,
    protocol: Protocol,
    window: int,
    stride: int | None,
    sums: Mapping[str, np.ndarray],
    has_bytes: bool,
    time_s: float,
) -> Evaluation:
    count = sums["tokens"]
    nll, nll_se = statistics.ratio(sums["nll"], count)
    out: dict[str, Any] = dict(zip(("accuracy", "accuracy_se"), statistics.ratio(sums["hits"], count), strict=True))
    bits = sums["nll"] / math.log(2)
    if has_bytes:
        out["bits_per_byte"], out["bits_per_byte_se"] = statistics.ratio(bits, sums["bytes"])
    else:
        out["bits_per_byte"] = out["bits_per_byte_se"] = None
    notes = list(model.notes)
    if ref is not None:
        out["reference"] = ref.model.name or ref.model.config.architecture
        notes += [Note("reference", f"reference: {note}") for note in ref.model.notes if note not in model.notes]
        delta = sums["nll"] - sums["reference_nll"]
        pairs = {"kl": sums["kl"], "top1_agreement": sums["same"], "nll_delta": delta}
        for name, values in pairs.items():
            out[name], out[f"{name}_se"] = statistics.ratio(values, count)
        if has_bytes:
            found = statistics.ratio(delta / math.log(2), sums["bytes"])
            out["bits_per_byte_delta"], out["bits_per_byte_delta_se"] = found
    step = None if protocol != "sliding" else window // 2 if stride is None else stride
    return Evaluation(
        model=model.name or model.config.architecture,
        protocol=protocol,
        window=window,
        stride=step,
        tokens=int(count.sum()),
        bytes=int(sums["bytes"].sum()) if has_bytes else None,
        windows=len(count),
        nll=nll,
        nll_se=nll_se,
        perplexity=math.exp(nll),
        perplexity_se=None if nll_se is None else math.exp(nll) * nll_se,  # delta method
        time_s=time_s,
        notes=tuple(notes),
        per_window=sums,
        **out,
    )


class _Reporter:
    """Progress on stderr, to a function, or nowhere."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total = progress, total
        self.bar: Any = None

    def __enter__(self) -> Callable[[int], None]:
        if callable(self.progress):
            call = self.progress
            return lambda done: call(done, self.total)
        if not self.progress:
            return lambda done: None
        from rich.console import Console
        from rich.progress import Progress as Bar

        self.bar = bar = Bar(console=Console(stderr=True), transient=True)
        task = bar.add_task("evaluating", total=self.total)
        bar.start()
        return lambda done: bar.update(task, completed=done)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
