"""The requests that a deployment gets: when they come, how long their prompts and answers are."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from qsim.errors import QsimError
from qsim.files import read_text

from ..checks import check_count, check_not_negative, check_number, check_positive

Array = np.ndarray[Any, np.dtype[np.float64]]
STARTS = ("burst", "steady")
WAVES = 10
"""Requests of a closed loop for each in flight, where their number is not given: what InferenceX runs."""
OPEN_REQUESTS = 2000
"""Requests of an open loop, where their number is not given."""
LONGEST = 1 << 22
SIGMAS = 4.0
"""Where a log-normal length is cut: beyond it a draw of thousands finds almost nothing."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of prompts or answers.

    Attributes:
        kind: `fixed`, `uniform` (whole numbers from `low` to `high`), `lognormal` (median `middle`, standard deviation
            of the logarithm `sigma`, cut at four of them) or `values` (drawn from `values` with equal chance).
    """

    kind: str = "fixed"
    middle: float = 1024.0
    low: float = 0.0
    high: float = 0.0
    sigma: float = 0.0
    values: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind == "uniform":
            check_number(low=self.low, high=self.high)
            if not 1 <= self.low <= self.high:
                raise QsimError(f"uniform lengths must have 1 <= low <= high: got {self.low:g} to {self.high:g}")
        elif self.kind == "lognormal":
            check_positive(middle=self.middle, sigma=self.sigma)
        elif self.kind == "values":
            if not self.values or min(self.values) < 1:
                raise QsimError("lengths from values must hold at least one, each of at least 1 token")
        elif self.kind == "fixed":
            check_number(length=self.middle)
            if self.middle < 1:
                raise QsimError(f"a length must be at least 1 token: got {self.middle:g}")
        else:
            raise QsimError(f"lengths are fixed, uniform, lognormal or values: got {self.kind!r}")
        if self.largest > LONGEST:
            raise QsimError(f"lengths must be at most {LONGEST} tokens: got {self.largest:g}")

    @property
    def mean(self) -> float:
        """Mean tokens."""
        if self.kind == "uniform":
            return (self.low + self.high) / 2
        if self.kind == "lognormal":
            return self.middle * math.exp(self.sigma**2 / 2)
        return float(np.mean(self.values)) if self.kind == "values" else float(self.middle)

    @property
    def largest(self) -> float:
        """The longest that is drawn."""
        if self.kind == "uniform":
            return self.high
        if self.kind == "lognormal":
            return self.middle * math.exp(min(SIGMAS * self.sigma, 50.0))
        return float(max(self.values)) if self.kind == "values" else float(self.middle)

    def draw(self, count: int, rng: np.random.Generator) -> Array:
        """(count,) lengths in whole tokens."""
        if self.kind == "uniform":
            drawn = rng.integers(math.ceil(self.low), math.floor(self.high) + 1, count).astype(np.float64)
        elif self.kind == "lognormal":
            normal = np.clip(rng.standard_normal(count), -SIGMAS, SIGMAS)
            drawn = np.round(self.middle * np.exp(self.sigma * normal))
        elif self.kind == "values":
            drawn = rng.choice(np.array(self.values, np.float64), count)
        else:
            drawn = np.full(count, float(round(self.middle)))
        return np.maximum(drawn, 1.0)

    def __str__(self) -> str:
        if self.kind == "uniform":
            return f"{self.low:g} to {self.high:g}"
        if self.kind == "lognormal":
            return f"log-normal, median {self.middle:g}, sigma {self.sigma:g}"
        return f"{len(self.values)} lengths of a file" if self.kind == "values" else f"{self.middle:g}"


LengthsLike: TypeAlias = "int | float | str | Lengths"


def as_lengths(value: LengthsLike, name: str = "length") -> Lengths:
    """Lengths from a number, or from a text: `2000`, `uniform:800:1024`, `lognormal:1000:0.5`, `file:lengths.csv`.

    A file has one length on each line, after an optional header.

    Raises:
        QsimError: another form, or lengths that no request can have.
    """
    if isinstance(value, Lengths):
        return value
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        return Lengths(middle=float(value))
    form = f"{name} must be tokens, uniform:LOW:HIGH, lognormal:MEDIAN:SIGMA or file:PATH: got {value!r}"
    if not isinstance(value, str):
        raise QsimError(form)
    kind, *rest = value.split(":", 1 if value.startswith("file:") else -1)
    try:
        if kind == "uniform" and len(rest) == 2:
            return Lengths(kind="uniform", low=float(rest[0]), high=float(rest[1]))
        if kind == "lognormal" and len(rest) == 2:
            return Lengths(kind="lognormal", middle=float(rest[0]), sigma=float(rest[1]))
        if kind == "file" and len(rest) == 1:
            return Lengths(kind="values", values=_lengths_of_file(Path(rest[0])))
        if not rest:
            return Lengths(middle=float(kind))
    except QsimError:
        raise
    except ValueError:
        pass
    raise QsimError(form)


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except OSError as error:
        raise QsimError(f"{path} cannot be read: {error.strerror or error}") from None


def _lengths_of_file(path: Path) -> tuple[int, ...]:
    found = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        text = line.split(",")[0].strip()
        if not text or (number == 1 and not text.replace(".", "", 1).isdigit()):
            continue
        if not text.isdigit() or int(text) < 1:
            raise QsimError(f"{path}, line {number}: a length must be a whole number of at least 1: got {text!r:.40}")
        found.append(int(text))
    if not found:
        raise QsimError(f"{path} holds no length: one whole number is needed on each line")
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Requests over time.

    Attributes:
        concurrency: requests in flight of a closed loop: each that ends sends the next. None for an open loop.
        rate_per_s: mean arrivals of an open loop, a Poisson process; None for a closed loop.
        trace: (seconds, prompt tokens, output tokens) of each request, in the order of time; empty for none.
        prompt, output: lengths; a number or a text will do (`as_lengths`).
        requests: of the whole run; None is ten for each in flight, or 2000 of an open loop.
        prefix_hit: share of the prompt tokens that the prefix cache holds already.
        start: `burst` counts every request of a closed loop, all places being filled at once; `steady` leaves out the
            first wave.
        spread: half width, as a share, by which lengths called fixed differ from request to request: a prompt of a
            client is made of words and counted in tokens. Requests of exactly equal lengths (0) fall into step with
            each other in a closed loop, which no measured one does.
        seed: of the drawn lengths and arrivals.
    """

    concurrency: int | None = None
    rate_per_s: float | None = None
    trace: tuple[tuple[float, int, int], ...] = ()
    prompt: LengthsLike = 1024
    output: LengthsLike = 256
    requests: int | None = None
    prefix_hit: float = 0.0
    start: str = "burst"
    spread: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        given = [self.concurrency is not None, self.rate_per_s is not None, bool(self.trace)]
        if sum(given) != 1:
            raise QsimError("a workload must have exactly one of concurrency, rate_per_s and trace")
        object.__setattr__(self, "prompt", as_lengths(self.prompt, "prompt"))
        object.__setattr__(self, "output", as_lengths(self.output, "output"))
        if self.concurrency is not None:
            check_count(concurrency=self.concurrency)
        if self.rate_per_s is not None:
            check_positive(rate_per_s=self.rate_per_s)
            check_number(rate_per_s=self.rate_per_s)
        if self.requests is not None:
            check_count(requests=self.requests)
        check_not_negative(prefix_hit=self.prefix_hit, seed=self.seed)
        if not self.prefix_hit < 1:
            raise QsimError(f"prefix_hit is a share below 1: got {self.prefix_hit:g}")
        check_not_negative(spread=self.spread)
        if not self.spread < 1:
            raise QsimError(f"spread is a share below 1: got {self.spread:g}")
        if self.start not in STARTS:
            raise QsimError(f"start must be burst or steady: got {self.start!r}")
        last = 0.0
        for row, (at, prompt, output) in enumerate(self.trace, 1):
            if at < last:
                raise QsimError(f"trace row {row}: time must not go back: {at:g} s comes after {last:g} s")
            if prompt < 1 or output < 1:
                raise QsimError(f"trace row {row}: prompt and output need at least 1 token: got {prompt} and {output}")
            last = at

    @property
    def arrivals(self) -> str:
        """`closed`, `poisson` or `trace`."""
        return "trace" if self.trace else "closed" if self.concurrency is not None else "poisson"

    @property
    def count(self) -> int:
        """Requests of the run."""
        if self.trace:
            return len(self.trace) if self.requests is None else min(self.requests, len(self.trace))
        if self.requests is not None:
            return self.requests
        return OPEN_REQUESTS if self.concurrency is None else WAVES * self.concurrency

    @property
    def mean_prompt(self) -> float:
        """Mean prompt tokens."""
        return float(np.mean([t[1] for t in self.trace])) if self.trace else as_lengths(self.prompt).mean

    @property
    def mean_output(self) -> float:
        """Mean output tokens."""
        return float(np.mean([t[2] for t in self.trace])) if self.trace else as_lengths(self.output).mean

    @property
    def longest(self) -> float:
        """Tokens of the longest request that can be drawn."""
        if self.trace:
            return float(max(t[1] + t[2] for t in self.trace))
        return math.ceil((as_lengths(self.prompt).largest + as_lengths(self.output).largest) * (1 + self.spread))

    @property
    def offered_per_s(self) -> float | None:
        """Requests a second of an open loop; None for a closed one."""
        if self.trace:
            span = self.trace[-1][0] - self.trace[0][0]
            return (len(self.trace) - 1) / span if span > 0 else None
        return self.rate_per_s

    def draw(self) -> tuple[Array, Array, Array]:
        """(count,) seconds of arrival (0 in a closed loop), prompt tokens and output tokens."""
        n = self.count
        if self.trace:
            at, prompt, output = np.array(self.trace[:n], np.float64).T
            return at - at[0], prompt, output
        rng = np.random.default_rng(self.seed)
        prompt, output = (self._draw(as_lengths(length), n, rng) for length in (self.prompt, self.output))
        at = np.zeros(n) if self.rate_per_s is None else np.cumsum(rng.exponential(1 / self.rate_per_s, n))
        return at, prompt, output

    def _draw(self, lengths: Lengths, count: int, rng: np.random.Generator) -> Array:
        drawn = lengths.draw(count, rng)
        if lengths.kind != "fixed" or self.spread == 0:
            return drawn
        return np.maximum(np.round(drawn * (1 + self.spread * rng.uniform(-1.0, 1.0, count))), 1.0)


