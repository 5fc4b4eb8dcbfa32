"""The table of evidence: what somebody measured on a quantised model, each row with where it is from.

The published rows are facts quoted from papers, model cards and documentation, of two grades: A is the publisher's own
text, B a copy of a paper's text or table. Rows of grade M were measured with this project on the checkpoint that they
name: a few are shipped, a study of a checkpoint writes its own. Rows of a user join them from a CSV file with the same
columns, or from the folder of such a study.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from qsim.errors import QsimError
from qsim.files import numbered_csv, read_csv

from .identity import canonical, find_model
from .metrics import Metric, get_metric, ln_ratio, percent_lost
from .precision import Precision, of_scheme, of_words

HERE = Path(__file__).parent
IN_STUDY = Path("data") / "evidence.csv"
"""Where the folder of a study has what it measured, as rows of evidence."""
TRAINED = ("efficientqat", "qlora", "llm-qat")
"""Methods that train the weights: their rows are shown, and no post-training loss is estimated from them."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One published or own measurement.

    Attributes:
        model: canonical name of the model.
        method: canonical name of the method (`rtn`, `gptq`, `awq`, `smoothquant`, `fp8`, `kivi`, ...).
        label: what the source calls it.
        precision: the numbers that it runs in.
        metric, context, value, baseline: what was measured, and the same source's value in 16 bit.
        calibration: text that the method was shown; empty for none.
        source: key of the source; `title` and `reference` cite it, `place` is the table or section.
        grade: `A` or `B` (see the module), `M` measured with this project, `own` a user's row without a grade.
        standard_error: of the loss (of `ln_ratio`, or of `percent_lost`); None where nobody said.
        parameters_b: of a model that the shipped table does not know.
        line: of the file that it was read from.
        note: what the source or the transcriber adds.
    """

    model: str
    method: str
    label: str
    precision: Precision
    metric: Metric
    context: str
    value: float
    baseline: float
    calibration: str
    source: str
    title: str
    reference: str
    place: str
    grade: str
    standard_error: float | None = None
    parameters_b: float | None = None
    note: str = field(repr=False, default="")
    line: int = 0

    @property
    def ln_ratio(self) -> float | None:
        """ln(perplexity / perplexity in 16 bit), for a perplexity."""
        return ln_ratio(self.metric, self.value, self.baseline)

    @property
    def percent_lost(self) -> float | None:
        """Percent of the 16-bit score that is lost, for a score."""
        return percent_lost(self.metric, self.value, self.baseline)

    @property
    def measured_here(self) -> bool:
        """Whether it was measured with this project on the checkpoint that it names."""
        return self.grade == "M"

    @property
    def trained(self) -> bool:
        """Whether the method trains the weights."""
        return self.method in TRAINED

    @property
    def collapsed(self) -> bool:
        """Whether the model is destroyed: perplexity more than 2.7 times, or a quarter of an average score lost."""
        if self.ln_ratio is not None:
            return self.ln_ratio > 1
        return self.metric.kind == "accuracy" and (self.percent_lost or 0) > 25

    @property
    def citation(self) -> str:
        """Title, place and address on one line."""
        return ", ".join(part for part in (self.title, self.place) if part) + f" ({self.reference})"


_RULES = (
    (r"efficientqat", "efficientqat"), (r"qlora", "qlora"), (r"llm-qat", "llm-qat"), (r"^rtn embedding", "embedding"),
    (r"hadamard|quarot", "quarot"), (r"spinquant", "spinquant"), (r"flatquant", "flatquant"),
    (r"affinequant", "affinequant"), (r"omniquant", "omniquant"), (r"atom", "atom"), (r"quik", "quik"),
    (r"autoround optimised rtn|iters=0", "rtn-optimised"), (r"autoround|fp8 block \(tuning\)", "autoround"),
    (r"autoscheme", "autoscheme"), (r"imatrix", "imatrix"), (r"awq \+ hqq", "awq-hqq"), (r"hqq", "hqq"),
    (r"^kivi", "kivi"), (r"^kvquant", "kvquant"), (r"^turboquant", "turboquant"), (r"attention fp8", "kv-attention"),
    (r"^kv cache", "kv"), (r"llm\.int8", "llm.int8"), (r"^outlier suppression", "outlier-suppression"),
    (r"^zeroquant", "zeroquant"), (r"smoothquant", "smoothquant"), (r"awq", "awq"), (r"gptq", "gptq"),
    (r"^gguf", "gguf"), (r"(?<!mx)fp8", "fp8"), (r"rtn", "rtn"),
)  # fmt: skip


def method_of(label: str) -> str:
    """The canonical name of what a source calls its method; a name that no rule knows is itself, in lower case."""
    word = label.strip().lower()
    return next((name for pattern, name in _RULES if re.search(pattern, word)), word)


@lru_cache(maxsize=1)
def published() -> tuple[Row, ...]:
    """The published rows, in the order of the table."""
    return _read(HERE / "published.csv", _sources())


@lru_cache(maxsize=1)
def measured() -> tuple[Row, ...]:
    """The shipped rows that were measured with this project, all of grade M; `python reports/real_model.py --write`
    writes them, and reports/real_model.md says how they were measured."""
    return _read(HERE / "measured.csv", {})


def shipped() -> tuple[Row, ...]:
    """All shipped rows: what was published, and what was measured with this project."""
    return published() + measured()


@lru_cache(maxsize=1)
def _sources() -> dict[str, dict[str, str]]:
    header, rows = read_csv(HERE / "sources.csv")
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def read_rows(path: str | Path) -> tuple[Row, ...]:
    """Rows from a user's CSV file, or from the folder of a study of a checkpoint: what it measured.

    Columns: `model`, `method`, `metric`, `value`, `baseline_value`, and the numbers either as `scheme` (a name of
    `qsim schemes`) or as `weight_format`, `weight_granularity`, `activation_format`, `activation_granularity`,
    `kv_format` in the words of the shipped table. Optional: `parameters_b` (of a model that the table does not know),
    `standard_error` (of ln(value / baseline_value), or of the percent of a score that is lost), `context`,
    `calibration`, `source` (`source_title`, `source_id`), `table_or_figure`, `note`. A note that begins with `[M]` says
    that the row was measured with this project on that checkpoint; it decides there, and says nothing of other models.

    Raises:
        QsimError: a column is missing, or a row without model, method, value or baseline, with a metric or scheme that
            is not known, or with a number that cannot be one; the message names file and line. A folder that holds no
            study, or one whose version wrote no evidence.
        OSError: the file cannot be read.
    """
    given = Path(path)
    if not given.is_dir():
        return _read(given, {})
    if not (given / IN_STUDY).is_file():
        raise QsimError(f"{given} has no {IN_STUDY.as_posix()}: name a CSV file, or the folder of a finished study "
                        "(one of an older version gets it with qsim study render)")  # fmt: skip
    return _read(given / IN_STUDY, {})


_WRITTEN = ("model", "parameters_b", "method", "weight_format", "weight_granularity", "activation_format",
            "activation_granularity", "kv_format", "calibration", "metric", "context", "value", "baseline_value",
            "standard_error", "source_title", "source_id", "table_or_figure", "note")  # fmt: skip


def rows_text(rows: Iterable[Row]) -> str:
    """Rows as the text of a CSV file that `read_rows` reads as the same rows, but for the lines that they stand on."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_WRITTEN)
    for r in rows:
        p, note = r.precision, r.note if r.grade == "own" else f"[{r.grade}] {r.note}"
        writer.writerow((
            r.model, "" if r.parameters_b is None else f"{r.parameters_b:.6g}", r.label, p.weight, p.region,
            p.activation, p.scaling, p.kv, r.calibration, r.metric.name, r.context, f"{r.value:.10g}",
            f"{r.baseline:.10g}", "" if r.standard_error is None else f"{r.standard_error:.4g}", r.title, r.reference,
            r.place, note,
        ))  # fmt: skip
    return text.getvalue()


