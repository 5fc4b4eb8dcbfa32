"""Counts of mismatches between the codec and everything it is held against. The right count is 0 everywhere.

python reports/formats_accuracy.py                       # prints; half a minute
python reports/formats_accuracy.py --exhaustive --write  # all 2^32 float32 inputs too, and rewrites the report
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from _machine import describe

import qsim
from qsim.formats import get_element_format, list_formats, reference

HERE = Path(__file__).parent
HARDWARE = [
    ("f32_e4m3", "float8_e4m3fn", {}, "cvt.rn.satfinite.e4m3x2.f32"),
    ("f32_e5m2", "float8_e5m2", {}, "cvt.rn.satfinite.e5m2x2.f32"),
    ("f32_f16", "float16", {"overflow": "nonsaturating"}, "cvt.rn.f16.f32"),
    ("f32_bf16", "bfloat16", {"overflow": "nonsaturating"}, "cvt.rn.bf16.f32"),
    ("f32_s8", "int8", {"nan": "zero"}, "cvt.rni.sat.s8.f32"),
]
TYPED = [f.name for f in list_formats() if hasattr(ml_dtypes, f.name) and "float" in f.name]


def patterns() -> np.ndarray:
    """All bfloat16 and all float16 patterns that are numbers."""
    bf16 = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):
        f16 = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    x = np.concatenate([bf16, f16])
    return x[~np.isnan(x)]


def hardware_rows() -> list[str]:
    rows = []
    with np.load(HERE.parent / "tests" / "golden" / "conversions.npz") as golden:
        for table, fmt, policy, instruction in HARDWARE:
            ends = np.concatenate([golden[f"{table}.min_bits"], golden[f"{table}.max_bits"]]).astype(np.uint32)
            want = np.concatenate([golden[f"{table}.code"]] * 2)
            got = qsim.encode(ends.view(np.float32), fmt, **policy)
            bad = np.count_nonzero(got != want.astype(got.dtype))
            covered = int(golden[f"{table}.count"].astype(np.uint64).sum())
            rows.append(f"| H200 `{instruction}` | both ends of {want.size // 2} runs ({covered:,} inputs) | {bad} |")
        for table, fmt in (("f16_to_e4m3", "e4m3"), ("f16_to_e5m2", "e5m2")):
            got = qsim.encode(np.arange(1 << 16, dtype=np.uint16).view(np.float16), fmt)
            rows.append(f"| H200 `{table}` | 65,536 inputs | {np.count_nonzero(got != golden[table])} |")
        for table, fmt in (("e4m3_to_f16", "e4m3"), ("e5m2_to_f16", "e5m2")):
            values = qsim.decode(np.arange(256, dtype=np.uint8), fmt)
            got = qsim.encode(values, "float16", overflow="nonsaturating")
            rows.append(f"| H200 `{table}` | 256 codes | {np.count_nonzero(got != golden[table])} |")
    return rows


def ml_dtypes_rows() -> list[str]:
    rows = []
    x = patterns()
    for name in TYPED:
        fmt = get_element_format(name)
        with np.errstate(all="ignore"):
            theirs = x.astype(getattr(ml_dtypes, name)).view(fmt.code_dtype)
        ours = qsim.encode(x, name, overflow="nonsaturating" if fmt.has_nan else "saturate")
        counted = np.ones(x.shape, bool)
        note = ""
        if name == "float8_e8m0fnu":
            counted = ~((x > 2.0**-127) & (x < 1.5 * 2.0**-127))
            note = f", {np.count_nonzero(~counted)} left out where ml_dtypes rounds to the farther value"
        bad = np.count_nonzero((ours != theirs) & counted)
        rows.append(f"| ml_dtypes {name} encode | {x.size:,} 16-bit patterns{note} | {bad} |")
        codes = np.arange(1 << fmt.bits).astype(fmt.code_dtype)
        a, b = qsim.decode(codes, name), codes.view(getattr(ml_dtypes, name)).astype(np.float32)
        bad = np.count_nonzero((a.view(np.uint32) != b.view(np.uint32)) & ~(np.isnan(a) & np.isnan(b)))
        rows.append(f"| ml_dtypes {name} decode | {codes.size:,} codes | {bad} |")
    return rows


def reference_rows() -> list[str]:
    rows = []
    x = patterns()[::211].astype(np.float64)
    modes = ("nearest_even", "nearest_away", "toward_zero", "up", "down", "to_odd")
    for fmt in list_formats():
        if not hasattr(fmt, "code_dtype"):
            continue
        bad = 0
        for mode in modes:
            want = [reference.encode(float(v), fmt, rounding=mode) for v in x]
            bad += np.count_nonzero(qsim.encode(x, fmt, rounding=mode) != np.array(want))
        rows.append(f"| exact reference, {fmt.name} | {x.size} float64 values x {len(modes)} roundings | {bad} |")
    return rows


def exhaustive_rows() -> list[str]:
    rows = []
    chunk = 1 << 24
    for name in ("float8_e4m3fn", "float8_e5m2"):
        fmt, kind = get_element_format(name), getattr(ml_dtypes, name)
        bad = {"nonsaturating": 0, "saturate": 0}
        start = time.perf_counter()
        for first in range(0, 1 << 32, chunk):
            x = np.arange(first, first + chunk, dtype=np.uint64).astype(np.uint32).view(np.float32)
            with np.errstate(all="ignore"):
                theirs = x.astype(kind).view(np.uint8)
            nan = np.isnan(x)
            clamped = np.where((theirs & 0x7F) > fmt.max_code, (theirs & 0x80) | fmt.max_code, theirs)
            for overflow, want in (("nonsaturating", theirs), ("saturate", clamped)):
                ours = qsim.encode(x, name, overflow=overflow, nan="keep_sign")
                bad[overflow] += np.count_nonzero((ours != want) & ~nan)
                bad[overflow] += np.count_nonzero((ours[nan] & 0x7F) != 0x7F)
        took = time.perf_counter() - start
        for overflow, count in bad.items():
            rows.append(
                f"| ml_dtypes {name}, {overflow} | all {1 << 32:,} float32 inputs ({took:.0f} s both) | {count} |"
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exhaustive", action="store_true", help="all 2^32 float32 inputs; minutes")
    parser.add_argument("--write", action="store_true", help="rewrite reports/formats_accuracy.md")
    options = parser.parse_args()
    lines = ["# Accuracy of the codecs", ""]
    lines += [f"{line}  " for line in describe("numpy", "numba", "ml_dtypes")]
    lines += [
        "",
        "Bits are compared as bits. NaN inputs are counted apart: their code is a policy, not a rounding.",
        "",
    ]
    lines += ["| against | inputs | mismatches |", "|---|---|---|"]
    for part in (hardware_rows, ml_dtypes_rows, reference_rows):
        lines += part()
    if options.exhaustive:
        lines += exhaustive_rows()
    total = sum(int(line.rsplit("|", 2)[1]) for line in lines if line.startswith("| ") and "mismatches" not in line)
    lines += ["", f"Mismatches in all: {total}"]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        (HERE / "formats_accuracy.md").write_text(text)


if __name__ == "__main__":
    main()
