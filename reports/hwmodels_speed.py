"""Time of one prediction and points per second of a sweep, on this machine.

    python reports/hwmodels_speed.py [--write]

Prints a table; with --write it also goes to reports/hwmodels_speed.md.
"""

import platform
import sys
import time
from pathlib import Path

import numpy as np

import hwmodels


def cpu() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def best(call, runs: int) -> float:
    """Best time of a call, seconds."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    rows = []
    for device, model, scheme in (
        ("h200", "llama-3-8b", "fp8-rowwise"), ("h100", "llama-3-70b", "fp8-tensor"),
        ("a100", "mixtral-8x7b", "w4a16-g128"),
    ):  # fmt: skip
        call = lambda d=device, m=model, s=scheme: hwmodels.predict(d, m, s, "decode", 4, 2048)  # noqa: E731
        rows.append((f"predict {model} {scheme} on {device}, operator table", f"{1e3 * best(call, 200):.2f} ms"))
    batch, context = np.arange(1, 1025), np.arange(1, 1025) * 8
    for device, schemes, phase in (
        ("h200", ["bf16"], "decode"), ("h100", ["bf16", "fp8-tensor"], "decode"), ("l40s", ["w4a16-g128"], "decode"),
        ("h200", ["bf16"], "prefill"),
    ):  # fmt: skip
        call = lambda d=device, s=schemes, p=phase: hwmodels.sweep(d, "llama-3-8b", s, p, batch, context)  # noqa: E731
        points = len(call())
        seconds = best(call, 3)
        rows.append(
            (
                f"sweep {phase} on {device}, {' and '.join(schemes)}: {points} points",
                f"{points / seconds / 1e6:.2f} M/s",
            )
        )
    text = "\n".join(
        [
            "# Speed of the hardware models",
            "",
            f"`python reports/hwmodels_speed.py` on {cpu()}, Python {platform.python_version()}, "
            f"NumPy {np.__version__}, one process.",
            "",
            "| case | best |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows),
        ]
    )
    print(text)
    if "--write" in sys.argv:
        Path(__file__).with_suffix(".md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
