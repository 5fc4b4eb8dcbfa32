"""What the page's cases serve: requests of one kind in a closed loop, in the steady state of vLLM's policy.

`curve` is what the live page shows. `engine_value` is what the exported page, which computes the same in
`templates/serving.js`, needs beside the law of a step: the policy, the sizes at which the step is tabulated, and
the constants of the closed form. What of it depends on the device is in the functions after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from hwmodels.device.device import Device
from hwmodels.serving import Deployment, Workload, closed_form, constants_for, get_policy, mean_field, steps, tabulate
from hwmodels.serving.constants import KEYS, generation_of, settled
from hwmodels.serving.served import MOST_ROWS, check_fits
from hwmodels.workload.architecture import Architecture
from qsim.scheme import Scheme

POLICY = "vllm"
OUTPUT = 256
"""Tokens that follow each prompt."""
IN_FLIGHT = tuple(1 << i for i in range(9))


def _load(context: int) -> Workload:
    return Workload(concurrency=1, prompt=context, output=OUTPUT, start="steady")


def curve(
    device: Device, model: Architecture, scheme: Scheme, *, context: int, tensor_parallel: int, price: float | None
) -> list[dict[str, Any]]:
    """A case at each of `IN_FLIGHT`: tokens per second of a user and of a device, seconds to the first token, cost of
    a million tokens and joules of each.

    Raises:
        QsimError: a model, or one request, that does not fit, and what `predict` refuses.
    """
    policy, plan = get_policy(POLICY), Deployment(tensor_parallel=tensor_parallel)
    flight, load = np.array(IN_FLIGHT, dtype=float), _load(context)
    rows = min(policy.max_sequences, MOST_ROWS)
    table = tabulate(device, model, scheme, policy, plan, rows=rows, context=load.longest)
    check_fits(model, device, scheme, table, load, plan)
    known = constants_for(policy, table.generation)
    known = settled(known, table.mixtures, table.fidelity, table.low, table.high)
    found = closed_form(table, policy, known, prompt=context, output=OUTPUT, concurrency=flight)
    rate = found.requests_per_s * OUTPUT
    return [
        {"batch": int(flight[i]), "user": 1 / float(found.tpot_s[i]), "each": float(rate[i]) / plan.gpus,
         "ttft": float(found.ttft_s[i]),
         "cost": None if price is None else price * plan.gpus / 3600 / float(rate[i]) * 1e6,
         "joule": None if table.power_w is None else float(table.power_w / rate[i])}
        for i in range(len(flight))
    ]  # fmt: skip


def engine_value() -> dict[str, Any]:
    """What does not depend on the device."""
    policy, load = get_policy(POLICY), _load(1)
    rows = min(policy.max_sequences, MOST_ROWS)
    tokens = max(policy.token_budget, rows) + rows
    names = ("token_budget", "max_sequences", "memory_share", "block_tokens", "watermark", "graph_rows", "schedule",
             "reserve_output")  # fmt: skip
    return {
        **{name: getattr(policy, name) for name in names}, "output": OUTPUT, "in_flight": IN_FLIGHT, "rows": rows,
        "tokens": steps.token_grid(tokens).astype(int).tolist(), "most_tokens": tokens, "spread": load.spread,
        "columns": steps.COLUMNS, "pieces": steps.PIECES, "first_context": steps.FIRST_CONTEXT, "head": steps.HEAD,
        "per_token_bytes": steps.PER_TOKEN_BYTES, "rounds": mean_field.ROUNDS, "close": mean_field.CLOSE,
        "steps_seen": mean_field.STEPS_SEEN,
    }  # fmt: skip


def engine_constants(device: Device) -> dict[str, float]:
    """What the engine adds to its kernels on a device."""
    found = asdict(constants_for(get_policy(POLICY), generation_of(device.calibration or device.name)))
    return {key: found[key] for key in KEYS}


def own_kernels(device: Device, schemes: Mapping[str, Scheme]) -> dict[str, str]:
    """Scheme -> the engine's own family of products, where it was measured on the device; elsewhere the step's."""
    found = {name: steps.engine_kernels(get_policy(POLICY), device, scheme) for name, scheme in schemes.items()}
    return {name: families[0] for name, families in found.items() if families}


def own_attention(device: Device) -> str | None:
    """The engine's own attention, where it was measured on the device."""
    return steps.engine_attention(get_policy(POLICY), device)
