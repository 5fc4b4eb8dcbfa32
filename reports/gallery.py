"""A gallery of the figures that the commands draw: reports/gallery/*.svg, and a page with the command behind each.

python reports/gallery.py
"""

from __future__ import annotations

import html
import shlex
from pathlib import Path

from click.testing import CliRunner

from qsim.cli import main as qsim

OUT = Path(__file__).parent / "gallery"
FIGURES = {
    "roofline_devices": (
        "Where the operators of one step stand under the roofs of three devices.",
        "roofline llama-3-70b --device h100-sxm --device b200 --device asic --scheme bf16 --scheme fp8 "
        "--scheme w4a16-g128 --size slide",
    ),
    "roofline_batch": (
        "How the batch moves each operator, in BF16 and with 4-bit weights.",
        "roofline llama-3-8b --device h100-sxm --scheme bf16 --scheme w4a16-g128 --path batch=1:256 --context 512",
    ),
    "roofline_scheme": (
        "How fewer bits move each operator, on two devices.",
        "roofline llama-3-8b --device h100-sxm --device l40s --scheme bf16 --scheme fp8 --scheme w4a16-g128 "
        "--path scheme --layout overlay",
    ),
    "roofline_phases": (
        "Decode and prefill on one figure.",
        "roofline llama-3-8b --device h100-sxm --scheme bf16 --scheme fp8 --phase decode --phase prefill --batch 16",
    ),
    "time": ("Where the time of a step goes.", "predict llama-3-8b --device l40s --scheme fp8-rowwise --batch 16"),
    "pareto": (
        "Latency against throughput, and the front that nothing beats in both.",
        "sweep llama-3-8b --device l40s --scheme bf16 --scheme fp8-rowwise --scheme w4a16-g128 --batch 1:128",
    ),
    "tornado": (
        "What 20 % more or less of each field of a device changes.",
        "sweep llama-3-8b --device asic --tornado",
    ),
    "format": ("Every value of a number format, and the spacing between them.", "formats e4m3"),
    "format_error": ("Relative error against magnitude.", "formats --compare e4m3 e5m2 int8"),
}  # fmt: skip
"""Name -> what the figure shows, and the command without `--plot`."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Gallery</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 62rem; padding: 1rem 1.25rem 3rem;
  color: #1b1f24; }}
figure {{ margin: 2.5rem 0; }} figcaption {{ font-weight: 600; margin-bottom: .4rem; }}
img {{ width: 100%; height: auto; border: 1px solid #d8dde3; border-radius: .4rem; }}
pre {{ background: #f5f7f9; border-radius: .4rem; padding: .6rem .8rem; white-space: pre-wrap; font-size: .85rem; }}
</style></head><body>
<h1>Gallery</h1>
<p>Each figure with the command that draws it. <code>--size slide|page|column|square</code> and
<code>--theme light|dark|print</code> change a roofline; a name ending in .svg, .png or
.pdf decides the kind of file.</p>
{figures}
</body></html>
"""


def main() -> None:
    OUT.mkdir(exist_ok=True)
    parts = []
    for name, (says, command) in FIGURES.items():
        plot = OUT / f"{name}.svg"
        done = CliRunner().invoke(qsim, [*shlex.split(command), "--plot", str(plot)])
        if done.exit_code:
            raise SystemExit(f"{command}: {done.output}")
        shown = html.escape(f"qsim {command} --plot {plot.name}")
        parts.append(f'<figure id="{name}"><figcaption>{says}</figcaption><img src="{plot.name}" alt="{says}">'
                     f"<pre>{shown}</pre></figure>")  # fmt: skip
        print(f"wrote reports/gallery/{plot.name}: qsim {command}")
    (OUT / "index.html").write_text(PAGE.format(figures="\n".join(parts)), encoding="utf-8")


if __name__ == "__main__":
    main()
