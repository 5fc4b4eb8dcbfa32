"""The README's first table, from a finished study: what to serve, its gain over 16 bit, and the loss to expect.

python reports/readme_table.py            # from reports/study
python reports/readme_table.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from qsim.study import StudyResult, read_result
from qsim.study.rows import DecisionRow

DEVICES = ("h100-sxm", "h200", "b200", "a100-sxm-80gb", "l40s", "rtx-4090")


def cell(d: DecisionRow) -> str:
    """`FP8 dynamic, 1.5x, −0.2 %`."""
    if d.title is None:
        return d.why.partition(":")[0]
    parts = [d.title]
    if d.speedup is not None:
        parts.append(f"{d.speedup:.1f}x")
    if d.basis != "exact":
        parts.append(f"−{d.lost:.1f} %")
    return ", ".join(parts)


def table(result: StudyResult, devices: tuple[str, ...] = DEVICES) -> str:
    """Markdown for the first target of the study."""
    model = result.decisions[0].model
    answer = {(d.case, d.device): d for d in result.decisions if d.model == model}
    head = "| " + " | ".join(["Llama-3-8B" if model == "llama-3-8b" else model, *devices]) + " |"
    rows = [[c.title or c.name, *(cell(answer[c.name, name]) for name in devices)] for c in result.spec.cases]
    return "\n".join([head, "|" + "---|" * (len(devices) + 1), *("| " + " | ".join(row) + " |" for row in rows)])


if __name__ == "__main__":
    print(table(read_result(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "study")))
