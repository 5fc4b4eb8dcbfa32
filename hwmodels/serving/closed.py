"""Closed form: the mean of what `simulate` gives, for sweeps over many workloads and widths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import check_positive
from .constants import Constants
from .events import host_vector
from .policy import SCHEDULES, EnginePolicy
from .steps import StepTable

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Steady:
    """Means of one engine in steady state, each of the shape of the arguments.

    Attributes:
        tpot_s, ttft_s: seconds per token, and to the first one; the burst at the start is in it where it was asked for.
        requests_per_s: served.
        rows: decode rows of a step. prompt_share: of the steps that hold prompts.
    """

    tpot_s: Array
    ttft_s: Array
    requests_per_s: Array
    rows: Array
    prompt_share: Array


def closed_form(
    table: StepTable, policy: EnginePolicy, constants: Constants, *, prompt: Any, output: Any, concurrency: Any = None,
    rate_per_s: Any = None, prefix_hit: float = 0.0, waves: float | None = None,
) -> Steady:  # fmt: skip
    """One engine's means for arrays of workloads.

    Arguments:
        prompt, output: mean tokens; concurrency: in flight in a closed loop, or rate_per_s: arrivals of an open one.
            Arrays broadcast.
        waves: requests of the run for each in flight; the first wave starts as one burst. None leaves the burst out.

    Raises:
        QsimError: sizes that are not positive.
    """
    from .mean_field import steady_many

    check_positive(prompt=prompt, output=output)
    check_positive(**({"rate_per_s": rate_per_s} if concurrency is None else {"concurrency": concurrency}))
    flight = np.zeros(1) if concurrency is None else np.asarray(concurrency, np.float64)
    rate = np.zeros(1) if rate_per_s is None else np.asarray(rate_per_s, np.float64)
    arrays = np.broadcast_arrays(flight, rate, np.asarray(prompt, np.float64), np.asarray(output, np.float64))
    shape = np.broadcast_shapes(*(np.shape(v) for v in (concurrency, rate_per_s, prompt, output) if v is not None))
    c, r, p, o = (np.array(v, np.float64).reshape(-1) for v in arrays)
    places = places_of(table, policy, p, o)
    spec = policy.speculation
    fresh = np.maximum(p * (1 - prefix_hit), 1.0)
    inbound = constants.request_s + constants.token_s * p
    host = host_vector(policy, constants, table.mixtures)
    order = np.array([SCHEDULES.index(policy.schedule), policy.token_budget, 0, 0, 0], np.int64)
    found = steady_many(
        c, r, fresh, o, places, inbound, order, table.arrays(float(np.mean(p - fresh))), host,
        1.0 if spec is None else spec.verified, 1.0 if spec is None else spec.gained,
    )  # fmt: skip
    token, waited, sent, rows, share = found.T
    first = waited + inbound
    if waves is not None:
        burst = np.minimum(c, places) * fresh / 2.0 / np.minimum(policy.token_budget, np.maximum(c * fresh, 1.0))
        full = np.minimum(policy.token_budget, np.maximum(c, 1.0) * fresh).astype(np.int64)
        seconds = table.linear[np.minimum(full, table.linear.size - 1)]
        reading = np.interp(fresh, table.spacing * np.arange(table.prompt.size), table.prompt) * full / fresh
        at_once = np.maximum(burst, 0.5) * (seconds + reading) + 0.5 * (seconds + reading)
        first = first + np.where(c > 0, np.maximum(at_once - waited, 0.0) / waves, 0.0)
    return Steady(
        tpot_s=token.reshape(shape), ttft_s=first.reshape(shape), requests_per_s=sent.reshape(shape),
        rows=rows.reshape(shape), prompt_share=share.reshape(shape),
    )  # fmt: skip


def places_of(table: StepTable, policy: EnginePolicy, prompt: Any, output: Any) -> Array:
    """Sequences that run at once: what the engine allows, and what the cache holds of their mean tokens."""
    share = 1.0 if policy.reserve_output else 0.5
    held = np.asarray(prompt, np.float64) + share * np.asarray(output, np.float64) + policy.block_tokens / 2
    most = table.kv_tokens * (1 - policy.watermark) / held
    return np.clip(np.floor(most), 1.0, float(min(policy.max_sequences, table.padded.size - 2)))
