"""Serving: what the users of a deployment see, and what it costs.

    served = hwmodels.serve(
        "llama-3-70b", "h200", "fp8", workload=Workload(concurrency=32, prompt=2000, output=300),
        policy="vllm", deployment=Deployment(tensor_parallel=4),
    )

A `Workload` says which requests come when, an `EnginePolicy` how an engine forms its steps, a `Deployment` on how many
devices. `simulate` runs the engine's steps one after another over a table of the predictor's step times; `closed_form`
gives the mean of the same in microseconds, for sweeps. Names load their part on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_LAZY = {
    "Constants": "constants",
    "Deployment": "deployment",
    "DoesNotFitError": "served",
    "EnginePolicy": "policy",
    "Lengths": "workload",
    "Served": "served",
    "Speculation": "policy",
    "Spread": "served",
    "Workload": "workload",
    "closed_form": "closed",
    "constants_for": "constants",
    "get_policy": "policy",
    "Plan": "planning",
    "plan": "planning",
    "policy_names": "policy",
    "read_trace": "workload",
    "serve": "served",
    "simulate": "events",
    "tabulate": "steps",
}
if TYPE_CHECKING:
    from .closed import closed_form
    from .constants import Constants, constants_for
    from .deployment import Deployment
    from .events import simulate
    from .planning import Plan, plan
    from .policy import EnginePolicy, Speculation, get_policy, policy_names
    from .served import DoesNotFitError, Served, Spread, serve
    from .steps import tabulate
    from .workload import Lengths, Workload, read_trace

__all__ = [
    "Constants", "Deployment", "DoesNotFitError", "EnginePolicy", "Lengths", "Plan", "Served", "Speculation", "Spread",
    "Workload", "closed_form", "constants_for", "get_policy", "plan", "policy_names", "read_trace", "serve", "simulate",
    "tabulate",
]  # fmt: skip

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in _LAZY:
            value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(n for n in globals() if n.startswith("__"))})