def _read(path: Path, sources: dict[str, dict[str, str]]) -> tuple[Row, ...]:
    header, lines = numbered_csv(path)
    header = ["baseline_value" if name == "baseline" else name for name in header]
    for name in ("model", "method", "metric", "value", "baseline_value"):
        if name not in header:
            raise QsimError(f"{path} has no column {name!r}: evidence must have model, method, metric, value and "
                            "baseline_value")  # fmt: skip
    if "scheme" not in header and "weight_format" not in header:
        raise QsimError(f"{path} has neither a column 'scheme' nor 'weight_format': a row must say its numbers")
    rows = []
    for line, cells in lines:
        fields = dict(zip(header, cells, strict=True))
        try:
            rows.append(_row(fields, line, path, sources))
        except QsimError as error:
            raise QsimError(f"{path}: line {line}: {error}") from None
    return tuple(rows)


def _row(f: dict[str, str], line: int, path: Path, sources: dict[str, dict[str, str]]) -> Row:
    for name in ("model", "method"):
        if not f[name]:
            raise QsimError(f"{name} must not be empty")
    if not f["baseline_value"]:
        raise QsimError("a row must have a baseline_value: the same source's value in 16 bit, which its loss is "
                        "measured against")  # fmt: skip
    metric = get_metric(f["metric"])
    value, baseline = (_number(f, key) for key in ("value", "baseline_value"))
    if metric.is_perplexity and not (value > 0 and baseline > 0):
        raise QsimError(f"a perplexity must be positive: got {value:g} and {baseline:g}")
    if metric.kind in ("accuracy", "one task", "long context") and not metric.relative and not baseline > 0:
        raise QsimError(f"baseline_value of a score must be positive: got {baseline:g}")
    size, error = (_number(f, name) if f.get(name) else None for name in ("parameters_b", "standard_error"))
    if error is not None and not error >= 0:
        raise QsimError(f"standard_error must not be negative: got {error:g}")
    model = canonical(f["model"])
    if size is not None and not size > 0:
        raise QsimError(f"parameters_b must be positive: got {size:g}")
    if find_model(model) is not None:
        size = None
    key, note = f.get("source", ""), f.get("note", "")
    cited = sources.get(key)
    title = cited["title"] if cited else f.get("source_title", "") or key or path.name
    grade = re.match(r"\[([A-Z])\] ?", note)
    given = f.get("scheme", "")
    words = [f.get(c, "") for c in ("weight_format", "weight_granularity", "activation_format",
                                    "activation_granularity", "kv_format")]  # fmt: skip
    return Row(
        model=model, method=method_of(f["method"]), label=f["method"],
        precision=of_scheme(given) if given else of_words(*words), metric=metric, context=f.get("context", ""),
        value=value, baseline=baseline, calibration=f.get("calibration", ""), source=key or title, title=title,
        reference=cited["reference"] if cited else f.get("source_id", "") or f"{path.name}, line {line}",
        place=f.get("table_or_figure", ""), grade=grade[1] if grade else "own", standard_error=error, parameters_b=size,
        note=note[grade.end() :] if grade else note, line=line,
    )  # fmt: skip


def _number(f: dict[str, str], key: str) -> float:
    try:
        found = float(f[key])
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise QsimError(f"{key} must be a finite number: got {f[key]!r}")
    return found


def independent(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows without those that repeat another source: equal in everything down to the printed digits, or of a table
    that says it quotes another one that has the same model, method, numbers and metric here."""
    kept: dict[tuple[object, ...], Row] = {}
    sources = _sources()
    have = {(r.source, *_what(r)) for r in rows}
    for row in rows:
        quoted = sources.get(row.source, {}).get("quotes", "")
        if quoted and (quoted, *_what(row)) in have:
            continue
        kept.setdefault((*_what(row), row.label if row.method in ("smoothquant", "gptq") else "", row.value,
                         row.baseline), row)  # fmt: skip
    return tuple(kept.values())


def _what(row: Row) -> tuple[object, ...]:
    return (row.model, row.method, row.precision, row.metric.name, row.context)
