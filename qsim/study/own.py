"""What a study measured on its model, as rows of evidence: how `qsim evidence --rows STUDY` comes to know it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from qsim.evidence import METRICS, Row
from qsim.evidence.find import identity
from qsim.evidence.identity import canonical
from qsim.evidence.precision import Precision, of_scheme
from qsim.evidence.table import method_of

from .method import NONE
from .result import StudyResult


def measured_rows(result: StudyResult) -> Iterator[Row]:
    """A row of grade M for every method, in perplexities per token on the study's text.

    A method with options of its own is left out: evidence tells methods by name. Where a device keeps activations in
    16 bit, that variant is a row of the numbers that it runs in.
    """
    q, name = result.spec.quality, canonical(result.measured.model)
    base = next((row for row in result.quality if row.method.startswith(f"{NONE}:")), None)
    if base is None:
        return
    per_bit = math.log(base.perplexity) / base.bits_per_byte  # ln perplexity for each bit per byte
    known = identity(name) is not None
    seen = set()
    for method in result.spec.methods:
        for row in (r for r in result.quality if r.method == method.name):
            full = of_scheme(method.scheme)
            p = full if row.variant == "full" else Precision(weight=full.weight, region=full.region, kv=full.kv)
            if p == Precision() or method.options or (method.algorithm, p) in seen:
                continue
            seen.add((method.algorithm, p))
            yield Row(
                model=name, method=method_of(method.algorithm), label=method.algorithm, precision=p,
                metric=METRICS["token_ppl"], context=f"seq {q.window}", baseline=base.perplexity,
                value=base.perplexity * math.exp(row.loss * per_bit), standard_error=row.loss_se * per_bit or None,
                calibration=result.measured.calibration, source="study", title=result.spec.title,
                reference="qsim study", place=method.title, grade="M",
                parameters_b=None if known else result.measured.parameters / 1e9,
                note=f"measured with this project on {row.bytes_scored:,} bytes of {result.measured.text}",
            )  # fmt: skip
