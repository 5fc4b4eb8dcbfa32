"""A gallery of every kind of figure: reports/gallery/*.svg, and a page with the command behind each.

python reports/gallery.py [NAME ...]

With names, only these are drawn again. Figures of the commands have a narrow twin, `NAME-column.svg`, for phones.
"""

from __future__ import annotations

import html
import shlex
import sys
import tempfile
from pathlib import Path

from click.testing import CliRunner

from qsim.cli import main as qsim
from qsim.study import read_result, write_figures

REPORTS = Path(__file__).parent
OUT = REPORTS / "gallery"
STUDY = REPORTS / "study" / "study.json"

ROOFLINES = {
    "roofline_devices": (
        "Where the operators of one step stand under the roofs of three devices, on a slide.",
        "roofline llama-3-70b --device h100-sxm --device b200 --device asic --scheme bf16 --scheme fp8 "
        "--scheme w4a16-g128 --size slide",
    ),
    "roofline_six": (
        "The same for six devices.",
        "roofline llama-3-70b --device h100-sxm --device b200 --device asic --device mi300x --device l40s "
        "--device sn40l-like --scheme bf16 --scheme fp8 --scheme w4a16-g128 --size slide",
    ),
    "roofline_batch": (
        "How the batch moves each operator, and how 4-bit weights move it at one batch.",
        "roofline llama-3-8b --device h100-sxm --scheme bf16 --scheme w4a16-g128 --path batch=1:256 --context 512",
    ),
    "roofline_scheme": (
        "How fewer bits move each operator, on two devices.",
        "roofline llama-3-8b --device h100-sxm --device l40s --scheme bf16 --scheme fp8 --scheme w4a16-g128 "
        "--path scheme --layout overlay",
    ),
    "roofline_phases": (
        "Decode and prefill on one figure, with the bar of where the time goes.",
        "roofline llama-3-8b --device h100-sxm --scheme bf16 --scheme fp8 --phase decode --phase prefill --batch 16 "
        "--with time",
    ),
    "roofline_table": (
        "One step with the numbers beside it, in black, grey and white.",
        "roofline llama-3-8b --device h200 --scheme bf16 --scheme w4a16-g128 --with time --with table --theme print",
    ),
    "roofline_dark": (
        "A design with fast memory on the chip, on a dark slide.",
        "roofline llama-3-70b --device asic --scheme fp8 --scheme nvfp4 --phase prefill --with time --size slide "
        "--theme dark",
    ),
}  # fmt: skip
COMMANDS = ROOFLINES | {
    "time": ("Where the time of a step goes.", "predict llama-3-8b --device l40s --scheme fp8-rowwise --batch 16"),
    "pareto": (
        "Latency against throughput, and the front that nothing beats in both.",
        "sweep llama-3-8b --device l40s --scheme bf16 --scheme fp8-rowwise --scheme w4a16-g128 --batch 1:128",
    ),
    "tornado": ("What 20 % more or less of each field of a device changes.",
                "sweep llama-3-8b --device asic --tornado"),
    "timeline": ("A served engine over time.", "serve llama-3-8b --device h200 --concurrency 64"),
    "frontier": (
        "Tokens for a user against tokens of a device, for the best deployments.",
        "plan llama-3-8b --ttft 500ms --tpot 20ms --rate 10 --device l40s --device h100-sxm",
    ),
    "format": ("Every value of a number format, and the spacing between them.", "formats e4m3"),
    "format_wide": ("A format with too many values to draw one by one.", "formats bfloat16"),
    "format_error": ("Relative error against magnitude.", "formats --compare e4m3 e5m2 int8"),
    "outliers": ("Outliers of a model, block by block.", "outliers tiny"),
    "record": ("What every layer lost in quantisation.",
               "quantize tiny --method gptq --scheme w4a16-g128 --out tiny-w4"),
}  # fmt: skip
"""Name -> what the figure shows, and the command without `--plot`."""
FROM_STUDY = {
    "quality_speed": "Quality against speed.", "batch_flip": "Speed-up against the batch.",
    "rooflines": "Rooflines of a study.", "quality_loss": "What each method loses.",
    "what_fits": "Weights against memories.", "predicted_measured": "Predicted against measured.",
    "error_histograms": "Rounding errors of tensors.", "signal_to_noise": "Signal to noise against bits.",
    "smoothing": "Channels before and after smoothing.", "salient_channels": "Channels that matter most.",
    "outlier_profiles": "Methods on models with outliers.", "accumulator_error": "Sums by each accumulator.",
    "exact_products": "A model through each device's own instruction.",
}  # fmt: skip
"""Figure of a study -> what it shows."""
ELSEWHERE = {
    "../figures/decode_speedup.svg": ("The README's first figure.", "python reports/readme_figure.py"),
    "../figures/tensorcore_standstill.svg": ("A sum that stands still.", "python reports/tensorcore_figures.py"),
    "../figures/tensorcore_error_width.svg": ("How wide an accumulator must be.",
                                              "python reports/tensorcore_figures.py"),
    "../fused_distance.svg": ("How far kernels are from each other.", "python reports/fused_distance.py"),
    "../serving.png": ("Latency against throughput, predicted and measured.", "python reports/serving.py"),
    "../kernels_speed.png": ("The ladder of kernels on a CPU.", "python reports/kernels_report.py"),
    "../hwmodels_host.png": ("A computer that was calibrated.", "qsim calibrate --host --plot host.png"),
    "../../qsim/models/tiny/learning_curve.svg": ("The learning curve of the embedded model.",
                                                 "python -m examples.tiny_lm.card"),
}  # fmt: skip
"""File, seen from the page -> what it shows, and the script that draws it."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Gallery</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 62rem; padding: 1rem 1.25rem 3rem;
  color: #1b1f24; }}
figure {{ margin: 2.5rem 0; }} figcaption {{ font-weight: 600; margin-bottom: .4rem; }}
.frame {{ overflow-x: auto; border: 1px solid #d8dde3; border-radius: .4rem; padding: .5rem; }}
img {{ display: block; width: 100%; height: auto; margin: 0 auto; }} .wide img {{ min-width: 38rem; }}
pre {{ background: #f5f7f9; border-radius: .4rem; padding: .6rem .8rem; white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: .85rem; }}
</style></head><body>
<h1>Gallery</h1>
<p>Each figure with the command that draws it. Every <code>qsim</code> verb with <code>--plot FILE</code> takes
<code>--size slide|page|column|square</code> and <code>--theme light|dark|print</code>; a name ending in .svg, .png or
.pdf decides the kind of file. On a narrow screen this page shows the <code>column</code> size.</p>
{figures}
</body></html>
"""


