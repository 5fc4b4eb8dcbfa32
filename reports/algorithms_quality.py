"""What each method costs the embedded model, in bits per byte of its test text, with standard errors.

    python reports/algorithms_quality.py              # measure what is missing, then write the report
    python reports/algorithms_quality.py --again NAME # measure one row again
    python reports/algorithms_quality.py --write      # only write the report

Rows are kept in algorithms_quality.csv, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from _machine import describe

HERE = Path(__file__).resolve().parent
CSV = HERE / "algorithms_quality.csv"
REPORT = HERE / "algorithms_quality.md"
CALIBRATION_BYTES, TEST_BYTES, OUTLIERS = 65536, 131072, 100.0

ROWS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    # name: (section, method, scheme, options)
    **{f"{m} {b}-bit {g}{n}": (f"{b}-bit weights", m.lower(), f"w{b}a16-{g}", o)
       for b, g in ((2, "g64"), (3, "g128"), (4, "g128"), (8, "g128"))
       for m, n, o in (("RTN", "", {}), ("GPTQ", "", {}), ("GPTQ", ", act order", {"act_order": True}),
                       ("AWQ", "", {}))},
    "GPTQ 3-bit g128, GPTAQ": ("3-bit weights", "gptq", "w3a16-g128", {"correction": True}),
    "GPTQ 3-bit g128, group-aware": ("3-bit weights", "gptq", "w3a16-g128", {"act_order": "group_aware"}),
    "AWQ 3-bit g128, duo": ("3-bit weights", "awq", "w3a16-g128", {"formula": "duo"}),
    "RTN W8A8": ("8-bit weights and activations", "rtn", "w8a8-channel-token", {}),
    "SmoothQuant W8A8, alpha 0.5": ("8-bit weights and activations", "smoothquant", "w8a8-channel-token", {}),
    "SmoothQuant W8A8, alpha searched": ("8-bit weights and activations", "smoothquant", "w8a8-channel-token",
                                         {"alpha": None}),
    "FP8 tensor": ("8-bit weights and activations", "fp8", "fp8", {}),
    "FP8 row-wise": ("8-bit weights and activations", "fp8", "fp8-rowwise", {}),
    "FP8 block 128": ("8-bit weights and activations", "fp8", "fp8-block128", {}),
    "FP8 static": ("8-bit weights and activations", "fp8", "fp8-static", {}),
    "FP8 row-wise, FP8 KV": ("8-bit weights and activations", "fp8", "fp8-rowwise-kvfp8", {}),
    "FP8 row-wise, powers of two": ("8-bit weights and activations", "fp8", "fp8-rowwise", {"power_of_two": True}),
    "MXFP8": ("Block formats, weights and activations", "rtn", "mxfp8", {}),
    "MXFP6": ("Block formats, weights and activations", "rtn", "mxfp6", {}),
    "MXFP4": ("Block formats, weights and activations", "rtn", "mxfp4", {}),
    "NVFP4": ("Block formats, weights and activations", "rtn", "nvfp4", {}),
    "MXFP4 weights only": ("Block formats, weights and activations", "rtn", "mxfp4-weight-only", {}),
    "NVFP4 weights only": ("Block formats, weights and activations", "rtn", "nvfp4-weight-only", {}),
    "RTN W4A8": ("INT4 weights, integer activations", "rtn", "w4a8-g128", {}),
    "GPTQ W4A8": ("INT4 weights, integer activations", "gptq", "w4a8-g128", {}),
    "RTN W4A4": ("INT4 weights, integer activations", "rtn", "w4a4-channel-token", {}),
    "RTN W4A4, rotated": ("INT4 weights, integer activations", "rtn", "w4a4-channel-token", {"rotate": "online"}),
    "GPTQ W4A4": ("INT4 weights, integer activations", "gptq", "w4a4-channel-token", {}),
    "GPTQ W4A4, rotated": ("INT4 weights, integer activations", "gptq", "w4a4-channel-token", {"rotate": "online"}),
    "outliers: RTN W8A8, per tensor": ("With injected outliers", "rtn", "w8a8-tensor", {"outliers": True}),
    "outliers: SmoothQuant O1": ("With injected outliers", "smoothquant", "w8a8-tensor-token", {"outliers": True}),
    "outliers: SmoothQuant O2": ("With injected outliers", "smoothquant", "w8a8-tensor-tensor", {"outliers": True}),
    "outliers: SmoothQuant O3": ("With injected outliers", "smoothquant", "w8a8-tensor-tensor-static",
                                 {"outliers": True}),
}  # fmt: skip
FIELDS = ("name", "section", "method", "scheme", "bits_per_byte", "bits_per_byte_se", "delta", "delta_se", "kl",
          "kl_se", "top1", "error_ratio", "worst_ratio", "quantize_s", "float_bits_per_byte")  # fmt: skip


def measure(name: str) -> dict[str, Any]:
    """One row."""
    from qsim.algorithms import quantize_model
    from qsim.models import evaluate, load, tiny_text, with_outliers

    section, method, scheme, options = ROWS[name]
    options, model = dict(options), load("tiny")
    float_model = model
    if options.pop("outliers", False):
        model = with_outliers(model, magnitude=OUTLIERS)
    text = tiny_text("calibration").encode()[:CALIBRATION_BYTES].decode(errors="ignore")
    started = time.perf_counter()
    result = quantize_model(model, method, scheme, text, **options)
    quantize_s = time.perf_counter() - started
    e = evaluate(result.model, tiny_text("test"), max_bytes=TEST_BYTES, reference=float_model)
    frame = result.records
    assert e.bits_per_byte is not None
    assert e.bits_per_byte_delta is not None
    return {
        "name": name, "section": section, "method": method, "scheme": scheme, "bits_per_byte": e.bits_per_byte,
        "bits_per_byte_se": e.bits_per_byte_se, "delta": e.bits_per_byte_delta, "delta_se": e.bits_per_byte_delta_se,
        "kl": e.kl, "kl_se": e.kl_se, "top1": e.top1_agreement, "error_ratio": float(frame.error_ratio.mean()),
        "worst_ratio": float(frame.error_ratio.max()), "quantize_s": quantize_s,
        "float_bits_per_byte": e.bits_per_byte - e.bits_per_byte_delta,
    }  # fmt: skip


def read() -> dict[str, dict[str, str]]:
    """Rows measured so far."""
    if not CSV.exists():
        return {}
    with CSV.open() as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def save(rows: dict[str, dict[str, Any]]) -> None:
    """Write the CSV, in the order of `ROWS`."""
    with CSV.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[name] for name in ROWS if name in rows)


def targets(rows: dict[str, dict[str, str]]) -> list[tuple[str, str, str, bool]]:
    """What was asked, what was reached, whether it is met."""
    out = []

    def delta(name: str) -> float | None:
        return float(rows[name]["delta"]) if name in rows else None

    def share(name: str) -> float | None:
        row = rows.get(name)
        return None if row is None else float(row["delta"]) / float(row["float_bits_per_byte"])

    plain = delta("RTN 3-bit g128")
    for name in ("GPTQ 3-bit g128", "AWQ 3-bit g128"):
        mine = delta(name)
        if mine is not None and plain is not None:
            out.append((f"{name}: of what RTN loses", "<= 70 %", f"{mine / plain:.1%}", mine <= 0.7 * plain))
    limits = [("RTN 4-bit g128", 0.015), ("GPTQ 4-bit g128", 0.015), ("AWQ 4-bit g128", 0.015),
              ("SmoothQuant W8A8, alpha 0.5", 0.003), ("FP8 tensor", 0.003), ("FP8 row-wise", 0.003),
              ("FP8 block 128", 0.003), ("FP8 static", 0.003)]  # fmt: skip
    limits += [(f"outliers: SmoothQuant O{i}", 0.02) for i in (1, 2, 3)]
    for name, limit in limits:
        lost = share(name)
        if lost is not None:
            out.append((f"{name}: loss in bits per byte", f"<= {limit:.1%}", f"{lost:+.2%}", lost <= limit))
    naive = share("outliers: RTN W8A8, per tensor")
    if naive is not None:
        out.append(("outliers: naive per-tensor W8A8 collapses", ">= 50 %", f"{naive:+.0%}", naive >= 0.5))
    return out


def write(rows: dict[str, dict[str, str]]) -> None:
    """The report, from the rows."""
    first = next(iter(rows.values()))
    lines = [
        "# Quality of the methods on the embedded model", "",
        *[f"{line}  " for line in describe("numpy", "scipy", "numba")], "",
        f"Calibration: the first {CALIBRATION_BYTES // 1024} KiB of the model's calibration text, windows of 512. "
        f"Test: the first {TEST_BYTES // 1024} KiB of its test text, windows of 512. The float model has "
        f"{float(first['float_bits_per_byte']):.4f} bits per byte. "
        "Loss is the paired difference to it, ± one standard error over windows. `error ratio` is the layers' mean of "
        "tr(D H D^T) over round-to-nearest's. Embedding and head stay float everywhere. `outliers` rows have synthetic "
        f"activation outliers of size {OUTLIERS:.0f}; the float model computes the same without and with them.", "",
        "## Asked and reached", "", "| what | asked | reached | met |", "|---|---|---|---|",
        *[f"| {what} | {asked} | {got} | {'yes' if met else '**NO**'} |" for what, asked, got, met in targets(rows)],
    ]  # fmt: skip
    for section in dict.fromkeys(v[0] for v in ROWS.values()):
        mine = [row for row in rows.values() if row["section"] == section]
        if not mine:
            continue
        lines += ["", f"## {section}", "",
                  "| | bits per byte | loss | relative | KL, nats a token | top-1 agree | error ratio | worst | s |",
                  "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
        for r in mine:
            v = {k: float(x) for k, x in r.items() if k not in ("name", "section", "method", "scheme")}
            lines.append(
                f"| {r['name']} | {v['bits_per_byte']:.4f} | {v['delta']:+.4f} ± {v['delta_se']:.4f} | "
                f"{v['delta'] / v['float_bits_per_byte']:+.2%} | {v['kl']:.4f} ± {v['kl_se']:.4f} | {v['top1']:.1%} | "
                f"{v['error_ratio']:.3f} | {v['worst_ratio']:.3f} | {v['quantize_s']:.0f} |"
            )
    lines += ["", "Times were taken beside other work on the machine; reports/algorithms_speed.md has quiet ones."]
    REPORT.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="append", default=[], metavar="NAME")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="rows whose name has this in it")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    rows: dict[str, dict[str, Any]] = dict(read())
    wanted = [n for n in ROWS if not given.only or any(part in n for part in given.only)]
    missing = [] if given.write else [n for n in wanted if n not in rows or n in given.again]
    for name in missing:
        rows[name] = {k: str(v) for k, v in measure(name).items()}
        save(rows)
        print(f"{name}: {float(rows[name]['delta']):+.4f} ± {float(rows[name]['delta_se']):.4f}", flush=True)
    write({name: rows[name] for name in ROWS if name in rows})


if __name__ == "__main__":
    main()
