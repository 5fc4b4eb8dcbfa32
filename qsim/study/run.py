"""The whole study: every part in turn, kept as it is finished, and put together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import hwmodels
from qsim.notes import Note, pick

from . import accumulator, hardware, trust
from .agreement import agreement_rows
from .cost import Cost, cost_of
from .decide import decisions
from .expected import check_evidence, expected_rows
from .folder import Parts, prepare
from .result import Environment, Measured, StudyResult, environment
from .rows import (
    AccumulatorRow,
    ChannelRow,
    ExactRow,
    HistogramRow,
    KindRow,
    MethodRow,
    ProfileRow,
    QualityRow,
    SalientRow,
    TensorErrorRow,
    TrustPoint,
    TrustRow,
    VerdictRow,
)  # fmt: skip
from .spec import StudySpec, check
from .study_file import to_table

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and what comes next."""


_SPEED, _CURVES, _SUBJECT = "speed of every case", "curves, flips and rooflines", "model and texts"
_TENSORS, _SUMS, _VALIDATION = "tensors", "accumulators", "validation"
_OUTLIERS = "outliers"
_STEPS = (_SPEED, _CURVES, _SUBJECT, _TENSORS, _OUTLIERS, _SUMS, _VALIDATION)
"""Steps of every study, besides one for each method."""