TRACE_COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")


def read_trace(path: str | Path) -> tuple[tuple[float, int, int], ...]:
    """The requests of a CSV file with the columns arrival_s, prompt_tokens and output_tokens, for `Workload.trace`.

    Raises:
        QsimError: no such file, a column that is missing, or a value that is none, with its row (the header is row 1).
    """
    text = _text(Path(path))
    reader = csv.DictReader(text.splitlines())
    missing = [name for name in TRACE_COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise QsimError(f"{path}: the trace has no column {missing[0]}: it needs {', '.join(TRACE_COLUMNS)}")
    found: list[tuple[float, int, int]] = []
    for row, line in enumerate(reader, 2):
        try:
            at, prompt, output = float(line["arrival_s"]), int(line["prompt_tokens"]), int(line["output_tokens"])
        except (TypeError, ValueError):
            held = ", ".join(f"{name} {line[name]!r:.20}" for name in TRACE_COLUMNS)
            raise QsimError(f"{path}, row {row}: a time and two whole numbers are needed: got {held}") from None
        if not math.isfinite(at) or prompt < 1 or output < 1:
            raise QsimError(f"{path}, row {row}: the time must be finite, and prompt and output at least 1 token")
        if found and at < found[-1][0]:
            raise QsimError(
                f"{path}, row {row}: arrival_s must not go back: the gap to the row before is {at - found[-1][0]:g} s"
            )
        found.append((at, prompt, output))
    if not found:
        raise QsimError(f"{path}: the trace holds no request")
    return tuple(found)
