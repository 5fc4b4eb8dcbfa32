"""The page's workloads are Python's: the closed form of a served case, computed by a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .browser import computed
from .cases import random_workloads
from .test_law import own_models, parameters

SCRIPTS = ("law.js", "serving.js")
IN_BROWSER = """
Law.load(data.parameters);
return data.cases.map((c) => {
  try {
    return Serving.curve(Law.device(c.device, c.set), c, c.model, c.context);
  } catch (error) { return error.message; }
});
"""
# the same operations in the same order: the two iterate alike, and stop in the same round
TOLERANCE = 1e-9


def differing(cases: list[dict[str, Any]], found: list[Any]) -> list[Any]:
    """Cases in which the two differ: in the sentence of a refusal at all, in numbers by more than the tolerance."""
    wrong = []
    for case, here in zip(cases, found, strict=True):
        there = case["python"]
        if isinstance(here, str) or isinstance(there, str):
            alike = here == there
        else:
            alike = all(
                ours.keys() == theirs.keys() and all(_close(ours[key], value) for key, value in theirs.items())
                for ours, theirs in zip(here, there, strict=True)
            )
        if not alike:
            wrong.append((case, here))
    return wrong


def _close(ours: float | None, theirs: float | None) -> bool:
    return ours is theirs if ours is None or theirs is None else abs(ours - theirs) <= TOLERANCE * abs(theirs)


def test_served_workloads_in_a_browser_are_those_of_python(tmp_path: Path) -> None:
    cases = random_workloads(parameters(6), own_models(6), 36, seed=3)
    found = computed(SCRIPTS, {"parameters": parameters(6), "cases": cases}, IN_BROWSER, tmp_path)
    served = [case for case in cases if not isinstance(case["python"], str)]
    assert len(cases) > len(served) > 20
    assert differing(cases, found) == []
    served[0]["python"][0]["ttft"] *= 1.001
    assert len(differing(cases, found)) == 1


@pytest.mark.oracle
def test_a_thousand_served_workloads_in_a_browser_are_those_of_python(tmp_path: Path) -> None:
    cases = random_workloads(parameters(1), own_models(1), 1000, seed=7)
    found = computed(SCRIPTS, {"parameters": parameters(1), "cases": cases}, IN_BROWSER, tmp_path)
    assert differing(cases, found) == []