@dataclass(frozen=True, kw_only=True)
class _MethodPart:
    quality: tuple[QualityRow, ...]
    exact: tuple[ExactRow, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _TensorPart:
    histograms: tuple[HistogramRow, ...]
    errors: tuple[TensorErrorRow, ...]
    channels: tuple[ChannelRow, ...]
    salient: tuple[SalientRow, ...]
    notes: tuple[Note, ...]


@dataclass(frozen=True, kw_only=True)
class _OutlierPart:
    kinds: tuple[KindRow, ...]
    verdicts: tuple[VerdictRow, ...]


@dataclass(frozen=True, kw_only=True)
class _TrustPart:
    groups: tuple[TrustRow, ...]
    points: tuple[TrustPoint, ...]


@dataclass(kw_only=True)
class _Steps:
    """Counts steps, and how long each took."""

    progress: Progress
    total: int
    done: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, what: str, work: Callable[[], Any]) -> Any:
        self.progress(self.done, self.total, what)
        start = time.perf_counter()
        value = work()
        self.seconds[what] = time.perf_counter() - start
        self.done += 1
        return value


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished study: the result, how long each step took, which steps an earlier run had finished, and what of those
    was damaged and made again."""

    result: StudyResult
    seconds: dict[str, float]
    resumed: tuple[str, ...]
    notes: tuple[str, ...] = ()


def run_study(
    spec: StudySpec,
    out: str | Path | None = None,
    *,
    quick: bool = False,
    force: bool = False,
    progress: Progress = lambda done, total, step: None,
    announce: Callable[[Cost], None] | None = None,
) -> Run:
    """Run a study, and write it into a folder when one is given.

    Arguments:
        spec: what is asked; names are resolved and 16 bit is put first.
        out: the folder; None keeps the result in memory. An unfinished study there goes on where it stopped.
        quick: the same study on less text, without what takes long and changes no answer; the report says what.
        force: replace a finished study.
        progress: called before every step.
        announce: called with what it will take, before anything is measured.

    Raises:
        ValueError: names that do not exist, a folder that holds something else, a model or text that cannot be used.
        OSError: a file cannot be read or written.
    """
    spec = check(spec.quick() if quick else spec)
    folder = None if out is None else Path(out)
    from .outliers import profiles_of
    from .quality import check_texts

    check_texts(spec)
    check_evidence(spec)
    if announce is not None:
        announce(cost_of(spec))
    if folder is not None:
        prepare(folder, {"spec": to_table(spec), "quick": quick}, force=force)
    parts = Parts(folder)
    steps = _Steps(
        progress=progress, total=len(spec.methods) + len(_STEPS) + len(profiles_of(spec)) + (folder is not None)
    )
    result = _result(spec, quick, parts, steps)
    if folder is not None:
        from .report import write_study

        steps.run("figures and page", lambda: write_study(result, folder))
        parts.done()
    progress(steps.total, steps.total, "done")
    return Run(result=result, seconds=steps.seconds, resumed=tuple(parts.resumed), notes=parts.notes)


def _result(spec: StudySpec, quick: bool, parts: Parts, steps: _Steps) -> StudyResult:
    from . import quality, tensors
    from .outliers import profile_rows, profiles_of

    env = environment()
    speed, assumed = steps.run(_SPEED, lambda: hardware.speed_table(spec))
    curves, flips, operators, roofs, capacity = steps.run(_CURVES, lambda: (
        tuple(hardware.curve_rows(spec)), tuple(hardware.flip_rows(spec)), *hardware.roofline_rows(spec),
        tuple(hardware.capacity_rows(spec)),
    ))  # fmt: skip
    subject: quality.Subject = steps.run(_SUBJECT, lambda: quality.subject(spec))
    from qsim._native.blas import one_blas_thread
    from qsim.methods.passes import is_small
    from qsim.models.evaluation import Reference
    from qsim.models.fingerprint import fingerprint

    inputs = {"spec": to_table(spec), "environment": _plain(env), **subject.fingerprint,
              "exactly": fingerprint(subject.model)}  # fmt: skip
    reference = Reference(quality.in_sixteen_bit(subject.model))
    small = is_small(subject.model)  # its 16-bit products alternate with compiled loops too
    found: list[_MethodPart] = []
    for method in spec.methods:

        def work(method: Any = method) -> _MethodPart:
            with one_blas_thread(small):
                rows, exact, notes = quality.measure(spec, subject, method, reference)
            return _MethodPart(quality=rows, exact=exact, notes=notes)

        kept = {**inputs, "method": method.name}
        found.append(steps.run(method.title, lambda kept=kept, method=method, work=work: parts.get(
            f"quality-{method.name}", kept, _MethodPart, work)))  # type: ignore[misc]  # fmt: skip
    rows = tuple(row for part in found for row in part.quality)
    tensor: _TensorPart = steps.run(_TENSORS, lambda: parts.get(
        "tensors", inputs, _TensorPart, lambda: _tensors(spec, subject, tensors)))  # fmt: skip
    seen: _OutlierPart = steps.run(_OUTLIERS, lambda: parts.get(
        "outliers", inputs, _OutlierPart, lambda: _outliers(subject)))  # fmt: skip
    given: list[ProfileRow] = []
    for profile in profiles_of(spec):
        given += steps.run(f"methods on {profile}", lambda profile=profile: parts.get(  # type: ignore[misc]
            f"profile-{profile}", {**inputs, "profile": profile}, tuple[ProfileRow, ...],
            lambda: profile_rows(spec, subject, profile)))  # fmt: skip
    sums = steps.run(_SUMS, lambda: parts.get(
        "accumulators", inputs, tuple[AccumulatorRow, ...],
        lambda: tuple(accumulator.accumulator_rows(spec))))  # fmt: skip
    checked: _TrustPart = steps.run(_VALIDATION, lambda: parts.get(
        "trust", {**inputs, "quick": quick}, _TrustPart, lambda: _trust(layers=not quick)))  # fmt: skip
    measured = quality.measured(spec, subject, rows[0])
    expected = tuple(expected_rows(spec, rows))
    decided = tuple(decisions(spec, speed, expected, quick=quick))
    return StudyResult(
        spec=spec, quick=quick, environment=env, measured=measured, methods=_methods(spec),
        decisions=decided, agreement=tuple(agreement_rows(spec, speed, expected, decided)), expected=expected,
        quality=rows,
        exact=tuple(row for part in found for row in part.exact), speed=speed, curves=curves, flips=flips,
        operators=tuple(operators), roofs=tuple(roofs), capacity=capacity, histograms=tensor.histograms,
        tensor_errors=tensor.errors, channels=tensor.channels, salient=tensor.salient, kinds=seen.kinds,
        verdicts=seen.verdicts, profiles=tuple(given), accumulators=sums,
        claims=tuple(trust.claim_rows(rows)), trust=(*checked.groups, *trust.kernel_rows(spec, speed)),
        trust_points=checked.points, notes=_notes(assumed, found, tensor.notes, measured),
        synthetic_outliers=str(pick(tensor.notes, "synthetic_outliers") or ""),
    )  # fmt: skip


def _plain(env: Environment) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(env)


def _tensors(spec: StudySpec, subject: Any, tensors: Any) -> _TensorPart:
    layer = tensors.outlier_layer(spec, subject)
    histograms, errors = tensors.error_tables(layer)
    channels, notes = tensors.channel_rows(spec, subject, layer)
    return _TensorPart(
        histograms=histograms, errors=errors, channels=channels,
        salient=tuple(tensors.salient_rows(layer, spec.quality.seed)), notes=notes,
    )  # fmt: skip


def _outliers(subject: Any) -> _OutlierPart:
    from .outliers import outlier_tables

    kinds, verdicts = outlier_tables(subject)
    return _OutlierPart(kinds=kinds, verdicts=verdicts)


def _trust(layers: bool) -> _TrustPart:
    groups, points = trust.trust_tables(layers)
    return _TrustPart(groups=groups, points=points)


def _methods(spec: StudySpec) -> tuple[MethodRow, ...]:
    arch = hwmodels.get_architecture(spec.speed.models[0])
    return tuple(
        MethodRow(method=m.name, title=m.title, algorithm=m.algorithm, scheme=m.scheme,
                  weight_bits=hardware.weight_bits(arch, m.scheme))
        for m in spec.methods
    )  # fmt: skip


def _notes(
    assumed: Sequence[str], methods: Sequence[_MethodPart], tensors: Sequence[str], measured: Measured
) -> tuple[str, ...]:
    """Everything that was assumed or fell back, each once."""
    said = [f"{part.quality[0].method}: {note}" for part in methods for note in part.notes]
    return (*dict.fromkeys([*assumed, *said]), *tensors, *measured.notes)
