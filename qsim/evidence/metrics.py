"""What was measured: which numbers are losses of one kind, and may therefore be put side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from qsim.errors import QsimError, nearest

Kind: TypeAlias = Literal["token perplexity", "word perplexity", "accuracy", "one task", "long context", "divergence"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One column name of the field.

    Attributes:
        name: as tables of evidence write it.
        kind: `token perplexity` and `word perplexity` (never joined: a word has 1.1 to 1.3 tokens); `accuracy` (an
            average over tasks or a large test), `one task` (its noise is larger than most losses), `long context`,
            `divergence` (of the two models' predictions; no loss).
        text: what it is measured on.
        relative: the value is already relative to 16 bit: `percent` of its score, `percent lost`, or a `ratio` of
            perplexities.
    """

    name: str
    kind: Kind
    text: str = ""
    relative: str = ""

    @property
    def is_perplexity(self) -> bool:
        """Whether the loss is a logarithm of a ratio of perplexities."""
        return self.kind.endswith("perplexity")


def _metrics(kind: Kind, *names: str, relative: str = "") -> list[Metric]:
    return [Metric(name=n, kind=kind, relative=relative) for n in names]


METRICS = {
    m.name: m
    for m in (
        Metric(name="wikitext2_ppl", kind="token perplexity", text="wikitext2"),
        Metric(name="wikitext2_ppl_seq512", kind="token perplexity", text="wikitext2"),
        Metric(name="c4_ppl", kind="token perplexity", text="c4"),
        Metric(name="token_ppl", kind="token perplexity", text="own"),
        Metric(name="ppl_unspecified", kind="token perplexity", text="unspecified"),
        Metric(name="ppl_ratio", kind="token perplexity", text="wikitext2", relative="ratio"),
        Metric(name="wikitext_ppl_lm_eval", kind="word perplexity", text="wikitext2"),
        *_metrics("accuracy", "avg_zero_shot_acc", "mmlu_acc", "lambada_acc", "ceval_acc", "openllm_v1_avg",
                  "openllm_v2_avg", "avg_mmlucot_gsm8k_hs_wg", "avg_mmlu_ceval_ifeval", "race_high_acc", "mmlu_cot_acc",
                  "mmlu_pro_acc"),
        *_metrics("accuracy", "recovery_pct", "recovery_pct_openllm_v1", "recovery_pct_openllm_v2",
                  "recovery_pct_mmlu5", "recovery_pct_mmlu_cot", relative="percent"),
        *_metrics("accuracy", "mmlu_relative_loss_pct", relative="percent lost"),
        *_metrics("one task", "gsm8k_acc", "gsm8k_acc_flexible", "ifeval", "humaneval_pass1", "mbpp_pass1",
                  "triviaqa_score", "winogrande_acc", "gpqa_acc", "aime2024_acc", "aime2025_acc", "livecodebench",
                  "arena_hard_score"),
        *_metrics("one task", "recovery_pct_arena_hard", "recovery_pct_humaneval", "recovery_pct_humaneval_plus",
                  "recovery_pct_arc_c", "recovery_pct_gsm8k", relative="percent"),
        *_metrics("long context", "longbench_avg", "ruler_avg", "mrcr_auc", "needle_acc"),
        *_metrics("long context", "mrcr_auc_recovery_pct", relative="percent"),
        *_metrics("divergence", "kld"),
    )
}  # fmt: skip
"""Every metric that evidence may have, by name."""


def get_metric(name: str) -> Metric:
    """The metric of that name.

    Raises:
        QsimError: a metric that is not known; what it compares is not known either, so it is refused.
    """
    found = METRICS.get(name.strip().lower())
    if found is None:
        raise QsimError(nearest("metric", name, METRICS))
    return found


def context_class(metric: Metric, context: str) -> str:
    """Windows of perplexity that may stand side by side: 2048 tokens, or 512; empty for other kinds."""
    if not metric.is_perplexity:
        return ""
    return "512" if "512" in context or "512" in metric.name or metric.name == "ppl_ratio" else "2048"


def joinable(a: tuple[Metric, str], b: tuple[Metric, str]) -> bool:
    """Whether two losses may be joined: metrics of one kind, on one text, in windows of one length.

    Arguments:
        a, b: a metric and the context that its source states.
    """
    (first, here), (second, there) = a, b
    if first.kind != second.kind or first.kind == "divergence":
        return False
    return first.text == second.text and context_class(first, here) == context_class(second, there)


def ln_ratio(metric: Metric, value: float, baseline: float) -> float | None:
    """ln(perplexity / perplexity in 16 bit); None for a metric that is no perplexity."""
    return math.log(value / baseline) if metric.is_perplexity else None


def percent_lost(metric: Metric, value: float, baseline: float) -> float | None:
    """Percent of the 16-bit score that is lost (100 minus what the field calls recovery); None for a perplexity."""
    if metric.is_perplexity or metric.kind == "divergence":
        return None
    if metric.relative == "percent lost":
        return value
    return 100 - value if metric.relative == "percent" else 100 * (1 - value / baseline)
