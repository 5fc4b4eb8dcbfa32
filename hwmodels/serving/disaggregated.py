"""Prefill and decode on separate workers: a queue of prefills, the copy of the cache, and a pool that decodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsim.notes import Note

from .closed import places_of
from .constants import Constants
from .deployment import Deployment
from .events import host_vector
from .policy import EnginePolicy
from .steps import StepTable
from .workload import Workload

ROUNDS = 60
CLOSE = 1e-4
"""Relative change of a round that ends the iteration."""


@dataclass(frozen=True, kw_only=True)
class Apart:
    """Means of the steady state.

    Attributes:
        ttft_s, tpot_s: seconds. requests_per_s: served. rows: decode rows of a step of one worker.
        prefill_per_s: requests per second that the prefill workers can read. utilisation: of them.
        limit: `prefill`, `memory`, `requests` or `arrivals`.
    """

    ttft_s: float
    tpot_s: float
    requests_per_s: float
    rows: float
    prefill_per_s: float
    utilisation: float
    limit: str


NOT_HELD = Note(
    "separate_not_measured",
    "separate prefill workers are not held to measurements: of the points that there are, the workers' numbers are not "
    "certain, and the predictions miss them by a factor of about two; the bands are those of workers that do both",
)


def serve_apart(
    reader: StepTable, writer: StepTable, workload: Workload, policy: EnginePolicy, constants: Constants,
    plan: Deployment,
) -> Apart:  # fmt: skip
    """Means of `plan.prefill.replicas` prefill workers that feed `plan.replicas` decode workers.

    Prefills queue as M/D/c (Sakasegawa's approximation, with half the wait of exponential service); the cache of a
    prompt crosses the link before its second token; decode steps hold no prompts. `NOT_HELD` says what it is worth.
    """
    from .loop import step_s

    assert plan.prefill is not None
    readers = plan.prefill.replicas * plan.prefill.attention_data_parallel * plan.prefill.pipeline_parallel
    writers = plan.replicas * plan.attention_data_parallel * plan.pipeline_parallel
    prompt, output = workload.mean_prompt, workload.mean_output
    fresh = max(1.0, prompt * (1 - workload.prefix_hit))
    host = host_vector(policy, constants, writer.mixtures)
    spec = policy.speculation
    width, gain = (1.0, 1.0) if spec is None else (spec.verified, spec.gained)

    def step(table: StepTable, rows: int, chunk: int, reading: float, ending: int) -> float:
        context = prompt + output / 2
        args = (table.linear, table.head, table.decode, table.padded, table.first, table.ratio, host)
        return float(step_s(rows, context, chunk, reading, ending, width, *args))

    pieces = max(1.0, np.ceil(fresh / policy.token_budget))
    places = reader.spacing * np.arange(reader.prompt.size)
    reading = float(np.interp(prompt, places, reader.prompt) - np.interp(prompt - fresh, places, reader.prompt))
    service = pieces * step(reader, 0, int(fresh / pieces), reading / pieces + reader.fixed, 1)
    copy = plan.link_latency_s + writer.kv_bytes * prompt / (plan.link_gbytes_per_s * 1e9)
    most = readers / service
    slots = float(places_of(writer, policy, prompt, output)) * writers
    flight = workload.concurrency
    sent = min(workload.offered_per_s or most, most)
    rows, token, first = 1.0, 0.0, service
    for _ in range(ROUNDS):
        busy = min(sent / most, 0.999)
        waited = service / readers * busy ** (np.sqrt(2 * (readers + 1)) - 1) / (1 - busy) / 2
        if flight is not None:  # no more can wait than are in flight
            waited = min(waited, service * flight / readers / 2)
        first = constants.request_s + constants.token_s * prompt + waited + service
        low = int(np.floor(rows))
        cap = writer.padded.size - 2
        part = rows - low
        token = (1 - part) * step(writer, max(1, min(low, cap)), 0, 0.0, 0) + part * step(
            writer, min(low + 1, cap), 0, 0.0, 0
        )
        token /= gain
        if flight is not None:
            sent = min(0.5 * (sent + flight / (first + copy + (output - 1) * token)), most)
        fresh = max(1.0, min(0.5 * (rows + sent * (output - 1) * token / writers), slots / writers))
        still = abs(fresh - rows) < CLOSE * rows
        rows = fresh
        if still and flight is None:
            break
    held = sent * (output - 1) * token
    if sent >= 0.98 * most:
        limit = "prefill"
    elif held >= slots:
        limit = "memory"
    else:
        limit = "requests" if flight is not None else "arrivals"
    # the second token waits for the copy of the cache: spread over all gaps between tokens
    seen = token + copy / max(output - 1, 1.0)
    load = (workload.offered_per_s or 0.0) / most if flight is None else sent / most
    return Apart(
        ttft_s=float(first), tpot_s=float(seen), requests_per_s=float(sent), rows=float(rows),
        prefill_per_s=float(most), utilisation=float(load), limit=limit,
    )  # fmt: skip
