"""Random cases of the what-if page, with what Python predicts of each."""

from __future__ import annotations

import random
from typing import Any

import hwmodels
from hwmodels.device.build import number_range
from hwmodels.device.load import get_device
from hwmodels.workload.architecture import Architecture, get_architecture
from qsim.errors import QsimError
from qsim.explore.parameters import KV_CACHES
from qsim.explore.served import curve
from qsim.scheme import get_scheme


def random_cases(
    parameters: dict[str, Any], own: dict[str, Architecture], count: int, seed: int
) -> list[dict[str, Any]]:
    """Devices, models, schemes, caches, phases and sizes at random; half of the devices with up to three fields moved
    by up to a factor of four. The devices take turns, so that each is there.

    Arguments:
        own: models beside the shipped ones, by name.
    """
    rng = random.Random(seed)
    devices, found = list(parameters["devices"]), []
    for i in range(count):
        name = devices[i % len(devices)]
        model, scheme = rng.choice(list(parameters["models"])), rng.choice(list(parameters["schemes"]))
        fields = parameters["devices"][name]["fields"]
        heads = parameters["models"][model]["heads"]
        widths = [n for n in (1, 2, 4, 8, 16) if heads % n == 0 and (n == 1 or "link.latency_us" in fields)]
        overrides: dict[str, float] = {}
        for field in rng.sample(list(fields), min(3, len(fields))) if rng.random() < 0.5 else ():
            low, high = number_range(field)
            value = min(max(fields[field] * 2 ** rng.uniform(-2, 2), low), high)
            overrides[field] = int(value) if field == "compute.units" else value
        case = {
            "device": name, "model": model, "scheme": scheme, "kv": rng.choice(KV_CACHES), "overrides": overrides,
            "phase": rng.choice(["decode", "prefill"]), "batch": int(2 ** rng.uniform(0, 9)),
            "context": int(2 ** rng.uniform(0, 17)), "tp": rng.choice(widths),
        }  # fmt: skip
        found.append({**case, "python": predicted(case, own)})
    return found


def predicted(case: dict[str, Any], own: dict[str, Architecture]) -> dict[str, Any]:
    """What Python says of a case."""
    scheme = case["scheme"] + (f"-kv{case['kv']}" if case["kv"] else "")
    p = hwmodels.predict(
        case["device"], own.get(case["model"], case["model"]), scheme, case["phase"], case["batch"], case["context"],
        tensor_parallel=case["tp"], overrides=case["overrides"],
    )  # fmt: skip
    energy = () if p.energy is None else (p.energy.energy_j, p.energy.low_j, p.energy.high_j)
    return {
        "numbers": [float(v) for v in (p.time_s, p.low_s, p.high_s, p.footprint.total_bytes, *energy)],
        "words": [p.bound, p.fidelity, bool(p.fits), p.largest_batch, [op.name for op in p.operators]],
        "operators": [[float(op.time_s), float(op.low_s), float(op.high_s)] for op in p.operators],
    }  # fmt: skip


def random_workloads(
    parameters: dict[str, Any], own: dict[str, Architecture], count: int, seed: int
) -> list[dict[str, Any]]:
    """Cases as `random_cases` that serve prompts of a random length, with what Python says of each: the points of its
    curve, or the sentence of its refusal."""
    found = random_cases(parameters, own, count, seed)
    for i, case in enumerate(found):
        case |= {"price": 2.5 if i % 2 else None, "set": case["overrides"]}
        scheme = case["scheme"] + (f"-kv{case['kv']}" if case["kv"] else "")
        model = own.get(case["model"]) or get_architecture(case["model"])
        try:
            case["python"] = curve(
                get_device(case["device"], case["overrides"]), model, get_scheme(scheme),
                context=case["context"], tensor_parallel=case["tp"], price=case["price"],
            )  # fmt: skip
        except QsimError as error:
            case["python"] = str(error)
    return found
