"""What the accumulator does: each device's own matrix instruction on the same numbers, against the exact sum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwmodels.device.device import Device
from qsim.formats import cast
from qsim.scheme import get_scheme
from qsim.tensorcore import Instruction, generic, get_instruction, matmul
from qsim.tensorcore.floats import encode_operand

from .hardware import devices
from .rows import AccumulatorRow
from .spec import Accumulator, StudySpec

_CODES = {"bfloat16": "bf16", "float16": "f16", "float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2", "int8": "s8"}
PROMOTED = 128
"""K after which libraries add a chain to a float32 register (cuBLASLt, DeepGEMM): shown beside the bare chain."""
ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Adder:
    """The instruction that a device multiplies a format with, where that is from, and its parameters in words."""

    instruction: Instruction
    status: str
    parameters: str


def adder(device: Device, given: Accumulator | None, fmt: str) -> Adder | None:
    """A device's instruction for operands of `fmt`: its own, else the accumulator that the study gives, else None."""
    own = device.instructions.get(fmt)
    if own is not None:
        ins = get_instruction(own)
        return Adder(instruction=ins, status=ins.status, parameters=_words(ins))
    if given is None or fmt not in _CODES or fmt not in device.compute.formats:
        return None
    code = _CODES[fmt]
    if code == "s8":
        ins = generic(input="s8", arithmetic="integer", output="s32", products=given.products)
    elif given.arithmetic == "fma":
        ins = generic(input=code, arithmetic="fma")
    else:
        ins = generic(input=code, arithmetic=given.arithmetic, products=given.products,
                      fraction_bits=given.fraction_bits)  # fmt: skip
    return Adder(instruction=ins, status="given", parameters=f"{_words(ins)}; {given.source}")


def _words(ins: Instruction) -> str:
    if ins.arithmetic == "integer":
        return "exact int32 sums"
    if ins.arithmetic == "fma":
        return "a chain of float32 fused multiply-adds"
    return f"L={ins.products}, F={ins.fraction_bits}, {ins.rounding}"


def compute_format(scheme: str, executed: str) -> str:
    """The format that a scheme's products are formed in: its own, or 16 bit where activations stay there."""
    found = get_scheme(scheme)
    if executed == "weights" or found.compute is None:
        return "bfloat16"
    return found.compute.name


def ways(spec: StudySpec) -> dict[str, tuple[Instruction, int | None]]:
    """Label -> instruction and promotion interval: FP8 where a device has it, else BF16; equal ones once."""
    given = {d.title: d.accumulator for d in spec.speed.devices}
    found: dict[str, tuple[Instruction, int | None]] = {}
    names: dict[tuple[str, str], list[str]] = {}
    for title, device in devices(spec).items():
        one = adder(device, given[title], "float8_e4m3fn") or adder(device, given[title], "bfloat16")
        if one is None:
            continue
        names.setdefault((one.instruction.name, _words(one.instruction)), []).append(title)
        label = f"{', '.join(names[one.instruction.name, _words(one.instruction)])}"
        found = {k: v for k, v in found.items() if v[0] != one.instruction}
        found[f"{label}: {'FP8' if one.instruction.input_a == 'e4m3' else 'BF16'}"] = (one.instruction, None)
    for label, (ins, _) in list(found.items()):
        if ins.input_a == "e4m3" and ins.name.startswith("hopper"):
            found[f"{label}, promoted every {PROMOTED}"] = (ins, PROMOTED)
    return found


def accumulator_rows(spec: StudySpec) -> Iterator[AccumulatorRow]:
    """Error of sums of products of E4M3 numbers against K, for zero-mean and one-sided data."""
    top = 12 if spec.quality.exact_bytes >= 256 else 11
    for data in ("zero mean", "one sign"):
        for k in 2 ** np.arange(5, top + 1):
            rng = np.random.default_rng([spec.quality.seed, int(k)])
            draw: Any = rng.standard_normal if data == "zero mean" else rng.random
            a, b = (cast(draw((ROWS, int(k))).astype(np.float32), "e4m3") for _ in range(2))
            exact = a.astype(np.float64) @ b.astype(np.float64).T  # products of E4M3 below 2^53 units: exact
            for way, (ins, promote) in ways(spec).items():
                x, y = encode_operand(a, ins, "a"), encode_operand(b, ins, "b")
                got = matmul(x, y, instruction=ins, promote_every=promote if promote and promote <= k else None)
                error = got.view(np.float32).astype(np.float64) - exact
                yield AccumulatorRow(
                    way=way, data=data, k=int(k),
                    relative_error=float(np.linalg.norm(error) / np.linalg.norm(exact)),
                    bias=float(error.sum() / np.abs(exact).sum()),
                )  # fmt: skip
