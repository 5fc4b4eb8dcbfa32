"""The study: quality against speed, for every method on every device, in one folder.

    from qsim.study import StudySpec, run_study
    run = run_study(StudySpec(), "study")           # study/index.html, study.json, data/
    run.result.frame("decisions")                   # when to use what

It joins both wings: what numbers come out is `qsim`'s, how long it takes is `hwmodels`'; no formula lives here. Names
load their part on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsim.lazy import on_first_use

_LAZY = {
    "Accumulator": "spec",
    "Case": "spec",
    "Drawing": "figure",
    "DeviceSpec": "spec",
    "Figure": "figure",
    "Method": "method",
    "Quality": "spec",
    "Run": "run",
    "Section": "figure",
    "Speed": "spec",
    "StudyResult": "result",
    "StudySpec": "spec",
    "diff_studies": "diff",
    "read_result": "result",
    "read_spec": "study_file",
    "register": "registry",
    "run_study": "run",
    "write_figures": "report",
    "write_study": "report",
}

if TYPE_CHECKING:
    from .diff import diff_studies
    from .figure import Drawing, Figure, Section
    from .method import Method
    from .registry import register
    from .report import write_figures, write_study
    from .result import StudyResult, read_result
    from .run import Run, run_study
    from .spec import Accumulator, Case, DeviceSpec, Quality, Speed, StudySpec
    from .study_file import read_spec

__all__ = [
    "Accumulator", "Case", "DeviceSpec", "Drawing", "Figure", "Method", "Quality", "Run", "Section", "Speed",
    "StudyResult", "StudySpec", "diff_studies", "read_result", "read_spec", "register", "run_study", "write_figures",
    "write_study",
]  # fmt: skip


if not TYPE_CHECKING:  # a type checker would take any name for one that exists
    __getattr__, __dir__ = on_first_use(__name__, _LAZY)
