"""The event loop of one engine: requests arrive, wait, are prefilled, decode, and free their place.

Times of steps come from a `StepTable`. Between two events (an arrival, a finish, a full cache) steps are equal but for
the growing context, so that the loop jumps over them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from qsim._cache import FOLDER as _FOLDER  # noqa: F401  (before Numba compiles)

MIXED, WHOLE_PROMPTS, PREFILL_FIRST = 0, 1, 2
"""How a step holds prompts: pieces of them beside the decode rows, whole ones beside them, or prompts alone."""
SAMPLES = 2048
"""Points of a timeline; every second one is dropped when it is full."""


@njit(cache=True)
def attention_s(rows: int, context: float, decode: Any, first: float, ratio: float) -> float:
    """Decode attention of `rows` sequences: linear between the columns of contexts, which grow by `ratio`."""
    if context <= first:
        return float(decode[rows, 0] * max(context, 1.0) / first if decode[rows, 0] > 0.0 else 0.0)
    position = np.log(context / first) / ratio
    at = min(int(position), decode.shape[1] - 2)
    low, high = first * np.exp(at * ratio), first * np.exp((at + 1) * ratio)
    share = (context - low) / (high - low)
    return float(decode[rows, at] + share * (decode[rows, at + 1] - decode[rows, at]))


@njit(cache=True)
def _between(table: Any, step: float, at: float) -> float:
    position = at / step
    low = min(int(position), table.shape[0] - 2)
    return float(table[low] + (position - low) * (table[low + 1] - table[low]))


@njit(cache=True)
def step_s(
    rows: int, context: float, chunk: int, prefill_attention: float, ending: int, width: float,
    linear: Any, head: Any, decode: Any, padded: Any, first: float, ratio: float, host: Any,
) -> float:  # fmt: skip
    """Seconds of one step.

    Arguments:
        rows, context: decode rows and their mean tokens in the cache.
        chunk, prefill_attention, ending: prompt tokens, the seconds of their attention, prompts that end here.
        width: tokens that a decode row brings (more than one when drafts are verified).
        linear, head, decode, padded, first, ratio: the table; rows that a CUDA graph pads to.
        host: seconds of a step, of a row of it, more where it holds prompts, drafting as a share of a plain step,
            seconds on the way in.
    """
    seen = padded[rows] if chunk == 0 else rows
    tokens = round(seen * width) + chunk
    total = linear[min(tokens, linear.shape[0] - 1)]
    total += head[min(round(seen * width) + ending, head.shape[0] - 1)]
    if rows > 0:
        reading = attention_s(seen, context, decode, first, ratio)
        total += reading + host[3] * (linear[seen] + head[seen] + reading)
    total += prefill_attention + host[0] + host[1] * (rows + ending)
    return float(total + host[2]) if chunk > 0 else float(total)


@njit(cache=True)
def run(
    arrival: Any, seen: Any, service: Any, prompt: Any, output: Any, in_flight: int, policy: Any, capacity: float,
    table: tuple[Any, ...], host: Any, width: float, gain: float, swap: float, tier: float,
    limit: int,
) -> Any:  # fmt: skip
    """Serve all requests.

    Arguments:
        arrival, seen: (n,) seconds when a client sends a request and when the scheduler sees it, not decreasing; with
            `in_flight` > 0 only the first so many are read, each finish sends the next request, and both are filled.
        service: (n,) seconds that each request occupies what is before the scheduler (HTTP, tokeniser).
        prompt, output: (n,) tokens to prefill (those a prefix cache holds left out) and to generate.
        policy: int64: kind, token budget, places, whole reservation (0 or 1), blocks' tokens, steps that prompts are
            held back.
        capacity: tokens that the cache holds.
        table: linear, head, decode, padded, prefill attention and its step, fixed seconds, first, ratio, cached tokens.
        width, gain: tokens that a row brings to a step, and that it gets from it.
        swap, tier: seconds to copy a token of the cache back to the device, and tokens that the memory behind it holds;
            sequences that were put back and find no room there are computed again.
        limit: steps after which the loop gives up.

    Returns:
        started, first token and end of each request in seconds, a timeline of (seconds, running, waiting, tokens in the
        cache), and steps, preemptions, device-busy seconds, mean rows, seconds of prompts, most tokens in the cache,
        ticks, sequences that were copied.
    """
    linear, head, decode, padded, context_sum, spacing, fixed, first, ratio, cached = table
    n, places = prompt.shape[0], policy[2]
    kind, budget, whole, block, hold = policy[0], policy[1], policy[3], policy[4], policy[5]
    held_steps = 0
    begun, token, done = np.full(n, -1.0), np.full(n, -1.0), np.full(n, -1.0)
    queue = np.empty(n + places + 1, np.int64)  # a ring, as preempted requests come back in front
    size, front, waiting = queue.shape[0], 0, 0
    due = min(in_flight, n) if in_flight > 0 else n
    released, sent = 0, due
    target, made = prompt.astype(np.float64).copy(), np.zeros(n)
    behind, room_behind, copied = np.zeros(n), tier, 0
    slot, stored, left = np.full(places, -1, np.int64), np.zeros(places), np.zeros(places)
    ready = np.zeros(places, np.bool_)  # its prompt is in the cache: it decodes
    order = np.empty(places, np.int64)  # slots by the time of their admission
    active, free_tokens = 0, capacity
    line = np.zeros((SAMPLES, 4))
    points, stride, tick = 0, 1, 0
    gate = seen[due - 1] if in_flight > 0 else 0.0
    now, finished, steps, preempted, rows_time, prompt_time, peak = 0.0, 0, 0, 0, 0.0, 0.0, 0.0
    while finished < n and steps < limit:
        while released < due and seen[released] <= now:
            queue[(front + waiting) % size] = released
            waiting += 1
            released += 1
        if active == 0 and waiting == 0:
            now = max(now, seen[released])
            continue
        # what is in the cache and decodes
        rows, held, room = 0, 0.0, budget
        for at in range(active):
            place = order[at]
            if ready[place]:
                rows += 1
                held += stored[place]
        if kind != PREFILL_FIRST:
            room -= int(rows * width)
        chunk, ending, spent = 0, 0, 0.0
        for at in range(active):  # prompts that were begun
            place = order[at]
            missing = int(target[slot[place]] - stored[place])
            if missing > 0 and room > 0:
                piece = min(missing, room)
                spent += _between(context_sum, spacing, stored[place] + piece + cached) - _between(
                    context_sum, spacing, stored[place] + cached
                )
                stored[place] += piece
                chunk += piece
                room -= piece
                if piece == missing:
                    ending += 1
        holding = hold > 0 and waiting > 0 and active < places and rows > 0 and held_steps < hold
        if not holding:
            held_steps = 0
        while waiting > 0 and active < places and room > 0 and not holding:
            request = queue[front]
            reserve = target[request] + (output[request] - made[request] if whole else 0.0)
            reserve = np.ceil((reserve + 1.0) / block) * block
            if kind == WHOLE_PROMPTS and target[request] > room and chunk > 0:
                break
            if reserve > free_tokens and active > 0:
                break
            place = 0
            while slot[place] >= 0:
                place += 1
            slot[place], left[place], ready[place] = request, output[request] - made[request], False
            free_tokens -= reserve
            order[active] = place
            active += 1
            front = (front + 1) % size
            waiting -= 1
            if begun[request] < 0.0:
                begun[request] = now
            if behind[request] > 0.0:
                room_behind += behind[request]
                behind[request] = 0.0
                copied += 1
                spent += swap * target[request]
                stored[place], ready[place] = target[request] - 1.0, True
                continue
            piece = int(target[request]) if kind == WHOLE_PROMPTS else min(int(target[request]), room)
            spent += _between(context_sum, spacing, piece + cached) - _between(context_sum, spacing, cached + 0.0)
            stored[place] = piece
            chunk += piece
            room -= piece
            if piece >= target[request]:
                ending += 1
        if kind == PREFILL_FIRST and chunk > 0:
            decoding = 0
        else:
            decoding = rows
        context = held / rows if rows > 0 else 0.0
        context += cached
        spent += fixed if chunk > 0 else 0.0
        jump = 1
        if chunk == 0:
            least = np.inf
            for at in range(active):
                least = min(least, left[order[at]])
            jump = max(1, int(np.ceil(least / gain)))
            if holding:
                jump = min(jump, hold - held_steps)
            if not whole:
                jump = min(jump, max(1, int((free_tokens / block - active) * block / max(1, rows) / gain)))
        middle = context + gain * (jump - 1) / 2.0
        each = step_s(decoding, middle, chunk, spent, ending, width, linear, head, decode, padded, first, ratio, host)
        if chunk == 0 and released < due and active < places:
            soon = int(np.ceil((seen[released] - now) / each))
            if soon < jump:
                jump = max(1, soon)
                middle = context + gain * (jump - 1) / 2.0
                each = step_s(decoding, middle, 0, spent, 0, width, linear, head, decode, padded, first, ratio, host)
        now += each * jump
        if holding:
            held_steps += jump
        steps += jump
        rows_time += decoding * each * jump
        if chunk > 0:
            prompt_time += each
        # emit
        kept, used = 0, 0.0
        for at in range(active):
            place = order[at]
            request = slot[place]
            if ready[place]:
                if decoding > 0:
                    got = min(gain * jump, left[place])
                    left[place] -= got
                    made[request] += got
                    old = np.ceil((stored[place] + 1.0) / block)
                    stored[place] += got
                    if not whole:
                        free_tokens -= (np.ceil((stored[place] + 1.0) / block) - old) * block
            elif stored[place] >= target[request]:  # its prompt ended in this step
                if token[request] < 0.0:
                    token[request] = now
                made[request] += 1.0
                left[place] -= 1.0
                ready[place] = True
            if ready[place] and left[place] <= 1e-9:
                done[request] = now
                finished += 1
                whole_reserve = stored[place] if not whole else prompt[request] + output[request]
                free_tokens += np.ceil((whole_reserve + 1.0) / block) * block
                slot[place] = -1
                if in_flight > 0 and sent < n:
                    arrival[sent] = now
                    gate = max(gate, now + host[4]) + service[sent]
                    seen[sent] = gate
                    sent += 1
                    due = sent
            else:
                order[kept] = place
                kept += 1
                used += stored[place]
        active = kept
        peak = max(peak, used)
        while free_tokens < 0.0 and active > 1:  # the latest admitted goes back and is computed again
            active -= 1
            place = order[active]
            request = slot[place]
            free_tokens += np.ceil((max(stored[place], target[request]) + 1.0) / block) * block
            target[request] = prompt[request] + made[request]
            if made[request] > 0.0 and target[request] <= room_behind:
                behind[request] = target[request]
                room_behind -= target[request]
            slot[place] = -1
            stored[place] = 0.0
            front = (front - 1) % size
            queue[front] = request
            waiting += 1
            preempted += 1
        tick += 1
        if tick % stride == 0:
            if points == SAMPLES:
                for i in range(SAMPLES // 2):
                    line[i] = line[2 * i + 1]
                points, stride = SAMPLES // 2, stride * 2
            line[points, 0], line[points, 1], line[points, 2], line[points, 3] = now, active, waiting, used
            points += 1
    return (
        begun,
        token,
        done,
        line[:points],
        np.array([steps, preempted, now, rows_time, prompt_time, peak, tick, copied]),
    )
