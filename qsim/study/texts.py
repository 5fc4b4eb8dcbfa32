"""The sentences of the report that the numbers decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qsim.plots.names import and_list

from .looks import curve_schemes, first_model, titles
from .result import StudyResult
from .rows import DecisionRow
from .spec import Case


def all_texts(result: StudyResult) -> dict[str, Any]:
    """Every text that the template names."""
    return {
        "lead": lead(result), "rule": rule(result), "left_out": left_out(result), "short": short(result),
        "agreed": agreed(result), "made": made(result), "limits": limits(result), "command": command(result),
    }  # fmt: skip


def case_words(case: Case) -> str:
    """What a case runs, in a few words."""
    size = "as many as fit" if case.batch == 0 else f"batch {case.batch}"
    if case.phase == "serve":
        return f"{case.batch} in flight, {case.context} + {case.new_tokens} tokens"
    if case.phase == "request":
        return f"{size}, {case.context} + {case.new_tokens} tokens"
    return f"{case.phase}, {size}, {case.context} tokens"


def lead(result: StudyResult) -> str:
    """One sentence on what was measured and predicted."""
    priced = [r.model for r in result.speed] or [Path(name).stem for name in result.spec.speed.models]
    models = and_list(list(dict.fromkeys(priced)))
    own = any(e.basis == "measured" for e in result.expected)
    lost = (
        "is measured on the model itself" if own else "is expected from published losses of these models and near ones"
    )
    return (
        f"{len(result.methods)} ways to make a model small, for {models} on {len(result.spec.speed.devices)} devices. "
        f"What they gain is predicted, what they lose {lost}; both with 80 % bands."
    )


def rule(result: StudyResult) -> str:
    """How an answer is chosen, under the table of answers; `qsim.study.decide` has it step by step."""
    return (
        f"An answer is a checkpoint that engines serve, that is expected to lose at most {result.spec.max_lost:g} % on "
        "the target, and of whose kind none destroyed a model of the target's class. Of those the fastest is taken. "
        "Where the 80 % bands cannot tell, it is one whose time was measured on the device, then the simpler one; a "
        "larger loss must buy a tenth of speed."
    )


def short(result: StudyResult) -> list[str]:
    """What the table of answers does not say at a glance: the largest gain, what not to serve, and where gains end."""
    lines: list[str] = []
    model, names = first_model(result), titles(result)
    gains = [d for d in result.decisions if d.speedup is not None and d.model == model]
    if gains:
        measured = [d for d in gains if d.fidelity == "calibrated"] or gains
        lines.append(_gain_line(max(measured, key=lambda d: d.speedup or 0), result))
    fragile = [names[e.method] for e in result.expected if e.model == model and e.variant == "full"
               and (e.fragile or (e.collapse or 0) >= 0.5)]  # fmt: skip
    if fragile:
        lines.append(f"Not to be served on {model} without measuring it: {and_list(fragile)}. A collapse of this "
                     "kind is published for its class of models.")  # fmt: skip
    small = curve_schemes(result)[:1]
    flips = [f for f in result.flips if f.scheme in small and f.no_gain_from]
    if flips:
        first = min(flips, key=lambda f: f.no_gain_from or 0)
        lines.append(f"Small weights pay at small batches: {first.scheme} is no faster than 16 bit from batch "
                     f"{first.no_gain_from} on {first.device}.")  # fmt: skip
    return lines


def agreed(result: StudyResult) -> str:
    """How many answers are what guides and papers recommend."""
    rows = result.agreement
    same = sum(a.agrees for a in rows)
    return (
        f"{same} of {len(rows)} answers for {first_model(result)} are of a kind that guides and papers recommend for "
        "the device and the case. " + ("Where they differ:" if same < len(rows) else "")
    ).strip()


def _gain_line(d: DecisionRow, result: StudyResult) -> str:
    case = next(c for c in result.spec.cases if c.name == d.case)
    return (
        f"The largest gain for {d.model}: {d.title} on {d.device}, {d.speedup:.1f}x over 16 bit "
        f"({d.speedup_low:.1f} to {d.speedup_high:.1f}) for {(case.title or case.name).lower()}."
    )


def left_out(result: StudyResult) -> str:
    """What a quick study does without, in one paragraph; empty for a whole one."""
    if not result.quick:
        return ""
    q = result.spec.quality
    scored = max((r.bytes_scored for r in result.quality), default=0)
    through = f"{q.exact_bytes} bytes" if q.exact_bytes else "nothing"
    return (
        f"A quick study. Quality is measured on {scored:,} bytes of text in windows of {q.window} tokens, so its "
        f"intervals are wide; methods were shown {q.calibration_tokens:,} tokens, AWQ tried {q.search_grid} scales per "
        f"layer, and {through} of text went through the tensor-core emulator. Left out: fitting the kernels again "
        "without each measured layer (attention and whole steps are still held against measurements). "
        "Predictions are those of the whole study."
    )


def made(result: StudyResult) -> list[str]:
    """Versions, machine, hashes."""
    e, m = result.environment, result.measured
    packages = ", ".join(f"{name} {number}" for name, number in e.packages.items())
    return [
        f"qsim {e.qsim}, Python {e.python}, {packages}",
        f"{e.processor}, {e.cores} cores, {e.threads} threads; fused kernels: {e.kernel_path}",
        f"model {m.model}, sha256 {m.model_sha256[:16]}; text {m.text}, sha256 {m.text_sha256[:16]}; calibration "
        f"{m.calibration}, sha256 {m.calibration_sha256[:16]}; seed {result.spec.quality.seed}",
        f"execution profile {result.spec.speed.profile}; predictions by hwmodels, sums by qsim.tensorcore",
        *m.notes,
    ]


def limits(result: StudyResult) -> list[str]:
    """What the study does not say."""
    lines = [
        "What a target loses is expected from published rows: other recipes, texts and engines. Bands say how far such "
        "rows are apart; test your own use, long contexts above all.",
        f"The lesson on {result.measured.model} is one model on one text. It says what methods do to it, not what a "
        "larger model will lose.",
        "The gains are of one step or of whole requests without queueing, scheduling between users or speculation.",
        "Bands of a ratio take the errors of its two times as independent. On one device they share causes (on an H200 "
        "they correlate by 0.3 to 0.5, and nine of ten measured ratios lie in their 80 % band), so sure gains may be "
        "called unsure.",
    ]
    if any(m.scheme.startswith("w3") for m in result.methods):
        lines.append("No 3-bit kernel has been measured here: 3-bit weights are priced with the efficiencies of the "
                     "4-bit kernels of the device, which flatters them.")  # fmt: skip
    if any(d.name.startswith(("asic", "sn40l", "groq")) for d in result.spec.speed.devices):
        lines.append("Dataflow devices are priced with assumed efficiencies; their bands are 40 % and not measured.")
    return lines


def command(result: StudyResult) -> str:
    """What makes this study again."""
    return (
        "qsim study --file study.toml --out FOLDER"
        if _is_custom(result)
        else ("qsim study --quick" if result.quick else "qsim study")
    )


def _is_custom(result: StudyResult) -> bool:
    from .spec import StudySpec, check

    base = check(StudySpec())
    return result.spec not in (base, check(base.quick()))
