"""Measured serving points: how a row of a table becomes a workload, an engine and a deployment, and its prediction."""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from qsim.errors import QsimError
from qsim.scheme import get_scheme

from ..device.load import get_device
from ..workload.architecture import Architecture, get_architecture
from .constants import Constants, constants_for, settled
from .deployment import Deployment
from .disaggregated import serve_apart
from .events import simulate
from .policy import EnginePolicy, Speculation, get_policy
from .recipes import DRAFTED, GROUPS_OF_32, KEPT, MODELS, NONE, UNKNOWN, Recipe, recipe_of
from .steps import StepTable, tabulate
from .workload import Lengths, Workload

SAMPLE = Path(__file__).parents[1] / "measurements" / "aiconfigurator" / "serving.csv.gz"
"""A part of the measured points, Apache-2.0 (see NOTICE)."""
SCHEMES = {
    "bf16": "bf16", "fp8": "fp8-tensor", "fp8_block": "fp8-block128", "nvfp4": "nvfp4", "mxfp4": "mxfp4-weight-only",
    "int4_wo": "w4a16-g128-sym",
}  # fmt: skip
COLUMNS = (
    "device", "model", "engine", "weights", "mode", "prompt_tokens", "output_tokens", "concurrency", "tp", "ttft_s",
    "tpot_s",
)  # fmt: skip
EIGHT_BIT_CACHE = ("trtllm",)
"""Engines whose FP8 checkpoints say that the cache is FP8 too, where the file does not: ModelOpt's do. Qwen3-32B on
H100 shows it: 128 sequences of 4,600 tokens run at once, for which a 16-bit cache has no room."""
SPECULATED = 2.0
"""How many times as fast a row may be that may have run with drafts: 2.5 tokens from a step of three drafts at the
acceptance that is assumed (0.7), which takes a quarter longer."""
BATCH_WAIT = 20
"""`batch_wait_timeout_iters` of the published recipe of Llama-70B, 1024 / 1024 below 8 devices."""
ASYNC_SINCE = (0, 14)
"""vLLM prepares the next step beside the device by default since this version, and where a recipe asks for it, as
InferenceX's do. The runs of aiconfigurator's authors, of older vLLM and of TensorRT-LLM, have engines as they come."""
MOST_REQUESTS = 3000
"""Of one simulated point: enough for its means; the share of the burst at the start stays that of the real run."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measured serving point.

    Attributes:
        row: the columns of the file. line: its line there.
        known: whether the client's protocol is documented. dense: no mixture of experts.
        trap: why it is left out, "" for a point that counts.
    """

    row: Mapping[str, str]
    line: int

    def text(self, name: str) -> str:
        """A column, "" where it is missing."""
        return self.row.get(name) or ""

    def number(self, name: str, default: float = 0.0) -> float:
        """A column as a number."""
        value = self.text(name)
        try:
            return float(value) if value else default
        except ValueError:
            raise QsimError(f"line {self.line}: {name} must be a number: got {value!r:.40}") from None

    @property
    def known(self) -> bool:
        """Whether the client's protocol is documented."""
        return self.text("source").startswith("inferencex")

    @property
    def trap(self) -> str:
        """Why the point is left out; "" for one that counts."""
        traps = [name for name in self.text("traps").split() if name != "one_wave"]
        return traps[0] if traps else ""

    @property
    def concurrency(self) -> int:
        """Requests in flight of one replica."""
        return max(1, int(self.number("engine_concurrency") or self.number("concurrency")))

    @property
    def block(self) -> tuple[str, str, str]:
        """Model, device and engine: what is left out of a fit at once."""
        return self.text("model"), self.text("device"), self.text("engine")

    @property
    def group(self) -> str:
        """The name of the engine's constants."""
        policy = self.policy()
        return policy.name if policy.overlap else f"{policy.name}-sync"

    @property
    def scheme(self) -> str:
        """The scheme that prices it."""
        weights = self.text("weights")
        if weights not in SCHEMES:
            raise QsimError(f"line {self.line}: weights must be one of {', '.join(SCHEMES)}: got {weights!r:.40}")
        name = SCHEMES[weights]
        if weights == "int4_wo" and self.text("model") in GROUPS_OF_32:
            name = name.replace("g128", "g32")
        recipe = self.recipe
        eight = self.text("kv") == "fp8" or self.text("engine") in EIGHT_BIT_CACHE or weights == "nvfp4"
        eight = eight or (recipe is not None and recipe.eight_bit_cache)
        return f"{name}-kvfp8" if eight and self.text("weights") in ("fp8", "fp8_block", "nvfp4") else name

    @property
    def recipe(self) -> Recipe | None:
        """How it was set up; None where no script of it is known."""
        return recipe_of(self.text) if self.known and self.text("mode") != "disagg" else None

    @property
    def quantized(self) -> str:
        """Which layers follow the scheme."""
        kept = KEPT.get((self.text("model"), self.text("weights")), "all")
        if self.text("weights") == "nvfp4" and not is_dense(self):
            return "mlp"
        return kept

    @property
    def speculation(self) -> str:
        """Whether it ran with speculative decoding: `none`, `drafted` or `unknown`."""
        recipe = recipe_of(self.text)
        told = NONE if recipe is None else recipe.speculation
        if self.recipe is None:  # a run of somebody else, who may have followed the recipe
            return UNKNOWN if told != NONE or self.text("model") == "deepseek-v3" else NONE
        return told

    @property
    def drafting(self) -> str:
        """How it drafted, with the acceptance that is assumed; for tables."""
        found = self.policy().speculation
        return f"speculative, {found}" if found is not None else f"speculative decoding: {self.speculation}"

    def policy(self) -> EnginePolicy:
        """The engine as it ran."""
        policy = self._set_up(get_policy(self.text("engine")))
        budget = self.number("max_batched_tokens")
        if budget:
            policy = replace(policy, token_budget=int(budget))
        lengths = (self.text("prompt_tokens"), self.text("output_tokens"))
        recipe = policy.name == "trtllm" and self.known and self.text("model") == "llama-3-70b"
        if recipe and lengths == ("1024", "1024") and self.number("tp", 1.0) < 8:
            policy = replace(policy, batch_wait_steps=BATCH_WAIT)
        new = policy.name == "vllm" and _version(self.text("engine_version")) >= ASYNC_SINCE
        overlap = self.known or new or policy.name == "sglang"
        return replace(policy, overlap=overlap)

    def _set_up(self, policy: EnginePolicy) -> EnginePolicy:
        """The engine with what its recipe says."""
        recipe = self.recipe
        if recipe is None:
            return policy
        budget = recipe.tokens(self.number("prompt_tokens"), self.concurrency)
        changes: dict[str, Any] = {"token_budget": budget} if budget else {}
        if recipe.memory_share:
            changes["memory_share"] = recipe.memory_share
        look = recipe.look_steps[self.concurrency >= 16]
        square = self.text("prompt_tokens") == self.text("output_tokens") == "1024"
        hold = recipe.hold_steps if square and self.concurrency >= recipe.hold_from else 0
        if look or hold:
            changes["batch_wait_steps"] = hold or look // 2
        if recipe.speculation == DRAFTED:
            one = self.deployment().attention_data_parallel > 1
            changes["speculation"] = Speculation(drafts=1 if one else recipe.drafts)
        return replace(policy, **changes)

    def deployment(self) -> Deployment:
        """One replica of the deployment."""
        if self.text("mode") == "disagg":
            decode, prefill = (self._part(f"{name}_") for name in ("decode", "prefill"))
            return replace(decode, prefill=prefill)
        return self._part("")

    def _part(self, prefix: str) -> Deployment:
        tp, ranks = (int(self.number(prefix + name, 1.0)) or 1 for name in ("tp", "attention_dp"))
        experts = int(self.number(prefix + "moe_ep", 1.0))
        if experts > 1 and experts == self.number(prefix + "moe_tp") and tp * ranks == experts**2:
            # the source multiplied two names of one split: eight devices stand as 64
            tp, ranks = (experts, 1) if ranks == 1 else (1, experts)
        elif tp == ranks > 1:  # likewise: attention over as many ranks as there are devices
            tp, experts = 1, min(experts, ranks)
        return Deployment(
            tensor_parallel=tp, attention_data_parallel=ranks,
            expert_parallel=math.gcd(tp * ranks, max(1, experts)),
            replicas=max(1, int(self.number(prefix + "workers", 1.0))),
        )  # fmt: skip

    def workload(self) -> Workload:
        """The benchmark's requests to one replica."""
        flight = self.concurrency
        requests = flight if "one_wave" in self.text("traps") else 10 * flight
        return Workload(
            concurrency=flight, prompt=self._lengths("prompt"), output=self._lengths("output"),
            requests=max(flight, min(requests, MOST_REQUESTS)),
        )  # fmt: skip

    def _lengths(self, name: str) -> Lengths:
        nominal = self.number(f"{name}_tokens")
        mean = self.number(f"mean_{name}_tokens", nominal)
        if mean < 0.95 * nominal:  # InferenceX draws from [0.8 L, L]
            return Lengths(kind="uniform", low=2 * mean - nominal, high=nominal)
        return Lengths(middle=nominal)


