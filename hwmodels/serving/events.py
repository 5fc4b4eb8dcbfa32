"""Discrete events: an engine's steps one after another, over a table of step times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qsim.errors import QsimError

from .constants import Constants
from .policy import SCHEDULES, EnginePolicy
from .steps import StepTable
from .workload import Workload

Array = np.ndarray[Any, np.dtype[np.float64]]
MOST_STEPS = 2_000_000_000


@dataclass(frozen=True, kw_only=True)
class Run:
    """What happened to every request, and the engine over time.

    Attributes:
        sent_s, begun_s, first_s, done_s: (n,) seconds when the client sent it, the engine began its prompt, the client
            got the first token, and the last.
        prompt, output: (n,) tokens.
        counted: (n,) whether it belongs to the measured part of the run.
        timeline: (points, 4) seconds, running sequences, waiting ones, tokens in the cache.
        steps, preemptions: counted; copied: of the preempted, those whose cache was copied back and not computed again.
        mean_rows: decode rows of a step, in the mean over time.
        prompt_share: of the time in steps that hold prompts. span_s: of the run.
    """

    sent_s: Array
    begun_s: Array
    first_s: Array
    done_s: Array
    prompt: Array
    output: Array
    counted: np.ndarray[Any, np.dtype[np.bool_]]
    timeline: Array
    steps: int
    preemptions: int
    copied: int
    mean_rows: float
    prompt_share: float
    span_s: float

    @property
    def ttft_s(self) -> Array:
        """Seconds to the first token of the counted requests."""
        return (self.first_s - self.sent_s)[self.counted]

    @property
    def tpot_s(self) -> Array:
        """Mean seconds from token to token of the counted requests that got more than one."""
        some = self.counted & (self.output > 1)
        return ((self.done_s - self.first_s)[some]) / (self.output[some] - 1)

    @property
    def latency_s(self) -> Array:
        """Seconds to the last token of the counted requests."""
        return (self.done_s - self.sent_s)[self.counted]

    @property
    def output_tokens_per_s(self) -> float:
        """Generated tokens per second of the whole run."""
        return float(self.output.sum() / self.span_s)


def host_vector(policy: EnginePolicy, constants: Constants, mixtures: int) -> Array:
    """What `loop.step_s` takes of the host, for a model with so many layers of experts."""
    drafting = 0.0 if policy.speculation is None else policy.speculation.drafts * policy.speculation.draft_share
    return np.array([*constants.host_s(mixtures), drafting, constants.request_s])


def simulate(
    table: StepTable, workload: Workload, policy: EnginePolicy, constants: Constants, *, in_flight: int | None = None,
    share: int = 1,
) -> Run:  # fmt: skip
    """Run a workload through one engine.

    Arguments:
        in_flight: of a closed loop, where it is not the workload's own: the share of one of several engines.
        share: engines side by side; the engine gets each so many-th request of an open loop.

    Raises:
        QsimError: a request that the engine's cache cannot hold.
    """
    from .loop import run

    arrival, prompt, output = workload.draw()
    closed = workload.concurrency is not None
    flight = 0 if not closed else (in_flight or workload.concurrency or 1)
    if closed:
        kept = slice(0, max(1, int(np.ceil(workload.count * flight / (workload.concurrency or 1)))))
    else:
        kept = slice(0, None, share)
    arrival, prompt, output = arrival[kept].copy(), prompt[kept], output[kept]
    largest = float((prompt + output).max())
    if largest + policy.block_tokens > table.kv_tokens:
        raise QsimError(
            f"the KV cache of an engine holds {table.kv_tokens:.0f} tokens, and a request has {largest:.0f}: take more "
            "devices, a smaller scheme or shorter requests"
        )
    cached = workload.prefix_hit
    fresh = np.maximum(np.round(prompt * (1 - cached)), 1.0)
    service = constants.token_s * prompt + 0.0 * prompt
    n = prompt.size
    first = min(flight, n) if closed else n
    seen = np.zeros(n)
    if closed:
        seen[:first] = constants.request_s + np.cumsum(service[:first])
    else:
        gate = 0.0
        for i in range(n):
            gate = max(gate, arrival[i] + constants.request_s) + service[i]
            seen[i] = gate
    places = int(min(policy.max_sequences, table.padded.size - 1, n if not closed else max(flight, 1)))
    spec = policy.speculation
    # all devices of an engine copy at once, each its share
    swap = table.kv_bytes / (policy.offload_gbytes_per_s * 1e9)
    tier = policy.offload_gbytes * 1e9 / table.kv_bytes
    begun, token, done, line, facts = run(
        arrival, seen, service, fresh.astype(np.int64), output, flight,
        np.array([SCHEDULES.index(policy.schedule), policy.token_budget, max(1, places), policy.reserve_output,
                  policy.block_tokens, policy.batch_wait_steps], np.int64),
        table.kv_tokens * (1 - policy.watermark), table.arrays(float(np.mean(prompt - fresh))),
        host_vector(policy, constants, table.mixtures), 1.0 if spec is None else spec.verified,
        1.0 if spec is None else spec.gained, swap, tier,
        MOST_STEPS,
    )  # fmt: skip
    counted = np.ones(n, np.bool_)
    if workload.start == "steady" and closed:
        counted[: min(flight, n - 1)] = False
    return Run(
        sent_s=arrival, begun_s=begun, first_s=token, done_s=done, prompt=prompt, output=output,
        counted=counted, timeline=line, steps=int(facts[0]), preemptions=int(facts[1]), copied=int(facts[7]),
        mean_rows=float(facts[3] / facts[2]), prompt_share=float(facts[4] / facts[2]),
        span_s=float(facts[2] - arrival[0]),
    )  # fmt: skip
