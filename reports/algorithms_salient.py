"""AWQ's motivating table on the embedded model: what keeping a few input channels in float16 brings.

    python reports/algorithms_salient.py              # measure and write
    python reports/algorithms_salient.py --write      # only write the report from algorithms_salient.csv

The paper's table 1 (Lin et al., arXiv 2306.00978) has perplexities of OPT models, which have salient channels. The
embedded model has none, so it is measured as it is and with synthetic ones.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from _machine import describe

HERE = Path(__file__).resolve().parent
CSV, REPORT = HERE / "algorithms_salient.csv", HERE / "algorithms_salient.md"
CALIBRATION_BYTES, TEST_BYTES, OUTLIERS = 16384, 16385, 100.0
PLAIN, SYNTHETIC = "as it is", "with synthetic outliers"


def measure() -> pd.DataFrame:
    """Both tables, one below the other."""
    from qsim.methods import channel_sizes, salient_table
    from qsim.models import load, tiny_text, with_outliers
    from qsim.models.evaluation import Reference

    plain, text = load("tiny"), tiny_text("calibration")[:CALIBRATION_BYTES]
    reference, parts = Reference(plain), []
    for label, model in ((PLAIN, plain), (SYNTHETIC, with_outliers(plain, magnitude=OUTLIERS))):
        table = salient_table(model, tiny_text("test"), text, reference=reference, max_bytes=TEST_BYTES)
        sizes = channel_sizes(model, text)
        halves = sorted(size.half for size in sizes.values())
        table.insert(0, "model", label)
        table["half"] = halves[len(halves) // 2]
        parts.append(table)
        print(table.round(4).to_string(), flush=True)
    return pd.concat(parts, ignore_index=True)


def report(table: pd.DataFrame) -> str:
    """The text."""
    lines = [
        "# Salient channels", "",
        *[f"{line}  " for line in describe("numpy", "scipy", "numba")], "",
        "All weights of the blocks are rounded to nearest, asymmetric, groups of 128; then the weights of a share of "
        "every Linear's input channels are put back in float16. Channels are chosen by the mean of |x| on "
        f"{CALIBRATION_BYTES // 1024} KiB of calibration text, by the norm of their weights, or at random. Measured on "
        f"the first {TEST_BYTES // 1024} KiB of the test text; loss is the paired difference to the float model in "
        "bits per byte, ± one standard error, KL is in nats per byte. 0.1 % is one channel of 384 or of 768: 0.23 % of "
        "the weights.", "",
        "Source of the question: Lin et al., arXiv 2306.00978, table 1. There, on OPT models, 1 % of the channels "
        "chosen by activations bring most of the perplexity back, chosen by weights or at random next to nothing.",
    ]  # fmt: skip
    for label in dict.fromkeys(table.model):
        mine = table[table.model == label]
        lines += ["", f"## The embedded model {label}", ""]
        if label == SYNTHETIC:
            lines += [f"Six channels behind every norm are about {OUTLIERS:.0f} times the typical one "
                      "(`qsim.models.with_outliers`); the float model computes the same.", ""]  # fmt: skip
        half = f"In the median Linear {mine.half.iloc[0]:.1%} of the input channels hold half of the inputs' energy."
        lines += [half, "", "| scheme | kept by | 0 | 0.1 % | 1 % | 3 % |", "|---|---|---|---|---|---|"]  # fmt: skip
        for scheme in dict.fromkeys(mine.scheme):
            of = mine[mine.scheme == scheme]
            nothing = _cell(of[of.by == "none"].iloc[0])
            for by in ("activation", "weight", "random"):
                cells = [_cell(row) for _, row in of[of.by == by].iterrows()]
                lines.append(f"| `{scheme}` | {by} | {nothing} | {' | '.join(cells)} |")
    lines += ["", "Each cell: loss, KL."]
    return "\n".join(lines) + "\n"


def _cell(row: pd.Series) -> str:
    return f"{row.loss:+.4f} ± {row.loss_se:.4f}, {row.kl:.4f}"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    if not parser.parse_args().write:
        measure().to_csv(CSV, index=False, lineterminator="\n")
    REPORT.write_text(report(pd.read_csv(CSV)))


if __name__ == "__main__":
    main()
