"""How well published losses tell the loss of a model that was left out: reports/quality_evidence.md.

python reports/quality_evidence.py          # writes the report; a minute
python reports/quality_evidence.py --fit    # fits qsim/evidence/law.toml again first; another minute
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from _machine import describe

from qsim.evidence import expected_loss, find, independent, published
from qsim.evidence.holdout import HeldOut, band_of, by_basis, coverage, held_out, variances_of
from qsim.evidence.law import FEATURES, fit, law_file, tuning
from qsim.evidence.observations import INTEGERS, SCALES, SCORE, TOKEN, Observation, Scale, observations
from qsim.files import write_text

HERE = Path(__file__).parent
LAW = HERE.parent / "qsim" / "evidence" / "law.toml"
MODELS = ("llama-3-8b", "llama-3-70b", "llama-2-7b", "qwen3-8b", "qwen2.5-7b", "opt-13b", "gemma-3-1b", "gpt-j-6b")
ASKED = (
    ("fp8", "fp8-rowwise"), ("fp8", "fp8-rowwise-kvfp8"), ("awq", "w4a16-g128"), ("gptq", "w4a16-g128"),
    ("rtn", "w4a16-g128"), ("gptq", "w3a16-g128"), ("smoothquant", "w8a8-channel-token"),
    ("rtn", "w8a8-channel-token"), ("rtn", "nvfp4"), ("rtn", "mxfp4"), ("none", "bf16-kvint4"), ("gptq", "w2a16-g64"),
)  # fmt: skip


def fit_law() -> None:
    """Write law.toml: variances by marginal likelihood, bands from held-out losses, and the ratio of two scales."""
    rows = published()
    table: dict[str, Any] = {
        "about": "Fitted by reports/quality_evidence.py --fit to the rows of published.csv; do not edit by hand.",
        "rows": len(rows),
    }
    for scale in (TOKEN, SCORE):
        seen = observations(rows, scale)
        variances = tuple(round(v, 4) for v in variances_of(scale, seen))
        bands = {basis: [round(q, 3) for q in band_of(found)] for basis, found in
                 by_basis(scale, seen, variances).items()}  # fmt: skip
        found = fit(scale, seen, variances).coefficients
        table[scale.name] = {
            "observations": len(seen), "models": len({o.model.name for o in seen}),
            "variances": dict(zip(("generation", "cell", "model", "row"), variances, strict=True)), "bands": bands,
            "coefficients": {name: round(found[name], 4) for name in FEATURES},
        }  # fmt: skip
    table["score_to_perplexity"] = score_to_perplexity()
    write_text(LAW, tomli_w.dumps(table))
    law_file.cache_clear()


def score_to_perplexity() -> dict[str, float]:
    """Percent of a score lost for each unit of ln perplexity, where one source has both for one model.

    Losses below 0.08, where a score is noise, are left out.
    """
    both: dict[Any, dict[str, float]] = {}
    for row in independent(published()):
        key = (row.source, row.model, row.label, row.precision)
        if row.metric.name == "wikitext2_ppl" and row.ln_ratio and 0.08 < row.ln_ratio < 0.6:
            both.setdefault(key, {})["ln"] = row.ln_ratio
        elif row.metric.name == "avg_zero_shot_acc" and row.percent_lost is not None:
            both.setdefault(key, {})["percent"] = row.percent_lost
    ratios = [b["percent"] / b["ln"] for b in both.values() if len(b) == 2]
    low, usual, high = np.quantile(ratios, [0.1, 0.5, 0.9])
    return {"percent_per_ln": round(float(usual), 2), "low": round(float(low), 2), "high": round(float(high), 2),
            "pairs": len(ratios)}  # fmt: skip


def table_of(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(c) for c in line) + " |" for line in lines) + "\n"


def errors(scale: Scale) -> list[list[object]]:
    """Held-out errors and coverage of one scale, by what the expectation stood on."""
    seen, tuned = observations(published(), scale), tuning(scale)
    found = by_basis(scale, seen, tuned.variances)
    rows: list[list[object]] = []
    for basis, mine in found.items():
        if not mine:
            continue
        low, high = tuned.bands[basis]
        inside = np.mean([low <= h.error <= high for h in mine])
        rows.append([scale.name, basis, len(mine), len({h.seen.model.name for h in mine}), _factor(scale, mine),
                     _median(scale, mine), f"{100 * inside:.0f} %",
                     f"{100 * coverage(mine):.0f} %" if len(mine) > 20 else "few rows"])  # fmt: skip
    return rows


def _losses(scale: Scale, h: HeldOut) -> tuple[float, float]:
    return scale.linear * float(np.sinh(h.expected)), h.seen.loss


def _factor(scale: Scale, found: Sequence[HeldOut]) -> str:
    pairs = [_losses(scale, h) for h in found]
    large = [np.log(a / b) for a, b in pairs if a > 0 and b > 3 * scale.linear]
    return f"x {np.exp(np.sqrt(np.mean(np.square(large)))):.2f}" if large else ""


def _median(scale: Scale, found: Sequence[HeldOut]) -> str:
    return f"{np.median([abs(a - b) for a, b in (_losses(scale, h) for h in found)]):.3g}"


def by_group(scale: Scale, key: Callable[[Observation], str]) -> list[list[object]]:
    """Errors with one whole model left out, by any property of the observation."""
    tuned = tuning(scale)
    found = [h for h in held_out(scale, observations(published(), scale), tuned.variances, "model") if h.basis]
    out: list[list[object]] = []
    for name in sorted({key(h.seen) for h in found}):
        mine = [h for h in found if key(h.seen) == name]
        inside = np.mean([tuned.bands[str(h.basis)][0] <= h.error <= tuned.bands[str(h.basis)][1] for h in mine])
        out.append([name, len(mine), _factor(scale, mine), _median(scale, mine), f"{100 * inside:.0f} %"])
    return out


def expectation_rows() -> list[list[object]]:
    """What the table says of some models."""
    out: list[list[object]] = []
    for model in MODELS:
        for method, scheme in ASKED:
            e = expected_loss(model, method, scheme)
            if e.value is None:
                out.append([model, method, scheme, "none", "", "", _percent(e.collapse), f"**{e.basis}**: {e.note}"])
                continue
            points = "" if e.points is None else f"{e.points:+.1f} ({e.points_low:+.1f} to {e.points_high:+.1f})"
            lost = f"{e.lost:.1f} ({e.lost_low:.1f} to {e.lost_high:.1f})"
            out.append([model, method, scheme, f"{e.value:+.3f} ({e.low:+.3f} to {e.high:+.3f})", points, lost,
                        _percent(e.collapse) + (", fragile" if e.fragile else ""),
                        f"**{e.basis}**, {len(e.rows)} rows, {e.metric}"])  # fmt: skip
    return out


def _percent(p: float | None) -> str:
    return "unknown" if p is None else f"{100 * p:.0f} %"


def report() -> str:
    """The text of the report."""
    rows = published()
    kinds = sorted({r.metric.kind for r in rows})
    counted = [[k, *(sum(r.metric.kind == k and r.grade == g for r in rows) for g in "AB"),
                len({r.model for r in rows if r.metric.kind == k})] for k in kinds]  # fmt: skip
    shares = [errors(scale) for scale in SCALES]
    law = law_file()
    coefficients = [[name, f"{law['token']['coefficients'][name]:+.3f}", f"{law['score']['coefficients'][name]:+.3f}"]
                    for name in FEATURES]  # fmt: skip
    ratio = law["score_to_perplexity"]
    model_out = by_group(TOKEN, lambda o: o.change.kind if o.change.kind == INTEGERS else "everything else")
    generation = by_group(TOKEN, lambda o: o.model.generation)
    collapses = [r for r in find(rows=rows) if r.collapsed and (r.precision.bits or 0) >= 4
                 and r.precision.activation != "int4"]  # fmt: skip
    seen = sorted({(r.model, r.label, str(r.precision)) for r in collapses})
    return f"""# What published losses tell of another model