def _version(text: str) -> tuple[int, ...]:
    parts = text.split(".")[:2]
    return tuple(int(p) for p in parts) if all(p.isdigit() for p in parts) else (999,)


def read_points(path: str | Path | None = None) -> tuple[Point, ...]:
    """The points of a CSV file with the columns of `measurements/README.md`; None reads the sample of this package.

    Raises:
        QsimError: no such file, or a column that is missing.
    """
    where = SAMPLE if path is None else Path(path)
    try:
        opened = gzip.open(where, "rt", encoding="utf-8") if where.suffix == ".gz" else open(where, encoding="utf-8")
        with opened as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise QsimError(f"{where}: serving points need the column {missing[0]}; all of {', '.join(COLUMNS)}")
            return tuple(Point(row=row, line=line) for line, row in enumerate(reader, 2))
    except (OSError, UnicodeDecodeError, gzip.BadGzipFile) as error:
        raise QsimError(f"serving points {where} cannot be read: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A point with its prediction.

    Attributes:
        tpot_s, ttft_s: predicted means. constants: that they were predicted with, with the point's bands.
        table: of the engine's steps.
    """

    point: Point
    tpot_s: float
    ttft_s: float
    constants: Constants
    table: StepTable

    @property
    def tpot_ratio(self) -> float:
        """Predicted over measured."""
        return self.tpot_s / self.point.number("tpot_s")

    @property
    def ttft_ratio(self) -> float:
        """Predicted over measured."""
        return self.ttft_s / self.point.number("ttft_s")

    def banded(self, constants: Constants) -> Scored:
        """The same prediction with the bands that constants of its engine give it."""
        return replace(self, constants=_banded(self.point, self.table, constants))

    @property
    def tpot_held(self) -> bool:
        """Whether the 80 % band holds the measured value."""
        return self.constants.tpot[0] <= 1 / self.tpot_ratio <= self.constants.tpot[1]

    @property
    def ttft_held(self) -> bool:
        """Whether the 80 % band holds the measured value."""
        return self.constants.ttft[0] <= 1 / self.ttft_ratio <= self.constants.ttft[1]


class Tables:
    """Step tables of points, each made once."""

    def __init__(self) -> None:
        self._made: dict[Any, StepTable] = {}

    def of(self, point: Point, deployment: Deployment) -> StepTable:
        """The table of one engine of a point, with a context that points of near lengths share."""
        policy = point.policy()
        longest = point.number("prompt_tokens") + point.number("output_tokens")
        context = 1.05 * 2.0 ** math.ceil(math.log2(max(longest, 1024.0)))
        rows = min(4096, 2 ** math.ceil(math.log2(max(64, point.concurrency + 1))))
        alone = replace(deployment, prefill=None, replicas=1)
        key = (point.text("device"), point.text("model"), point.scheme, point.quantized, policy, alone, context, rows)
        if key not in self._made:
            device, arch = get_device(point.text("device").lower()), architecture_of(point)
            self._made[key] = tabulate(
                device, arch, get_scheme(point.scheme), policy, alone, rows=rows, context=context,
                quantized=point.quantized,
            )  # fmt: skip
        return self._made[key]


def _banded(point: Point, table: StepTable, constants: Constants) -> Constants:
    """Constants with the bands of a point."""
    found = settled(constants, table.mixtures, table.fidelity, table.low, table.high)
    if point.speculation == UNKNOWN:
        return replace(found, tpot=(found.tpot[0] / SPECULATED, found.tpot[1]))
    return found


def score(point: Point, tables: Tables, known: Sequence[Constants] | None = None) -> Scored:
    """Predict one point.

    Raises:
        QsimError: a model, device or split that is not known, or a request that does not fit.
    """
    deployment, policy, workload = point.deployment(), point.policy(), point.workload()
    table = tables.of(point, deployment)
    found = constants_for(policy, table.generation, None if known is None else tuple(known))
    found = _banded(point, table, found)
    if deployment.prefill is not None:
        reader = tables.of(point, deployment.prefill)
        means = serve_apart(reader, table, workload, policy, found, deployment)
        return Scored(
            point=point, tpot_s=means.tpot_s, ttft_s=means.ttft_s, constants=found, table=table
        )  # fmt: skip
    flight = math.ceil(point.concurrency / deployment.attention_data_parallel)
    run = simulate(table, workload, policy, found, in_flight=flight)
    return Scored(
        point=point, tpot_s=float(run.tpot_s.mean()), ttft_s=float(run.ttft_s.mean()), constants=found,
        table=table,
    )  # fmt: skip


@lru_cache(maxsize=32)
def _architecture(name: str) -> Architecture:
    return get_architecture(MODELS.get(name, name))


def architecture_of(point: Point) -> Architecture:
    """The architecture of a point's model.

    Raises:
        QsimError: it is not known.
    """
    return _architecture(point.text("model"))


def is_dense(point: Point) -> bool:
    """Whether the model of a point has no mixture of experts."""
    return architecture_of(point).experts == 1
