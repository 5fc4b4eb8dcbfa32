"""The result of a study: its question, its tables, and what they were made with; `study.json` and back."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from qsim.errors import QsimError
from qsim.files import read_text

from . import rows
from .spec import StudySpec

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 2
"""Raised when a table changes its meaning; another version's file is refused, not guessed at."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What the numbers depend on besides the question. Nothing here changes from one run to the next."""

    qsim: str
    python: str
    packages: dict[str, str]
    processor: str
    cores: int
    threads: int
    kernel_path: str


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The model and texts of the quality half, with hashes that tell whether two studies measured the same."""

    model: str
    parameters: int
    linear_parameters: int
    model_sha256: str
    text: str
    text_sha256: str
    calibration: str
    calibration_sha256: str
    base_bits_per_byte: float
    base_bits_per_byte_se: float
    base_perplexity: float
    widest_k: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """Everything that a report is drawn from. Every table is a tuple of one row type of `qsim.study.rows`."""

    __pydantic_config__ = ConfigDict(ser_json_inf_nan="constants")  # null would not be read back as a number

    schema_version: int = SCHEMA
    spec: StudySpec
    quick: bool
    environment: Environment
    measured: Measured
    methods: tuple[rows.MethodRow, ...] = ()
    decisions: tuple[rows.DecisionRow, ...] = ()
    agreement: tuple[rows.AgreementRow, ...] = ()
    expected: tuple[rows.ExpectedRow, ...] = ()
    quality: tuple[rows.QualityRow, ...] = ()
    exact: tuple[rows.ExactRow, ...] = ()
    speed: tuple[rows.SpeedRow, ...] = ()
    curves: tuple[rows.CurveRow, ...] = ()
    flips: tuple[rows.FlipRow, ...] = ()
    operators: tuple[rows.OperatorRow, ...] = ()
    roofs: tuple[rows.RoofRow, ...] = ()
    histograms: tuple[rows.HistogramRow, ...] = ()
    tensor_errors: tuple[rows.TensorErrorRow, ...] = ()
    channels: tuple[rows.ChannelRow, ...] = ()
    salient: tuple[rows.SalientRow, ...] = ()
    kinds: tuple[rows.KindRow, ...] = ()
    verdicts: tuple[rows.VerdictRow, ...] = ()
    profiles: tuple[rows.ProfileRow, ...] = ()
    accumulators: tuple[rows.AccumulatorRow, ...] = ()
    capacity: tuple[rows.CapacityRow, ...] = ()
    claims: tuple[rows.ClaimRow, ...] = ()
    trust: tuple[rows.TrustRow, ...] = ()
    trust_points: tuple[rows.TrustPoint, ...] = ()
    notes: tuple[str, ...] = field(default=())
    synthetic_outliers: str = ""
    """What the study says where it had to give its model outlier channels; empty where it has some of its own."""

    def tables(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Name and rows of every table that has any, in the order of the report."""
        for name in TABLES:
            found = getattr(self, name)
            if found:
                yield name, found

    def frame(self, name: str) -> pd.DataFrame:
        """A table as a tidy DataFrame: one row per observation, lists joined by `; `."""
        import pandas as pd

        found = getattr(self, name)
        columns = [f.name for f in fields(found[0])] if found else []
        return pd.DataFrame([{c: _flat(getattr(row, c)) for c in columns} for row in found], columns=columns)


TABLES = tuple(f.name for f in fields(StudyResult) if str(f.type).startswith("tuple[rows."))
"""The tables of a study: the fields of `StudyResult` that hold rows, in their order."""


def _flat(value: Any) -> Any:
    return "; ".join(map(str, value)) if isinstance(value, tuple) else value


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[StudyResult]:
    return TypeAdapter(StudyResult)


def to_json(result: StudyResult) -> str:
    """The whole result; equal results give equal text. Floats keep all their digits, and every row has its line."""
    whole = json.loads(_adapter().dump_json(result))
    parts = []
    for name, value in whole.items():
        rows_of = name in TABLES and value
        text = "[\n" + ",\n".join(f"  {_line(row)}" for row in value) + "\n ]" if rows_of else _line(value)
        parts.append(f' "{name}": {text}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))


def read_result(path: str | Path) -> StudyResult:
    """A result from `study.json`, or from the folder that holds it.

    Raises:
        ValueError: not a study, one of another version, or a damaged one; the message names file and key.
        OSError: it cannot be read.
    """
    from .folder import settle

    path = Path(path)
    file = path / "study.json" if os.path.isdir(path) else path
    if os.path.isdir(path) and not os.path.exists(file):
        settle(path)
    if not os.path.isfile(file):
        raise QsimError(f"{path} holds no study: {file} does not exist")
    text = read_text(file)
    try:
        return _checked(_adapter().validate_json(text), file)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        at = ".".join(str(p) for p in fault["loc"])
        raise QsimError(f"{file} is not a study of this version: {at + ': ' if at else ''}{fault['msg']}") from None


def _checked(result: StudyResult, file: Path) -> StudyResult:
    if result.schema_version != SCHEMA:
        raise QsimError(f"{file} has version {result.schema_version}; this program reads version {SCHEMA}")
    return result


def environment() -> Environment:
    """Versions, processor and kernels of this process."""
    import numba

    import qsim
    from qsim.kernels import available_paths

    found: dict[str, str] = {}
    for package in ("numpy", "numba", "scipy", "pandas", "matplotlib"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a vendored copy has no metadata
            found[package] = "unknown"
    return Environment(
        qsim=qsim.__version__, python=platform.python_version(), packages=found, processor=_processor(),
        cores=os.cpu_count() or 1, threads=numba.get_num_threads(), kernel_path=available_paths()[-1],
    )  # fmt: skip


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