{
        '''
'''.join(describe("numpy", "scipy"))
    }

## The table

{len(rows)} rows on {len({r.model for r in rows})} models from {len({r.source for r in rows})} sources, {
        len(independent(rows))
    } of
them independent. Grade A is the publisher's own text, grade B a copy of a paper's text or table.

{table_of(["kind of metric", "grade A", "grade B", "models"], counted)}
Kinds are never joined: a loss per word is 1.1 to 1.3 times one per token, and every value is compared with the 16-bit
value of its own source.

## Errors on what was left out

`published`: the source was left out and another one has the same model and numbers. `near`: the whole model was left
out and others of its generation remain. `law`: the whole generation was left out, or the model where it is alone. The
factor is the root mean square of ln(expected / published) over losses above 0.009 (1.5 % of a score); the median error
is in ln perplexity, or in percent of the score. The last column finds the band without the model that is tested.

{
        table_of(
            [
                "scale",
                "stands on",
                "rows",
                "models",
                "factor",
                "median error",
                "in the 80 % band",
                "band of other models",
            ],
            [row for rows_ in shares for row in rows_],
        )
    }
With one whole model left out, perplexity per token:

{table_of(["change", "rows", "factor", "median error", "in the 80 % band"], model_out)}
{table_of(["generation", "rows", "factor", "median error", "in the 80 % band"], generation)}
## The law

asinh(loss / linear) is a sum; for losses above 0.01 a coefficient is the logarithm of a factor. It holds for 3- and
4-bit integer weights beside 16-bit activations; every other kind of change has a level of its own, corrected by models
of the same generation. Bits outside 3 and 4 are not extrapolated. A coefficient is 0 where the fit would say that fewer
bits, coarser scales or a smaller model lose less: sources measured other models in groups of 32 than in groups of 128.
An answer that is no fact of the model itself is also held between what coarser and finer numbers lose on that model.

{table_of(["feature", "ln perplexity", "percent of a score"], coefficients)}
One unit of ln perplexity costs {ratio["percent_per_ln"]:g} % of an average score ({ratio["low"]:g} to {
        ratio["high"]:g} % over {ratio["pairs"]} pairs of one
source); where only scores are known, a perplexity is estimated by this.

## What to expect

`percent lost` joins both scales: perplexity by the ratio above, and scores, weighted by how sure each is.

{
        table_of(
            [
                "model",
                "method",
                "numbers",
                "ln perplexity, 80 % band",
                "points of an average score",
                "collapse",
                "stands on",
            ],
            expectation_rows(),
        )
    }
## Models that were destroyed

Published collapses at 4 bits and more, 4-bit activations left out: {
        len(seen)
    } cases. They are no part of any mean above.

{table_of(["model", "method", "numbers"], seen)}"""


if __name__ == "__main__":
    if "--fit" in sys.argv[1:]:
        fit_law()
    write_text(HERE / "quality_evidence.md", report())