SLOW = ("outliers", "record")
"""Their commands run a model: they are drawn once, and scrolled on a narrow screen."""


def has_twin(name: str, command: str) -> bool:
    return name not in SLOW and "--size" not in command


def drawn(name: str, command: str) -> None:
    """Draw the figure of a command and, where it has one, its narrow twin."""
    for size in [[], ["--size", "column"]] if has_twin(name, command) else [[]]:
        plot = OUT / f"{name}{'-column' if size else ''}.svg"
        with tempfile.TemporaryDirectory() as scratch:
            words = [str(Path(scratch) / w) if w == "tiny-w4" else w for w in shlex.split(command)]
            done = CliRunner().invoke(qsim, [*words, *size, "--plot", str(plot)])
        if done.exit_code:
            raise SystemExit(f"{command}: {done.output}")
        print(f"wrote reports/gallery/{plot.name}: qsim {command}")


def row(name: str, says: str, picture: str, command: str, *, narrow: str = "") -> str:
    source = f'<source media="(max-width: 600px)" srcset="{narrow}">' if narrow else ""
    frame = "frame" if narrow else "frame wide"
    image = f'<picture>{source}<img src="{picture}" alt="{says}" loading="lazy"></picture>'
    return (f'<figure id="{name}"><figcaption>{says}</figcaption><div class="{frame}">{image}</div>'
            f"<pre>{html.escape(command)}</pre></figure>")  # fmt: skip


def main() -> None:
    OUT.mkdir(exist_ok=True)
    only = sys.argv[1:]
    rows = []
    for name, (says, command) in COMMANDS.items():
        if not only or name in only:
            drawn(name, command)
        narrow = f"{name}-column.svg" if has_twin(name, command) else ""
        rows.append(row(name, says, f"{name}.svg", f"qsim {command} --plot {name}.svg", narrow=narrow))
    studied = [name for name in FROM_STUDY if not only or name in only]
    for file in write_figures(read_result(STUDY), OUT, only=studied) if studied else []:
        print(f"wrote reports/gallery/{file.name}: from {STUDY.relative_to(REPORTS.parent)}")
    for name, says in FROM_STUDY.items():
        command = f"qsim study figures reports/study/study.json --out gallery --only {name}"
        rows.append(row(name, says, f"{name}.svg", command))
    for file, (says, command) in ELSEWHERE.items():
        rows.append(row(Path(file).stem, says, file, command))
    (OUT / "index.html").write_text(PAGE.format(figures="\n".join(rows)), encoding="utf-8")


if __name__ == "__main__":
    main()
