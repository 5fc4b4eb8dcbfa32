"""How far efficiencies carry to devices and engines that were not measured: what the wide bands rest on.

    python reports/transfer.py --data DIR [--write]

DIR holds the published tables. Prints tables; with --write they also go to reports/transfer.md.
"""

import platform
import sys
from pathlib import Path

import numpy as np

from hwmodels.prediction import ENGINES, TRANSFER_CORRELATION
from hwmodels.timing.parameters import TRANSFER_BANDS
from hwmodels.validation.transfer import device_errors, engine_errors, shared_error


def quantiles(ratio) -> str:
    """10, 50 and 90 % as table cells."""
    return " | ".join(f"{v:.3f}" for v in np.quantile(ratio, [0.1, 0.5, 0.9]))


def main() -> None:
    errors, engines = device_errors(), engine_errors(sys.argv[sys.argv.index("--data") + 1])
    lines = [
        "# How far efficiencies carry",
        "",
        f"`python reports/transfer.py --data DIR --write`, Python {platform.python_version()}, NumPy {np.__version__}.",
        "",
        "## Each calibrated device predicted from the others",
        "",
        "Time by the device's own calibration over the time that the other devices' efficiencies give, for the linear "
        "layers of Llama-3-8B, Llama-3-70B and Llama-2-7B.",
        "",
        "Half of the times lie within this much of the prediction, and 80 % of them in the band in use, which is drawn "
        "from these errors by what separates the two: boards of one generation, generations, or kernels.",
        "",
        "| device | kernels | median error |",
        "|---|---|---|",
        *(
            f"| {device} | {mine.kernel.nunique()} | {100 * np.median(np.abs(mine.ratio - 1)):.1f} % |"
            for device, mine in errors.groupby("device")
        ),
        "",
        "| between | kernels | M | shapes and sizes | 10 % | median | 90 % | band in use | share inside |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    sizes = {"small": "up to 16", "medium": "up to 256", "large": "above 256"}
    for (separate, wide, regime), mine in errors.groupby(["across", "sixteen_bit", "regime"]):
        low, high = TRANSFER_BANDS[separate, wide][regime]
        inside = 100 * ((mine.ratio >= low) & (mine.ratio <= high)).mean()
        lines.append(
            f"| {separate} | {'16-bit' if wide else 'quantised'} | {sizes[regime]} | {len(mine)} | "
            f"{quantiles(mine.ratio)} | "
            f"{low:.2f} to {high:.2f} | {inside:.0f} % |"
        )
    lines += [
        "",
        f"Shapes of one kernel share their error: correlation {shared_error(errors):.2f} "
        f"(in use: {TRANSFER_CORRELATION}).",
        "",
        "| device | kernel | from | median, M up to 16 | up to 256 | above |",
        "|---|---|---|---|---|---|",
    ]
    for (device, kernel, origin), mine in errors.groupby(["device", "kernel", "origin"]):
        cells = " | ".join(f"{mine[mine.regime == r].ratio.median():.2f}" for r in sizes)
        lines.append(f"| {device} | {kernel} | {origin} | {cells} |")
    lines += [
        "",
        "## Engines whose kernels were not measured",
        "",
        "Published decode steps at batch 1 over the prediction with the kernels that were measured on the same device, "
        f"in a CUDA graph: {len(engines)} rows, 10 % quantile {engines.ratio.quantile(0.1):.3f}, median "
        f"{engines.ratio.median():.3f}, 90 % quantile {engines.ratio.quantile(0.9):.3f} (in use: {ENGINES[0]} and "
        f"{ENGINES[1]}).",
        "",
        "| engine | rows | least | median | largest |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {len(mine)} | {mine.ratio.min():.2f} | {mine.ratio.median():.2f} | {mine.ratio.max():.2f} |"
            for name, mine in engines.groupby("engine")
        ),
    ]
    text = "\n".join(lines)
    print(text)
    if "--write" in sys.argv:
        Path(__file__).with_suffix(".md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
