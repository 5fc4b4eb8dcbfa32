"""What each method costs the embedded model, in bits per byte of its test text, with standard errors.

    python reports/algorithms_quality.py              # measure what is missing, then write the report
    python reports/algorithms_quality.py --only 3-bit # of that, the rows whose name has "3-bit" in it
    python reports/algorithms_quality.py --again NAME # measure one row again
    python reports/algorithms_quality.py --write      # only write the report and the figure

Rows are kept in algorithms_quality.csv, and what each window of the text lost in algorithms_quality_windows.csv, so
that an interrupted run goes on. Every difference is paired: both models read the same windows, and the standard error
is that of the difference (or of the ratio of two differences) over windows.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from _machine import describe

HERE = Path(__file__).resolve().parent
CSV, WINDOWS = HERE / "algorithms_quality.csv", HERE / "algorithms_quality_windows.csv"
REPORT, FIGURE = HERE / "algorithms_quality.md", HERE / "algorithms_quality.png"
CALIBRATION_BYTES, OUTLIERS, WINDOW = 65536, 100.0, 512
RTN_3, RTN_4 = "RTN 3-bit g128", "RTN 4-bit g128"
TEST_WINDOWS = 128  # the first 64 KiB of the test text, but for `whole` rows

BOTH, BLOCKS = "8-bit weights and activations", "Block formats"
WHOLE = "3-bit weights, on the whole test text"
INT4, SYNTHETIC = "INT4 weights, integer activations", "With synthetic outliers"
W8A8 = "w8a8-channel-token"
Row = tuple[str, str, str, dict[str, Any]]

ROWS: dict[str, Row] = {
    # name: (section, method, scheme, options)
    # options of ours: outliers; part: which 64 KiB of calibration text; whole: on all of the test text
    **{f"{m} {b}-bit {g}{n}": (f"{b}-bit weights", m.lower(), f"w{b}a16-{g}", o)
       for b, g in ((2, "g64"), (3, "g128"), (4, "g128"), (8, "g128"))
       for m, n, o in (("RTN", "", {}), ("GPTQ", "", {}), ("GPTQ", ", act order", {"act_order": True}),
                       ("AWQ", "", {}))},
    **{f"{RTN_3}, range search": ("3-bit weights", "rtn", "w3a16-g128", {"mse": True}),
       "GPTQ 3-bit g128, range search": ("3-bit weights", "gptq", "w3a16-g128", {"mse": True}),
       "GPTQ 3-bit g128, group-aware": ("3-bit weights", "gptq", "w3a16-g128", {"act_order": "group_aware"}),
       "GPTQ 3-bit g128, GPTAQ": ("3-bit weights", "gptq", "w3a16-g128", {"correction": True}),
       "GPTQ 3-bit g128, other calibration": ("3-bit weights", "gptq", "w3a16-g128", {"part": 1}),
       "AWQ 3-bit g128, other calibration": ("3-bit weights", "awq", "w3a16-g128", {"part": 1}),
       "AWQ 3-bit g128, duo": ("3-bit weights", "awq", "w3a16-g128", {"formula": "duo"}),
       "AWQ 3-bit g128, no range search": ("3-bit weights", "awq", "w3a16-g128", {"clip": False}),
       f"{RTN_3}, rotated": ("3-bit weights", "rtn", "w3a16-g128", {"rotate": "offline"}),
       f"{RTN_4}, rotated": ("4-bit weights", "rtn", "w4a16-g128", {"rotate": "offline"}),
       "GPTQ 4-bit g128, rotated": ("4-bit weights", "gptq", "w4a16-g128", {"rotate": "offline"})},
    **{f"{m} 3-bit g128, whole text": (WHOLE, m.lower(), "w3a16-g128", {"whole": True})
       for m in ("RTN", "GPTQ", "AWQ")},
    "RTN W8A8": (BOTH, "rtn", W8A8, {}),
    "SmoothQuant W8A8, alpha 0.5": (BOTH, "smoothquant", W8A8, {}),
    "SmoothQuant W8A8, alpha searched": (BOTH, "smoothquant", W8A8, {"alpha": None}),
    "FP8 tensor": (BOTH, "fp8", "fp8-tensor", {}),
    "FP8 row-wise": (BOTH, "fp8", "fp8-rowwise", {}),
    "FP8 block 128": (BOTH, "fp8", "fp8-block128", {}),
    "FP8 static": (BOTH, "fp8", "fp8-static", {}),
    "FP8 row-wise, powers of two": (BOTH, "fp8", "fp8-rowwise", {"power_of_two": True}),
    "FP8 row-wise, FP8 KV": (BOTH, "fp8", "fp8-rowwise-kvfp8", {}),
    "FP8 row-wise, FP8 KV and attention": (BOTH, "fp8", "fp8-rowwise-kvfp8", {"fp8_attention": True}),
    "RTN W4A8": (INT4, "rtn", "w4a8-g128", {}),
    "GPTQ W4A8": (INT4, "gptq", "w4a8-g128", {}),
    "RTN W4A4": (INT4, "rtn", "w4a4-channel-token", {}),
    "RTN W4A4, rotated": (INT4, "rtn", "w4a4-channel-token", {"rotate": "online"}),
    "GPTQ W4A4": (INT4, "gptq", "w4a4-channel-token", {}),
    "GPTQ W4A4, rotated": (INT4, "gptq", "w4a4-channel-token", {"rotate": "online"}),
    "MXFP8": (BLOCKS, "rtn", "mxfp8", {}),
    "MXFP6": (BLOCKS, "rtn", "mxfp6", {}),
    "MXFP4": (BLOCKS, "rtn", "mxfp4", {}),
    "NVFP4": (BLOCKS, "rtn", "nvfp4", {}),
    "MXFP4, weights only": (BLOCKS, "rtn", "mxfp4-weight-only", {}),
    "NVFP4, weights only": (BLOCKS, "rtn", "nvfp4-weight-only", {}),
    "Outliers: RTN W8A8, per tensor": (SYNTHETIC, "rtn", "w8a8-tensor", {"outliers": True}),
    "Outliers: SmoothQuant O1": (SYNTHETIC, "smoothquant", "w8a8-tensor-token", {"outliers": True}),
    "Outliers: SmoothQuant O2": (SYNTHETIC, "smoothquant", "w8a8-tensor-tensor", {"outliers": True}),
    "Outliers: SmoothQuant O3": (SYNTHETIC, "smoothquant", "w8a8-tensor-tensor-static", {"outliers": True}),
    "Outliers: FP8 row-wise": (SYNTHETIC, "fp8", "fp8-rowwise", {"outliers": True}),
    "Outliers: RTN 4-bit g128": (SYNTHETIC, "rtn", "w4a16-g128", {"outliers": True}),
    "Outliers: GPTQ 4-bit g128": (SYNTHETIC, "gptq", "w4a16-g128", {"outliers": True}),
    "Outliers: AWQ 4-bit g128": (SYNTHETIC, "awq", "w4a16-g128", {"outliers": True}),
}  # fmt: skip
FIELDS = ("name", "section", "method", "scheme", "bits_per_byte", "bits_per_byte_se", "delta", "delta_se", "kl",
          "kl_se", "top1", "error_ratio", "worst_ratio", "float_bits_per_byte")  # fmt: skip


_NAMES = {"rtn": "RTN", "gptq": "GPTQ", "awq": "AWQ", "smoothquant": "SmoothQuant", "fp8": "FP8"}


class Measurer:
    """Quantises and evaluates; the float model's logits are kept from one row to the next."""

    def __init__(self) -> None:
        from qsim.models import load, tiny_text
        from qsim.models.evaluation import Reference

        self.model, self.text = load("tiny"), tiny_text("test")
        self.reference = Reference(self.model, 300_000_000)

    def calibration(self, part: int) -> str:
        """The n-th 64 KiB of the calibration text."""
        from qsim.models import tiny_text

        raw = tiny_text("calibration").encode()
        return raw[part * CALIBRATION_BYTES : (part + 1) * CALIBRATION_BYTES].decode(errors="ignore")

    def row(self, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """One row, and the sums of its windows."""
        from qsim.methods import quantize_model
        from qsim.methods.kv import stores_kv
        from qsim.methods.registry import get_recipe
        from qsim.models import evaluate, with_outliers
        from qsim.scheme import get_scheme

        section, method, scheme, given = ROWS[name]
        options, model = dict(given), self.model
        if options.pop("outliers", False):
            model = with_outliers(model, magnitude=OUTLIERS)
        if not get_scheme(scheme).activation.is_integer:
            # float32 products of dequantised weights: the fused kernels' values but for the order of sums, and faster
            model = model.replace(linear_settings={"*": {"engine": "dequantized"}})
        text = self.calibration(options.pop("part", 0))
        # one byte more than whole windows: the last prediction needs its target
        size = None if options.pop("whole", False) else TEST_WINDOWS * WINDOW + 1
        own = {k: v for k, v in options.items() if k not in ("rotate", "fp8_attention")}
        recipe = get_recipe(method, scheme, own)
        # rounding looks at weights alone: calibration would only fill its records
        wanted = recipe.needs_calibration or stores_kv(recipe.scheme)
        result = quantize_model(model, method, scheme, text if wanted else None, **options)
        e = evaluate(result.model, self.text, reference=self.reference, window=WINDOW, max_bytes=size)
        assert e.bits_per_byte is not None
        assert e.bits_per_byte_delta is not None
        ratio = result.records.error_ratio if wanted else None
        row = {
            "name": name, "section": section, "method": method, "scheme": scheme, "bits_per_byte": e.bits_per_byte,
            "bits_per_byte_se": e.bits_per_byte_se, "delta": e.bits_per_byte_delta,
            "delta_se": e.bits_per_byte_delta_se, "kl": e.kl, "kl_se": e.kl_se, "top1": e.top1_agreement,
            "error_ratio": "" if ratio is None else float(ratio.mean()),
            "worst_ratio": "" if ratio is None else float(ratio.max()),
            "float_bits_per_byte": e.bits_per_byte - e.bits_per_byte_delta,
        }  # fmt: skip
        bits = {k: e.per_window[k] / math.log(2) for k in ("nll", "reference_nll")}
        return row, {"bytes": e.per_window["bytes"], "float": bits["reference_nll"],
                     name: bits["nll"] - bits["reference_nll"]}  # fmt: skip


def add(lost: dict[str, np.ndarray], more: dict[str, np.ndarray]) -> None:
    """Take in what a row lost; bytes and the float model's bits are kept of the longest text."""
    for name, values in more.items():
        if name not in lost or len(values) >= len(lost[name]):
            lost[name] = values


# --- what is kept -------------------------------------------------------------------------------------------


def read() -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
    """Rows measured so far, in the order of `ROWS`, and the bits that each window lost."""
    if not CSV.exists() or not WINDOWS.exists():
        return {}, {}
    with WINDOWS.open() as file:
        head, *lines = list(csv.reader(file))
    columns = zip(head, zip(*lines, strict=True), strict=True)
    lost = {name: np.array([value for value in column if value], float) for name, column in columns}
    with CSV.open() as file:
        rows = {row["name"]: dict(row) for row in csv.DictReader(file)}
    return {name: rows[name] for name in ROWS if name in rows and name in lost}, lost


def save(rows: dict[str, dict[str, Any]], lost: dict[str, np.ndarray]) -> None:
    """Write both files, in the order of `ROWS`; windows first, a row counts when both have it."""
    names = ["bytes", "float", *(n for n in ROWS if n in rows)]
    with WINDOWS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for i in range(len(lost["bytes"])):
            writer.writerow(f"{lost[n][i]:.4f}" if i < len(lost[n]) else "" for n in names)
    with CSV.open("w", newline="") as file:
        rows_out = csv.DictWriter(file, FIELDS, lineterminator="\n")
        rows_out.writeheader()
        rows_out.writerows(rows[n] for n in ROWS if n in rows)


# --- the report ---------------------------------------------------------------------------------------------


def share_of(lost: dict[str, np.ndarray], name: str, plain: str) -> tuple[float, float]:
    """What `name` loses over what `plain` loses, and the standard error of that ratio over windows."""
    from qsim.models.statistics import ratio

    value, error = ratio(lost[name], lost[plain])
    assert error is not None
    return value, error


def limits() -> list[tuple[str, str | None, float]]:
    """(row, row it is a share of or None for the float model's bits per byte, limit)."""
    out: list[tuple[str, str | None, float]] = [
        (f"{m} 3-bit g128{text}", f"{RTN_3}{text}", 0.7) for m in ("GPTQ", "AWQ") for text in ("", ", whole text")
    ]
    out += [(f"{m} 4-bit g128", None, 0.015) for m in ("RTN", "GPTQ", "AWQ")]
    out += [(n, None, 0.003) for n, row in ROWS.items() if row[0] == BOTH and row[1] in ("smoothquant", "fp8")]
    return out + [(f"Outliers: SmoothQuant O{i}", None, 0.02) for i in (1, 2, 3)]


def targets(rows: dict[str, dict[str, Any]], lost: dict[str, np.ndarray]) -> list[str]:
    """Lines of the table: what was asked, what was reached, whether it is met and by how many standard errors."""
    out = []
    for name, plain, limit in limits():
        if name not in rows or (plain is not None and plain not in rows):
            continue
        if plain is None:
            base = float(rows[name]["float_bits_per_byte"])
            got, error = float(rows[name]["delta"]) / base, float(rows[name]["delta_se"]) / base
            what, asked, reached = "loss", f"<= {limit:.1%}", f"{got:+.2%} ± {error:.2%}"
        else:
            got, error = share_of(lost, name, plain)
            what, asked, reached = "share of RTN's loss", f"<= {limit:.0%}", f"{got:.1%} ± {error:.1%}"
        far = abs(limit - got) / error
        out.append(f"| {name} | {what} | {asked} | {reached} | {'yes' if got <= limit else '**NO**'}, by {far:.1f} |")
    naive = rows.get("Outliers: RTN W8A8, per tensor")
    if naive is not None:
        base = float(naive["float_bits_per_byte"])
        got, error = float(naive["delta"]) / base, float(naive["delta_se"]) / base
        met = f"{'yes' if got >= 0.5 else '**NO**'}, by {abs(got - 0.5) / error:.1f}"
        out.append(f"| {naive['name']} | loss: it should collapse | >= 50% | {got:+.0%} ± {error:.0%} | {met} |")
    return out


def plain_of(name: str, rows: dict[str, dict[str, Any]]) -> str | None:
    """Round-to-nearest of the same scheme, when its loss is large enough to be divided by."""
    section, _, scheme, options = ROWS[name]
    for other, row in rows.items():
        found = ROWS[other]
        if (found[0], found[1], found[2]) == (section, "rtn", scheme) and found[3] in (
            {},
            {"outliers": True},
            {"whole": True},
        ):
            same = all(found[3].get(key) == options.get(key) for key in ("outliers", "whole"))
            sure = float(row["delta"]) > 5 * float(row["delta_se"])
            return other if same and sure and other != name else None
    return None


def report(rows: dict[str, dict[str, Any]], lost: dict[str, np.ndarray]) -> str:
    """The text."""
    first = next(row for row in rows.values() if not ROWS[row["name"]][3].get("whole"))
    lines = [
        "# Quality of the methods on the embedded model", "",
        *[f"{line}  " for line in describe("numpy", "scipy", "numba")], "",
        f"![Loss of every method]({FIGURE.name})", "",
        f"Calibration: the first {CALIBRATION_BYTES // 1024} KiB of the model's calibration text, windows of 512 "
        "tokens (`other calibration`: the second); plain rounding uses none. Test: the first "
        f"{TEST_WINDOWS * WINDOW // 1024} KiB of its test text, {TEST_WINDOWS} windows of {WINDOW} tokens; on these "
        "the float model has "
        f"{float(first['float_bits_per_byte']):.4f} bits per byte. Rows with integer activations use the exact "
        "integer kernels; the others multiply by dequantised weights, which differs from the fused kernels by the "
        "order of float32 sums.", "",
        "`loss` is the difference to the float model in bits per byte, on the same windows, ± one standard error over "
        "windows (neighbours' correlation counted). `of RTN's` is the ratio of two such losses, with the error of the "
        "ratio. These errors are of the text; what another calibration text changes is in the rows `other "
        "calibration`. `error ratio` is tr(D H D^T) over that of round-to-nearest, the layers' mean and the worst "
        "layer. Embedding and head stay float everywhere.", "",
        "## Asked and reached", "",
        "The last column says whether the limit is met, and how many standard errors lie between.", "",
        "| | what | asked | reached | met |", "|---|---|---|---|---|", *targets(rows, lost), "",
        "AWQ scales the channels whose inputs are large, and this model has none: see "
        "[algorithms_salient.md](algorithms_salient.md). The paper's models have some.",
    ]  # fmt: skip
    for section in dict.fromkeys(v[0] for v in ROWS.values()):
        mine = [row for row in rows.values() if row["section"] == section]
        if mine:
            lines += ["", f"## {section}", "", *_table(mine, rows, lost)]
        if section == SYNTHETIC:
            lines += ["", "The model's outliers are synthetic (`qsim.models.with_outliers`): six channels behind every "
                      f"norm are about {OUTLIERS:.0f} times the typical one, and the float model computes the same "
                      "without and with them."]  # fmt: skip
    missing = [name for name in ROWS if name not in rows]
    if missing:
        lines += ["", "## Not measured yet", "", f"{'; '.join(missing)}. The script's next run does these."]
    return "\n".join(lines) + "\n"


def _table(mine: list[dict[str, Any]], rows: dict[str, dict[str, Any]], lost: dict[str, np.ndarray]) -> list[str]:
    out = ["| | scheme | bits per byte | loss | relative | of RTN's | KL, nats per token | top-1 agree | error ratio |",
           "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in mine:
        v = {k: float(r[k]) for k in ("bits_per_byte", "delta", "delta_se", "kl", "kl_se", "top1")}
        base, plain = float(r["float_bits_per_byte"]), plain_of(r["name"], rows)
        share = "" if plain is None else "{:.1%} ± {:.1%}".format(*share_of(lost, r["name"], plain))
        ratio = f"{float(r['error_ratio']):.3f}, {float(r['worst_ratio']):.3f}" if r["error_ratio"] != "" else ""
        out.append(
            f"| {r['name']} | `{r['scheme']}` | {v['bits_per_byte']:.4f} | {v['delta']:+.5f} ± {v['delta_se']:.5f} | "
            f"{v['delta'] / base:+.2%} | {share} | {v['kl']:.5f} ± {v['kl_se']:.5f} | {v['top1']:.1%} | {ratio} |"
        )
    return out


def write(rows: dict[str, dict[str, Any]], lost: dict[str, np.ndarray]) -> None:
    """Report and figure."""
    from qsim.plots.losses import QualityPoint, quality_figure
    from qsim.plots.style import save as save_figure

    points = [
        QualityPoint(section=r["section"], name=n.removeprefix("Outliers: "), method=_NAMES[r["method"]],
                     loss=float(r["delta"]), error=float(r["delta_se"]))
        for n, r in rows.items()
    ]  # fmt: skip
    save_figure(quality_figure(points), FIGURE)
    REPORT.write_text(report(rows, lost))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="append", default=[], metavar="NAME")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="rows whose name has this in it")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    rows, lost = read()
    wanted = [n for n in ROWS if not given.only or any(part in n for part in given.only)]
    missing = [] if given.write else [n for n in wanted if n not in rows or n in given.again]
    measurer = Measurer() if missing else None
    for name in missing:
        assert measurer is not None
        row, windows = measurer.row(name)
        rows[name] = {k: str(v) for k, v in row.items()}
        add(lost, windows)
        save(rows, lost)
        print(f"{name}: {float(rows[name]['delta']):+.5f} ± {float(rows[name]['delta_se']):.5f}", flush=True)
    write({name: rows[name] for name in ROWS if name in rows}, lost)


if __name__ == "__main__":
    main()
