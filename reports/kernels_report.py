"""The text of `reports/kernels_speed.md`, from the CSVs that `kernels_speed.py` measured."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from qsim.plots.bars import ladder_figure


def _markdown(frame: pd.DataFrame) -> str:
    cells = [
        ["" if v is None or v != v else f"{v:.4g}" if isinstance(v, float) else str(v) for v in row]
        for row in frame.itertuples(index=False)
    ]
    lines = [list(map(str, frame.columns)), ["---"] * len(frame.columns), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def requirements(ratios: pd.DataFrame) -> pd.DataFrame:
    """The ratios of two threads: median over the rounds (with quartiles) and best over best, beside what was asked."""
    rows = []
    for r in ratios[ratios.threads == 2].itertuples():
        what = f"M={r.M}: {r.kernel} " + ("as a part of the read bandwidth" if r.over == "read" else f"over {r.over}")
        verdict = "" if pd.isna(r.asked) else "yes" if r.median >= r.asked else "**no**"
        rows.append({
            "what": what, "N x K": f"{r.N}x{r.K}", "asked": r.asked, "median": f"{r.median:.2f}",
            "quartiles": f"{r.q1:.2f}-{r.q3:.2f}", "best": f"{r.best:.2f}", "met": verdict,
        })  # fmt: skip
    return pd.DataFrame(rows)


def write_report(folder: Path) -> None:
    """`kernels_speed.md` and `.png` in `folder` from the CSVs there."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    frame, ratios = pd.read_csv(folder / "kernels_speed.csv"), pd.read_csv(folder / "kernels_ratios.csv")
    FigureCanvasAgg(ladder_figure(frame)).print_png(str(folder / "kernels_speed.png"))
    table = requirements(ratios)
    asked, told = table[table.met != ""], table[table.met == ""]
    first = pd.read_csv(folder / "kernels_first_call.csv")
    parts = [
        "# Speed of the fused kernels",
        "\n".join(f"* {line}" for line in (folder / "kernels_machine.txt").read_text().strip().splitlines()),
        "Made by `python reports/kernels_speed.py --measure NxK` for each shape, `--compile`, then `--write`.",
        "Kernels, peers and roofs take turns. A round gives each one turn of at least 20 ms, after 20 ms that do not "
        "count (and 150 ms of sleep after NumPy and torch, whose threads spin on beside the next). What counts "
        "is the median of a turn; a ratio is taken inside a round. Cold: each has separately allocated copies of its "
        "weight, used in turn; together the copies are several GiB. `read` sums buffers of 8 MiB in the same way. "
        "Times are of whole calls of `linear`, activation quantisation included; torch's `_int_mm` quantises nothing. "
        "GB/s count packed codes, scales and zero points. SGEMM and GEMV are NumPy's (OpenBLAS).",
        f"## Asked and reached, two threads: {(asked.met == 'yes').sum()} of {len(asked)} met",
        "The median over the rounds decides.",
        _markdown(asked),
        "## Beside them, two threads",
        _markdown(told.drop(columns=["asked", "met"])),
        "## The ladder",
        "![GB/s of each rung against the read bandwidth](kernels_speed.png)",
        "## First call, seconds",
        "Every kernel in a process and a Numba cache of its own; prefill follows decode in the same process.",
        _markdown(first),
        "## Everything",
        _markdown(frame.sort_values(["N", "K", "M", "state", "threads", "kernel"])),
    ]
    (folder / "kernels_speed.md").write_text("\n\n".join(parts) + "\n")
