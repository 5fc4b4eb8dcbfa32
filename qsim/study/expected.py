"""What the target models lose: expected from published evidence, or measured here where the target is measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import hwmodels
from hwmodels.workload.architecture import Architecture
from qsim.errors import QsimError
from qsim.evidence import Expectation, KnownModel, Precision, Row, expected_loss, read_rows, shipped
from qsim.evidence.expect import percent_of
from qsim.evidence.find import identity
from qsim.evidence.observations import TOKEN_512
from qsim.evidence.own import measured_band
from qsim.evidence.precision import of_scheme
from qsim.evidence.served import served_as, served_title

from .hardware import devices, executed
from .method import NONE, Method
from .rows import ExpectedRow, QualityRow
from .spec import StudySpec


def expected_rows(
    spec: StudySpec, quality: Sequence[QualityRow], evidence: Sequence[Row] | None = None
) -> Iterator[ExpectedRow]:
    """The loss of every method on every target model, for each way that a device of the study executes it.

    Arguments:
        quality: what was measured; it is the target's own loss where the study measures the target.
        evidence: rows to expect the others from; by default the shipped ones and those of `spec.evidence`.
    """
    rows = evidence_of(spec) if evidence is None else tuple(evidence)
    measured = {(q.method, q.variant): q for q in quality}
    for name in spec.speed.models:
        arch = hwmodels.get_architecture(name)
        own = name == spec.quality.model
        target = _target(arch, rows)
        for method in spec.methods:
            for variant in _variants(spec, method):
                found = measured.get((method.name, variant)) if own else None
                if found is not None and method.algorithm != NONE:
                    yield _measured(arch.name, method, variant, found, measured)
                else:
                    yield _expected(arch.name, method, variant, _ask(target, method, variant, rows))


def evidence_of(spec: StudySpec) -> tuple[Row, ...]:
    """The shipped rows, and those of the study's own file.

    Raises:
        QsimError: a row of the file that cannot be compared.
        OSError: the file cannot be read.
    """
    return shipped() + (read_rows(spec.evidence) if spec.evidence else ())


def _target(arch: Architecture, rows: Sequence[Row]) -> KnownModel:
    """The target as evidence knows it; an architecture that it does not know has a size, and the law alone."""
    found = identity(arch.name, rows)
    if found is not None:
        return found
    return KnownModel(
        name=arch.name, family=arch.name, generation=arch.name, parameters_b=float(arch.parameters) / 1e9
    )  # fmt: skip


def _variants(spec: StudySpec, method: Method) -> tuple[str, ...]:
    found = {executed(d, method.scheme, spec.speed.profile) for d in devices(spec).values()}
    return tuple(v for v in ("full", "weights") if v == "full" or v in found)


def _ask(target: KnownModel, method: Method, variant: str, rows: tuple[Row, ...]) -> Expectation:
    """What evidence says. A device that keeps activations in 16 bit loses at most what it would with them quantised."""
    given = rows if rows != shipped() else None
    full = of_scheme(method.scheme)
    if variant == "weights":
        kept = Precision(weight=full.weight, region=full.region, kv=full.kv)
        alone = expected_loss(target, method.algorithm, kept, rows=given)
        if alone.known:
            return alone
    found = expected_loss(target, method.algorithm, full, rows=given)
    if variant == "weights" and found.known:
        return replace(found, note="; ".join(n for n in (found.note, "at most: activations stay in 16 bit") if n))
    return found


def _expected(model: str, method: Method, variant: str, e: Expectation) -> ExpectedRow:
    served = served_as(method.algorithm, method.scheme)
    return ExpectedRow(
        model=model, method=method.name, variant=variant, title=served_title(method.algorithm, method.scheme),
        effort=_effort(method, None if served is None else served.effort), basis=e.basis, lost=e.lost,
        lost_low=e.lost_low, lost_high=e.lost_high, ln_ratio=e.value, ln_ratio_low=e.low, ln_ratio_high=e.high,
        metric=e.metric, points=e.points, points_low=e.points_low, points_high=e.points_high, collapse=e.collapse,
        fragile=e.fragile, note=e.note, sources=tuple(dict.fromkeys(r.citation for r in e.rows))[:8],
    )  # fmt: skip


def _effort(method: Method, served: float | None) -> float:
    """What it takes to serve: of the weights, and a little more for a quantised cache."""
    return (4.0 if served is None else served) + 0.5 * (of_scheme(method.scheme).kv != "none")


def _measured(
    model: str, method: Method, variant: str, row: QualityRow, measured: dict[tuple[str, str], QualityRow]
) -> ExpectedRow:
    """The loss that this study measured on the target itself, bits per byte as ln perplexity."""
    base = next(q for (name, _), q in measured.items() if name.startswith(f"{NONE}:"))
    per_bit = math.log(base.perplexity) / base.bits_per_byte
    value = row.loss * per_bit
    loss = (value, *measured_band(value, row.loss_se * per_bit or None, TOKEN_512))
    lost, low, high = percent_of(loss)
    return replace(
        _expected(model, method, variant, Expectation(model=model, method=method.algorithm, scheme=method.scheme)),
        basis="measured", ln_ratio=loss[0], ln_ratio_low=loss[1], ln_ratio_high=loss[2], lost=lost, lost_low=low,
        lost_high=high, metric="token perplexity", collapse=float(value > 1), note=f"on {row.bytes_scored:,} bytes",
        sources=("this study",),
    )  # fmt: skip


def check_evidence(spec: StudySpec) -> None:
    """Refuse a file of evidence that cannot be used, before anything is written."""
    try:
        evidence_of(spec)
    except OSError as error:
        raise QsimError(f"the evidence of the study cannot be read: {error}") from None
