"""Which tokens of a text go through a model together, and which of them are scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from qsim.errors import QsimError

from .model import Model

Protocol: TypeAlias = Literal["windows", "sliding", "gptq"]
PROTOCOLS = ("windows", "sliding", "gptq")
BATCH_TOKENS = 1024  # windows shorter than this go through the model together


@dataclass(frozen=True, kw_only=True)
class Window:
    """Tokens `start` to `stop` go in; the prediction of each from `scored` on is held against the next token."""

    start: int
    stop: int
    scored: int


def plan_windows(
    model: Model, count: int, window: int, stride: int | None, protocol: str, *, room: bool = False
) -> list[Window]:  # fmt: skip
    """The windows of a text of `count` tokens; see `qsim.models.evaluate` for what the protocols are. With `room` one
    token of the context is left for what goes before every window.

    Raises:
        QsimError: an unknown protocol, a window or stride outside its range, a text too short for the protocol.
    """
    if protocol not in PROTOCOLS:
        raise QsimError(f"protocol must be one of {', '.join(PROTOCOLS)}: got {protocol!r}")
    context = model.config.max_position_embeddings - room
    if not 2 <= window <= context:
        raise QsimError(f"window must be between 2 and the context length ({context}): got {window}")
    if stride is not None and protocol != "sliding":
        raise QsimError(f"stride belongs to protocol='sliding': got {protocol!r}")
    needed = window if protocol == "gptq" else 2
    if count < needed:
        raise QsimError(f"protocol {protocol!r} needs a text of at least {needed} tokens: got {count}")
    if protocol == "gptq":
        return [Window(start=s, stop=s + window - 1, scored=s) for s in range(0, count - window + 1, window)]
    if protocol == "windows":
        return [Window(start=s, stop=min(s + window, count - 1), scored=s) for s in range(0, count - 1, window)]
    step = window // 2 if stride is None else stride
    if not 1 <= step <= window:
        raise QsimError(f"stride must be between 1 and the window ({window}): got {step}")
    out, done = [], 0  # `done`: tokens before it were predicted, or are the text's first
    for s in range(0, count, step):
        end = min(s + window, count)
        first = max(done - 1, s)  # the token before the first that is not predicted yet
        if end - 1 > first:
            out.append(Window(start=s, stop=end - 1, scored=first))
        done = end
        if end == count:
            break
    return out


def batches_of(plan: list[Window], at_most: int) -> Iterator[range]:
    """Runs of windows of one length, up to the tokens that go through the model together and `at_most` windows."""
    at = 0
    while at < len(plan):
        length = plan[at].stop - plan[at].start
        most, end = min(max(1, BATCH_TOKENS // length), at_most), at + 1
        while end < len(plan) and end - at < most and plan[end].stop - plan[end].start == length:
            end += 1
        yield range(at, end)
        at = end
