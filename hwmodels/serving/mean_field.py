"""The mean of an engine's steps in steady state, and what queueing identities say about waiting: compiled loops."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from qsim._cache import FOLDER as _FOLDER  # noqa: F401  (before Numba compiles)

from .loop import PREFILL_FIRST, WHOLE_PROMPTS, _between, step_s

ROUNDS = 60
CLOSE = 1e-4
"""Relative change of a round that ends the iteration."""
STEPS_SEEN = 32
"""Steps after a finish that are told apart; later a request comes at a random moment of a step."""


@njit(cache=True)
def _until_next(offset: float, plain: float, filled: float, share: float) -> float:
    """Seconds from `offset` after the end of a step to the next end of one; a share of the steps are `filled` ones.

    A request of a closed loop is sent when a step ends, and comes a fixed time later: what is left of the step that is
    under way is no random part of it.
    """
    mean = (1.0 - share) * plain + share * filled
    random = ((1.0 - share) * plain**2 + share * filled**2) / (2.0 * mean)
    waited, left, chance = 0.0, offset, 1.0
    for _ in range(STEPS_SEEN):
        waited += chance * share * (filled - left if left <= filled else random)
        if left <= plain:
            return waited + chance * (1.0 - share) * (plain - left)
        chance *= 1.0 - share
        left -= plain
    return waited + chance * random


@njit(cache=True)
def steady(
    flight: float, rate: float, prompt: float, output: float, places: float, inbound: float, policy: Any, table: Any,
    host: Any, width: float, gain: float,
) -> tuple[float, float, float, float, float]:  # fmt: skip
    """One engine in steady state.

    Arguments:
        flight: requests in flight of a closed loop, 0 for an open loop of `rate` requests per second.
        prompt, output: mean tokens. places: sequences that run at once at most. inbound: seconds from the client to the
            scheduler.
        policy, table, host, width, gain: as in `loop.run`.

    Returns:
        Seconds per token, seconds from the scheduler to the first token, requests per second, decode rows of a step,
        share of the steps that hold prompts.

    Each step holds the prompts of the requests that came during one step: as many as ended, in steady state. They are
    Poisson distributed over steps, so that some steps hold none. A request waits for the step under way when it
    comes, for prompts before it where the budget is short (M/D/1), and for a place (Little's law) where there are more
    requests than places. In an open loop it finds as many running as there are in the mean, itself beside them, and
    its first token is followed by the prompts of those that came while its own was read.
    """
    linear, head, decode, padded, context_sum, spacing, fixed, first, ratio, cached = table
    kind, budget = policy[0], float(policy[1])
    running = min(flight, places) if flight > 0 else 1.0
    last = (width, linear, head, decode, padded, first, ratio, host)
    reading = _between(context_sum, spacing, prompt + cached) - _between(context_sum, spacing, cached)
    context = prompt + cached + output / 2.0
    rows, share, token, waited, sent, busy = max(1.0, running), 0.0, 0.0, 0.0, rate, 0.0
    others = 1.0 - 1.0 / running if flight > 0 else 1.0  # a request's own prompt comes before its tokens
    for turn in range(ROUNDS):
        met = rows if flight > 0 else min(rows + 1.0, max(places, 1.0))
        low = min(int(met), linear.shape[0] - 1, decode.shape[0] - 2)
        part = met - low
        plain = 0.0
        for count, weight in ((low, 1.0 - part), (low + 1, part)):
            if weight > 0.0:
                plain += weight * step_s(max(count, 1), context, 0, 0.0, 0, *last)
        whole = round(met)
        if kind == PREFILL_FIRST:
            alone = max(1.0, prompt / budget)
            chunk = int(min(prompt, budget))
            filled = alone * step_s(0, 0.0, chunk, reading / alone + fixed, 1, *last)
            busy = min(sent * filled * others, 0.95)
            each, share = plain / (1.0 - busy), busy
            # all that came during the step that a request met are read beside it
            longest = filled * (1.0 + sent * others * ((1.0 - busy) * plain + busy * filled))
            often = busy / longest / (busy / longest + (1.0 - busy) / plain)
            late = ((1.0 - busy) * plain + busy * longest) / 2.0
            service, ahead = filled, filled * sent * others * 2.0 * late
            own, follows = filled, filled
        else:
            room = max(budget - met * width, 1.0) if kind != WHOLE_PROMPTS else max(budget - met * width, prompt)
            pieces = max(1.0, np.ceil(prompt / room)) if kind != WHOLE_PROMPTS else 1.0
            mean = max(plain, token * gain)
            coming = sent * mean * others
            share = 1.0 - np.exp(-coming * pieces)
            held = coming * prompt / max(share, 1e-9)
            over = max(held / room, 1.0)
            chunk = int(min(held, room))
            ending = max(1, round(coming / max(share, 1e-9)))
            filled = step_s(whole, context, chunk, coming * reading / max(share, 1e-9) / over + fixed, ending, *last)
            each = (1.0 - share) * plain + share * filled * over
            longest, often = filled * over, share
            late = ((1.0 - share) * plain**2 + share * longest**2) / (2.0 * each)
            # the step that a request's own prompt, or a piece of it, rides in, with those that came in the one it met
            beside = max(coming, sent * others * 2.0 * late)
            chunk = int(min(prompt / pieces + beside * prompt, room))
            own = step_s(whole, context, chunk, reading / pieces + beside * reading + fixed, 1, *last)
            utilisation = min(coming * prompt / room, 0.95)
            service, ahead = own * pieces, utilisation / (2.0 * (1.0 - utilisation)) * own * pieces
            own, follows = own * pieces, (own - plain) * pieces
        new = each / gain
        if flight == 0:
            new += rate * max(own - each, 0.0) * max(follows, 0.0) / max(output - 1.0, 1.0)
        moved = abs(new - token)
        token = new if turn == 0 else 0.5 * (token + new)
        if flight > 0:
            if inbound == 0.0 or flight <= 1.0:
                late = 0.0  # a request that follows one at once comes between two steps
            else:
                late = _until_next(inbound, plain, longest, often)
        waited = service + ahead + late
        if flight > 0:
            sent = running / (service + ahead + late + inbound + max(output - 1.0, 0.0) * token)
            waited += max(flight - places, 0.0) / sent
        else:
            sent = rate
        fresh = sent * max(output - 1.0, 0.0) * token
        fresh = min(max(0.5 * (rows + fresh), 1.0), places)
        still = moved < CLOSE * token and abs(fresh - rows) < CLOSE * rows
        rows = fresh
        if still:
            break
    return token, waited, sent, rows, share


@njit(cache=True)
def steady_many(
    flight: Any, rate: Any, prompt: Any, output: Any, places: Any, inbound: Any, policy: Any, table: Any, host: Any,
    width: float, gain: float,
) -> Any:  # fmt: skip
    """`steady` for arrays: (n, 5)."""
    found = np.empty((flight.size, 5))
    for i in range(flight.size):
        found[i] = steady(
            flight[i], rate[i], prompt[i], output[i], places[i], inbound[i], policy, table, host, width, gain
        )
    return found
