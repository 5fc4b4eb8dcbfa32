"""Figure and report of the fused kernels' speed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RUNGS = (
    ("ladder 1 naive", "1 naive"),
    ("ladder 2 factored", "2 factored scales"),
    ("W4A16 g128, float32 x, portable", "3 lanes, fields in place"),
    ("W4A8 g128, best path", "4 vpdpbusd (INT8 x)"),
)
_SHAPES = ((4096, 4096), (11008, 4096), (4096, 11008))


def ladder_figure(frame: pd.DataFrame) -> Figure:
    """Packed bytes a second for each rung of the ladder, one and two threads, under the measured read bandwidth.

    Arguments:
        frame: rows of `reports/kernels_speed.csv`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.subplots()
    here = frame[(frame.N == 4096) & (frame.K == 4096) & (frame.state == "cold")]
    for offset, threads, colour in ((-0.2, 1, "#56B4E9"), (0.2, 2, "#0072B2")):
        rows = here[here.threads == threads].set_index(["kernel", "M"])
        heights = [rows.best_gbytes_per_s.get((kernel, 1), float("nan")) for kernel, _ in _RUNGS]
        bars = axes.bar(
            [i + offset for i in range(len(_RUNGS))], heights, 0.38, color=colour, label=f"{threads} thread(s)"
        )
        axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
        roof = rows.best_gbytes_per_s.get(("read", 0))
        if roof is not None:
            axes.axhline(roof, color=colour, linestyle="--", linewidth=1)
            axes.annotate(f"read bandwidth, {threads} thread(s)", (-0.45, roof), xytext=(0, 3), fontsize=8,
                          textcoords="offset points", color=colour)  # fmt: skip
    axes.set_xticks(range(len(_RUNGS)), [label for _, label in _RUNGS])
    axes.set_ylabel("packed weight read (GB/s)")
    axes.set_title("One token, W4 g128, 4096 x 4096, weights out of cache", fontsize=10)
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, 0.8), frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _value(frame: pd.DataFrame, kernel: str, m: int, column: str, shape: tuple[int, int], threads: int = 2) -> float:
    rows = frame[
        (frame.kernel == kernel) & (frame.M == m) & (frame.N == shape[0]) & (frame.K == shape[1])
        & (frame.threads == threads) & (frame.state == "cold")
    ]  # fmt: skip
    return float(rows[column].iloc[0]) if len(rows) else float("nan")


def requirements(frame: pd.DataFrame, column: str = "best_ms") -> pd.DataFrame:
    """The ratios asked of two threads, by shape: what was reached beside what was asked.

    Arguments:
        frame: rows of the CSV.
        column: `best_ms` or `median_ms`.
    """
    rate = column.replace("_ms", "_gbytes_per_s")
    rows = []

    def ask(what: str, needed: float, reached: float, shape: tuple[int, int]) -> None:
        rows.append({"what": what, "shape": f"{shape[0]}x{shape[1]}", "asked": needed, "reached": round(reached, 2),
                     "met": "yes" if reached >= needed else "NO"})  # fmt: skip

    for shape in _SHAPES:

        def t(kernel: str, m: int, s: tuple[int, int] = shape) -> float:
            return _value(frame, kernel, m, column, s)

        def g(kernel: str, s: tuple[int, int] = shape) -> float:
            return _value(frame, kernel, 1, rate, s)

        roof = _value(frame, "read", 0, rate, shape)
        w4 = "W4A16 g128, float32 x, portable"
        sgemm = min(t("SGEMM, NumPy", 256), t("torch float32 linear", 256))
        ask("W4A16 portable, M=1: fraction of read bandwidth", 0.65, g(w4) / roof, shape)
        ask("W4A16 portable, M=1: over torch int4pack", 1.3, t("torch int4pack g128, bfloat16 x", 1) / t(w4, 1), shape)
        ask("W4A16 portable, M=1: over FP32 GEMV (NumPy)", 5.0, t("FP32 GEMV, NumPy", 1) / t(w4, 1), shape)
        ask("W8A8, M=1: fraction of read bandwidth", 0.7, g("W8A8, best path") / roof, shape)
        ask(
            "FP8 weight-only, M=1: fraction of read bandwidth",
            0.7,
            g("FP8 weight-only, float32 x, portable") / roof,
            shape,
        )
        ask("W8A8, M=256: over torch _int_mm", 1.3, t("torch _int_mm", 256) / t("W8A8, best path", 256), shape)
        ask("W4A8, M=256: over SGEMM", 3.5, sgemm / t("W4A8 g128, best path", 256), shape)
        ask("W4A16 bfloat16, M=256: over SGEMM", 1.4, sgemm / t("W4A16 g128, bfloat16 x, best path", 256), shape)
        ask("W4A16 portable, M=256: over SGEMM", 0.8, sgemm / t(w4, 256), shape)
    return pd.DataFrame(rows)


def _markdown(frame: pd.DataFrame) -> str:
    cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row] for row in frame.itertuples(index=False)]
    lines = [list(map(str, frame.columns)), ["---"] * len(frame.columns), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_report(folder: Path) -> None:
    """`kernels_speed.md` and `.png` in `folder` from the CSV there."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    frame = pd.read_csv(folder / "kernels_speed.csv")
    figure = ladder_figure(frame)
    FigureCanvasAgg(figure).print_png(str(folder / "kernels_speed.png"))
    machine = (folder / "kernels_machine.txt").read_text().strip()
    parts = [
        "# Speed of the fused kernels",
        machine,
        "Made by `python reports/kernels_speed.py --measure NxK` for each shape, then `--write`. Cold: separately "
        "allocated copies that fill 1 GiB, used in turn; `read` sums buffers of 8 MiB in the same way. The last-level "
        "cache is 480 MiB and shared with other machines' work, so part of the 1 GiB may be found in it: bandwidth and "
        "kernels share that condition. Times are of whole calls of `linear`, activation quantisation included; torch's "
        "`_int_mm` quantises nothing. GB/s count packed codes, scales and zero points. The machine is not idle: of "
        "several rounds the one with the least median stands, for roofs, peers and kernels alike. "
        "Best and median differ, and both are held against what was asked. SGEMM is the faster of NumPy and torch.",
        "## Asked and reached, 2 threads, best times",
        _markdown(requirements(frame)),
        "## The same with median times",
        _markdown(requirements(frame, "median_ms")),
        "## The ladder",
        "![GB/s of each rung against the read bandwidth](kernels_speed.png)",
        "## Everything",
        _markdown(frame.sort_values(["N", "K", "M", "kernel", "threads", "state"])),
    ]
    first = folder / "kernels_first_call.csv"
    if first.exists():
        parts[-2:-2] = [
            "## First call with an empty cache, seconds (later processes load it)",
            _markdown(pd.read_csv(first)),
        ]
    (folder / "kernels_speed.md").write_text("\n\n".join(parts) + "\n")
