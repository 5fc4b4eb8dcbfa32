"""What each scheme is expected to lose on each model, for the page: published evidence, asked once for every pair."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

from qsim.errors import QsimError
from qsim.evidence import expected_loss
from qsim.evidence.expectation import Basis
from qsim.evidence.served import SERVED

METHODS = tuple(dict.fromkeys(s.method for s in SERVED if s.method != "awq"))
"""Methods that engines serve checkpoints of; AWQ and GPTQ lose alike, and the page says the latter."""
CACHES = ("", "fp8")
"""KV caches that engines serve."""


def served_schemes() -> dict[str, str]:
    """Scheme, with its KV cache, -> the method that its checkpoints are made with."""
    known = {s.scheme: s.method for s in SERVED if s.method in METHODS}
    return {name + (f"-kv{kv}" if kv else ""): method for name, method in known.items() for kv in CACHES}


def losses_of(models: Iterable[str], schemes: Iterable[str]) -> dict[str, dict[str, list[Any]]]:
    """Model -> scheme -> percent of an average score lost, its 80 % band, and the places of basis and method in the
    lists of `words`, and whether a collapse of the kind was published; left out where nothing is known."""
    found: dict[str, dict[str, list[Any]]] = {}
    bases, served = get_args(Basis), served_schemes()
    for model in models:
        for scheme in schemes:
            if scheme not in served:
                continue
            try:
                e = expected_loss(model, "rtn" if served[scheme] == "none" else served[scheme], scheme)
            except QsimError:  # numbers that no evidence can be compared with
                continue
            if e.lost is None or e.lost_low is None or e.lost_high is None:
                continue
            row = [round(e.lost, 3), round(e.lost_low, 3), round(e.lost_high, 3), bases.index(e.basis)]
            found.setdefault(model, {})[scheme] = [*row, METHODS.index(served[scheme]), int(e.fragile)]
    return found


def words() -> dict[str, list[str]]:
    """What the numbers of bases and methods in `losses_of` stand for."""
    return {"bases": list(get_args(Basis)), "methods": list(METHODS)}
