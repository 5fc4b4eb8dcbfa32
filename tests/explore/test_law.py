"""The page's law is Python's: the same times, bands, memory and energy, computed by a real browser."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwmodels.workload.architecture import Architecture, get_architecture
from qsim.explore.parameters import export

from .browser import computed
from .cases import random_cases

IN_BROWSER = """
Law.load(data.parameters);
return data.cases.map((c) => {
  const p = Law.predict(Law.device(c.device, c.overrides), c.model, c.scheme, c.kv, c.phase, c.batch, c.context, c.tp);
  const energy = p.energy ? [p.energy.joules, p.energy.low, p.energy.high] : [];
  return { numbers: [p.time, p.low, p.high, p.memory.total, ...energy],
    words: [p.bound, p.tag, p.memory.fits, p.largest, p.rows.map((r) => r.name)],
    operators: p.rows.map((r) => [r.time, r.low, r.high]) };
});
"""


CONFIGS = sorted((Path(__file__).parents[1] / "families/data").glob("*.json"))


@functools.cache
def own_models(step: int) -> dict[str, Architecture]:
    """Models of users' config files, by the names that they have here: every `step`-th of those that tests hold, of
    all kinds of layers."""
    paths = [path for path in CONFIGS if path.stem != "more_configs"][::step]
    return {f"own-{path.stem}": replace(get_architecture(path), name=f"own-{path.stem}") for path in paths}


@functools.cache
def parameters(step: int) -> dict[str, Any]:
    return export(models=list(own_models(step).values()))


def differing(cases: list[dict[str, Any]], found: list[dict[str, Any]], tolerance: float) -> list[Any]:
    """Cases in which the two differ: in words at all, in numbers by more than the tolerance."""
    wrong = []
    for case, here in zip(cases, found, strict=True):
        there = case["python"]
        pairs = [*zip(here["numbers"], there["numbers"], strict=True)]
        for ours, theirs in zip(here["operators"], there["operators"], strict=False):
            pairs += zip(ours, theirs, strict=True)
        if here["words"] != there["words"] or any(abs(a - b) > tolerance * abs(b) for a, b in pairs):
            wrong.append((case, here))
    return wrong


# the same operations in the same order: what is left is the twelve digits that parameters are exported with
TOLERANCE = 1e-9


def test_times_bands_memory_and_energy_in_a_browser_are_those_of_python(tmp_path: Path) -> None:
    cases = random_cases(parameters(6), own_models(6), 90, seed=2)
    found = computed(["law.js"], {"parameters": parameters(6), "cases": cases}, IN_BROWSER, tmp_path)
    assert differing(cases, found, TOLERANCE) == []
    cases[0]["python"]["numbers"][0] *= 1.001
    assert len(differing(cases, found, TOLERANCE)) == 1


@pytest.mark.oracle
def test_two_thousand_random_cases_in_a_browser_are_those_of_python(tmp_path: Path) -> None:
    cases = random_cases(parameters(1), own_models(1), 2000, seed=1)
    for key in ("device", "scheme", "model"):
        assert {c[key] for c in cases} == set(parameters(1)[f"{key}s"])
    found = computed(["law.js"], {"parameters": parameters(1), "cases": cases}, IN_BROWSER, tmp_path)
    assert differing(cases, found, TOLERANCE) == []
