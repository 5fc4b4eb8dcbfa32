"""Mismatch counts of the tensor-core models against recordings of real GPUs and against mmasim.

python reports/tensorcore_accuracy.py [--write]

Run from a checkout beside the recordings (../shared/data); with mmasim 2.1.1 installed its comparison is added.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from _machine import describe

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from qsim.tensorcore import get_instruction, matmul, mma
from tests.tensorcore import cases
from tests.tensorcore import test_hardware as hardware


def instructions(path: Path) -> list[tuple[str, int, int]]:
    """(name, mismatches, outputs) of every recorded instruction."""
    found = []
    with np.load(path) as data:
        for name in sorted({key.rsplit(".", 1)[0] for key in data.files}):
            ins = get_instruction(hardware.instruction_of(name))
            a, b, c, d = (data[f"{name}.{x}"] for x in "ABCD")
            if ins.output == "s32":
                a, b, c, d = a.view(np.int8), b.view(np.int8), c.view(np.int32), d.view(np.int32)
            found.append((f"`{name}` as `{ins.name}`", int((mma(ins, a, b, c) != d).sum()), d.size))
    return found


def gemms(path: Path) -> list[tuple[str, int, int]]:
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    with np.load(path) as data:
        for case in sorted({key.rsplit(".", 1)[0] for key in data.files}):
            for output, (x, w, arguments) in hardware.CALLS.items():
                expected = data[f"{case}.{output}"]
                got = matmul(data[f"{case}.{x}"], data[f"{case}.{w}"], **arguments)
                found[output][0] += int((got != expected).sum())
                found[output][1] += expected.size
    return [(f"`{name}`: {hardware.CALLS[name][2]}", *counts) for name, counts in found.items()]


def vectors() -> list[tuple[str, int, int]]:
    found = []
    for parameter in hardware.vector_sets():
        (row,) = parameter.values
        if row is None:
            return []
        wrong, count = hardware.vector_mismatches(row)
        found.append(
            (f"{row['gpu']} {row['input']} -> {row['output']} as `{hardware.vector_instruction(row)}`", wrong, count)
        )
    return found


def against_mmasim() -> list[tuple[str, int, int]]:
    """Every row that mmasim has, six kinds of inputs, several instructions each."""
    try:
        from tests.tensorcore import test_mmasim as oracle
    except BaseException as error:  # importorskip raises a pytest outcome
        print(f"mmasim is left out: {error}", file=sys.stderr)
        return []
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    rows: dict[str, int] = defaultdict(int)
    for parameter in oracle.all_pairs():
        name, kind, architecture, qualifier = parameter.values
        ins = get_instruction(name)
        theirs = getattr(oracle.nv_ptx, kind)(architecture, qualifier)
        rng = np.random.default_rng(7 + sum(map(ord, name)))
        group = ".".join(name.split(".")[:2])
        rows[group] += 1
        for case in cases.KINDS:
            for _ in range(6):
                a = cases.operand(ins, "a", case, (theirs.m, theirs.k), rng)
                b = cases.operand(ins, "b", case, (theirs.n, theirs.k), rng)
                c = cases.addend(ins, case, (theirs.m, theirs.n), rng)
                result = theirs(
                    oracle.to_torch(a, ins.input_a), oracle.to_torch(b, ins.input_b).T, oracle.to_torch(c, ins.output)
                )
                expected, got = oracle.bits_of(result, ins.output_dtype), mma(ins, a, b, c)
                floats = {"f16": np.float16, "f32": np.float32, "f64": np.float64}[ins.output]
                same = (got == expected) | (np.isnan(got.view(floats)) & np.isnan(expected.view(floats)))
                found[group][0] += int((~same).sum())
                found[group][1] += same.size
    return [(f"`{group}`, {rows[group]} rows", *counts) for group, counts in found.items()]


def table(title: str, rows: list[tuple[str, int, int]]) -> list[str]:
    if not rows:
        return [f"## {title}", "", "Not run: the data or package is not here.", ""]
    lines = [f"## {title}", "", "| what | mismatches | outputs |", "|---|---|---|"]
    lines += [f"| {name} | {wrong} | {count:,} |" for name, wrong, count in rows]
    total = f"| **total** | **{sum(r[1] for r in rows)}** | **{sum(r[2] for r in rows):,}** |"
    return [*lines, total, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write reports/tensorcore_accuracy.md")
    write = parser.parse_args().write
    full = hardware.SHARED / "h200"
    mma_file, gemm_file = (
        full / f if (full / f).exists() else hardware.GOLDEN / f for f in ("mma.npz", "gemm_bits.npz")
    )
    lines = ["# Accuracy of the tensor-core models", ""]
    lines += [f"* {line}" for line in describe("numpy", "numba", "mmasim", "torch")]
    lines += [
        "",
        "Outputs are compared bit for bit. NaN equals the hardware's canonical NaN only, except against mmasim,",
        "where any NaN equals any NaN.",
        "",
    ]
    lines += table("Instructions recorded on an H200", instructions(mma_file))
    lines += table("Whole GEMMs recorded on an H200 (PyTorch 2.11, cuBLASLt)", gemms(gemm_file))
    lines += table("Published recordings (Khattak & Mikaitis, arXiv:2512.07004)", vectors())
    lines += table("mmasim 2.1.1, random and adversarial inputs (NVIDIA rows without block scales)", against_mmasim())
    text = "\n".join(lines).rstrip() + "\n"
    print(text)
    if write:
        (Path(__file__).parent / "tensorcore_accuracy.md").write_text(text)


if __name__ == "__main__":
    main()
