"""The validation report as Markdown."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import numpy as np

from .published import BANDS, likely_reason
from .result import Group, Validation
from .serving import Exam, exam_rows
from .steps_by_hand import by_hand


def _mark(group: Group) -> str:
    return "" if group.passed is None else "yes" if group.passed else "**no**"


def _row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(c) for c in cells) + " |"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    return "\n".join([_row(head), _row(["---"] * len(head)), *(_row(r) for r in rows)])


def group_rows(validation: Validation) -> list[dict[str, Any]]:
    """Every group as a flat row."""
    return [
        {"section": g.section, "group": g.name, "rows": g.rows, "mape_percent": g.mape, "required_percent": g.required,
         "passed": g.passed, "band_coverage": g.coverage, **{k: v for k, v in g.detail.items() if k != "all"}}
        for g in validation.groups
    ]  # fmt: skip


def render(
    validation: Validation, command: str, figures: Sequence[tuple[str, str]] = (), exam: Exam | None = None
) -> str:
    """The report: one table per section, signs, published rows outside their band, claims, figures (title, file)."""
    parts = [
        "# Validation of the hardware models",
        f"Produced by `{command}` with Python {platform.python_version()} and NumPy {np.__version__}. Errors are mean "
        "absolute percentage errors of predicted against measured time, on rows that no fit has seen: products and "
        "attention are held out by shape, whole steps are never fitted. `in band` is the share of rows inside an 80 % "
        "band that was drawn from other shapes (steps: the band of the prediction). `roughness over K` is how far a "
        "measured row lies in the mean from the line through its two neighbours in K: engines tune each shape apart, "
        "and where they leave times that rough, no law over shapes does better on those it has not seen.",
        *(f"![{title}]({file})" for title, file in figures),
    ]
    for section in dict.fromkeys(g.section for g in validation.groups):
        mine = [g for g in validation.groups if g.section == section]
        details = list(dict.fromkeys(k for g in mine for k in g.detail if k != "all"))
        rows = [
            [g.name, g.rows, f"{g.mape:.1f} %", "" if g.required is None else f"{g.required:g} %", _mark(g),
             "" if g.coverage is None else f"{100 * g.coverage:.0f} %",
             *(f"{g.detail[d]:.1f}" if d in g.detail else "" for d in details)]
            for g in mine
        ]  # fmt: skip
        error = mine[0].statistic
        parts += [f"## {section}", _table(["group", "rows", error, "required", "met", "in band", *details], rows)]
    if exam is not None:
        parts += _served(exam)
    parts += _by_hand(), _signs(validation), *_published(validation), *_claims(validation), _limits()
    return "\n\n".join(parts) + "\n"


def _served(exam: Exam) -> list[str]:
    """Measured serving points: their tables, and what was left out."""
    rows = exam_rows(exam)
    found = []
    for section in dict.fromkeys(r["section"] for r in rows):
        cells = [
            [r["group"], r["rows"], *(
                text
                for w in ("tpot", "ttft")
                for text in (f"{r[f'{w}_percent']:.1f} %", f"{r[f'{w}_p90_percent']:.0f} %", f"{r[f'{w}_bias']:.2f}",
                             f"{100 * r[f'{w}_in_band']:.0f} %")
            )]
            for r in rows if r["section"] == section
        ]  # fmt: skip
        parts = [f"{w} {part}".strip() for w in ("TPOT", "TTFT") for part in ("median", "p90", "bias", "in band")]
        found += [f"## {section}", _table(["points", "rows", *parts], cells)]
    return [*found, " ".join(exam.remarks)]


def _by_hand() -> str:
    """The step of Llama-3-70B in 4 bit, beside the sum of what was measured of its products."""
    found = by_hand()
    rows = [
        [r["scheme"], *(f"{us:.1f}" for us in r["layers"].values()), f"{r['measured_ms']:.2f}",
         f"{r['products_ms']:.2f}", f"{r['rest_ms']:.2f}", f"{r['step_ms']:.1f}",
         f"{r['low_ms']:.1f} to {r['high_ms']:.1f}"]
        for r in found
    ]  # fmt: skip
    head = ["scheme", *(f"{name}, us" for name in found[0]["layers"]), "80 layers measured, ms", "predicted, ms",
            "rest of the step, ms", "step, ms", "80 % band"]  # fmt: skip
    with_zero, without = (r["layers"].values() for r in found)
    more = [100 * (a / b - 1) for a, b in zip(with_zero, without, strict=True)]
    return "\n\n".join((
        "## Llama-3-70B in 4 bit on an H200, one token at context 2048, from measured products",
        _table(head, rows),
        "12 to 14 ms were asked of `w4a16-g128`. That scheme has zero points, whose kernels were measured "
        f"{min(more):.0f} to {max(more):.0f} % slower on these layers, in turn with the others in one run "
        "(`hwmodels/measurements/gemm_zero_points.csv`): with attention, the small operators and the head, 14 ms are "
        "not reached. The figure describes the symmetric `w4a16-g128-sym`.",
    ))  # fmt: skip


def _signs(validation: Validation) -> str:
    lines = ["## Sign of the speed-up over bf16"]
    for name, pairs in validation.signs.groupby("table"):
        wrong = pairs[pairs.wrong_sign]
        clear = pairs[(pairs.measured - 1).abs() > 0.05]
        lines.append(
            f"`{name}.csv`: {len(wrong)} of {len(pairs)} pairs wrong ({100 * len(wrong) / len(pairs):.1f} %); of the "
            f"{len(clear)} pairs measured more than 5 % apart, {int(clear.wrong_sign.sum())} wrong."
        )
        if len(wrong):
            rows = [
                [r.model, r.fmt, r.phase, r.batch, r.seq, f"{r.measured:.2f}", f"{r.predicted:.2f}"]
                for r in wrong.itertuples()
            ]
            lines.append(_table(["model", "format", "phase", "batch", "seq", "measured", "predicted"], rows))
    slow = validation.signs[
        (validation.signs.model == "llama3-8b") & (validation.signs.fmt == "fp8") & (validation.signs.batch == 1)
        & (validation.signs.phase == "decode")
    ]  # fmt: skip
    rows = [[r.table, r.seq, f"{r.measured:.2f}", f"{r.predicted:.2f}"] for r in slow.itertuples()]
    lines += ["FP8 row-wise at batch 1 on Llama-3-8B (measured slower than bf16):",
              _table(["table", "context", "measured", "predicted"], rows)]  # fmt: skip
    return "\n\n".join(lines)


def _published(validation: Validation) -> list[str]:
    if not validation.published:
        return []
    out, skipped = [], 0
    for r in validation.published:
        if r.error is None:
            skipped += 1
        elif r.kind != "ratio" and abs(r.error) > BANDS[r.phase]:
            out.append([r.id, r.phase, f"{100 * r.error:+.0f} %", likely_reason(r)])
    ratios = [
        [r.id, f"{r.measured:.2f}", f"{r.predicted:.2f}", likely_reason(r)]
        for r in validation.ratios
        if abs(r.error) > 0.2
    ]
    return [
        "Prefill rows and their speed-ups are predicted as layers * t0 + kernels / eta, with t0 and eta of "
        "the engine from its rows of other models only (`hwmodels/validation/laws.py`); the median by the kernels "
        "alone stands beside it. Decode rows take t0 and eta of their engine from its other rows; FlashAttention-3 "
        "its share of the peak likewise.",
        f"## Published rows outside their band\n\n{skipped} rows have no prediction (kernel, device or format without "
        "a model).",
        _table(["row", "phase", "error", "likely reason"], out),
        "### Published speed-ups more than 20 % off",
        _table(["row", "published", "predicted", "likely reason"], ratios),
    ]


def _claims(validation: Validation) -> list[str]:
    rows = [
        [c.text, c.case, f"{c.value:.3g} {c.unit}", "exact" if c.low == c.high else f"{c.low:.3g} to {c.high:.3g}",
         c.fidelity, c.generation, c.verdict]
        for c in validation.claims
    ]  # fmt: skip
    return ["## Claims", _table(["claim", "case", "computed", "80 % band", "fidelity", "kernels of", "remark"], rows)]


def _limits() -> str:
    return (
        "## Limits\n\n"
        "The clock decides: 30 to 60 ms of matrix products bring an H200 to its power limit, and its clock from "
        "1980 to about 1500 MHz (15 % longer times in bf16 and FP8); a tenth of a second after such a load "
        "kernels that wait for latency are still up to 36 % slower. The two earlier campaigns mix these states, "
        "which is most of what they differ by; the layers are therefore fitted and judged on a third campaign in "
        "a settled state, and the earlier ones are listed as they are (`reports/h200_variation.md`). Rows "
        "measured just after a load are left out by their place in the order of measuring, not by their value: "
        "FP8 below M = 8 rests on eight layers. The FP8 row-wise step of Llama-3-8B at batch 1 is a near tie in "
        "the prediction. Launch counts of the compiled step were read from a trace of such steps; their times "
        "were not used. Dataflow and SRAM parts are assumed, not fitted."
    )
