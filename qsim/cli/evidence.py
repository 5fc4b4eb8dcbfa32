"""`qsim evidence`: what was published on the quality of quantised models, each row with its source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .table import Column, Form, deliver, print_table, table_options
from .verbs import verb


@verb("evidence")
@click.argument("model", required=False, metavar="[MODEL]")
@click.option("--method", metavar="NAME", help="Rows of this method, as awq.")
@click.option("--bits", type=click.FloatRange(1, 16), metavar="B", help="Rows whose weights have so many bits.")
@click.option("--scheme", metavar="NAME", help="Rows in the numbers of this scheme; see qsim schemes.")
@click.option("--kv", metavar="NUMBERS", help="Rows whose KV cache is none (16 bit), fp8, int8 or int4.")
@click.option("--metric", metavar="NAME", help="Rows of this metric, as wikitext2_ppl.")
@click.option("--only", is_flag=True, help="This model only, not those of the same generation and size.")
@click.option("--rows", "files", type=click.Path(path_type=Path), multiple=True, metavar="CSV|STUDY",
              help="Rows of your own that join the shipped ones: a CSV file, or the folder of a study of a checkpoint. "
              "Repeatable.")  # fmt: skip
@click.option("--expect", is_flag=True, help="The loss to expect of --method and --scheme; without them, of what "
              "engines serve.")  # fmt: skip
@table_options
def evidence(model: str | None, only: bool, files: tuple[Path, ...], expect: bool, form: Form, **asked: Any) -> None:
    """Without MODEL: how many rows each model has. With one: the rows that the options ask for, first its own, then
    those of models of the same generation and size. `loss` is ln(perplexity / perplexity in 16 bit), or the percent of
    the 16-bit score that is lost; both are against the same source's own 16-bit value.

    \b
    Examples:
      qsim evidence
      qsim evidence llama-3-8b --method awq --bits 4
      qsim evidence llama-3.1-8b-instruct --scheme fp8-rowwise --csv
      qsim evidence llama-3-8b --expect
      qsim evidence qwen3-8b --expect --method awq --scheme w4a16-g128
      qsim evidence opt-13b --method rtn --bits 8 --rows mine.csv
      qsim evidence my-model --expect --rows study
    """
    from qsim.evidence import find, read_rows, shipped

    rows = shipped()
    for file in files:
        rows += read_rows(file)
    if expect:
        expected = _expected(model, asked, rows)
        deliver(form, expected, lambda: print_table(_EXPECTED, expected))
        return
    if model is None and not any(v is not None for v in asked.values()):
        counts = _counts(rows)
        deliver(form, counts, lambda: print_table(_COUNTED, counts))
        return
    found = find(model, **asked, near=not only, rows=rows)
    flat = [_flat(row) for row in found]
    deliver(form, flat, lambda: print_table(_COLUMNS, flat) if flat else click.echo(_nothing(model)))


def _nothing(model: str | None) -> str:
    about = "these questions" if model is None else model
    return f"no row answers this for {about}; what it loses is unknown: measure it with qsim study --model FOLDER"


def _expected(model: str | None, asked: dict[str, Any], rows: Any) -> list[dict[str, Any]]:
    from qsim.errors import QsimError
    from qsim.evidence import expected_loss
    from qsim.evidence.served import SERVED, served_title

    method, scheme, kv = asked["method"], asked["scheme"], asked["kv"]
    if model is None or (method is None) != (scheme is None):
        raise QsimError("--expect must have a MODEL, and both --method and --scheme or neither of them")
    pairs = [(s.method, s.scheme) for s in SERVED] if method is None else [(method, scheme)]
    out = []
    for one, numbers in pairs:
        found = expected_loss(model, one, numbers, kv=kv, rows=rows)
        fields = {name: getattr(found, name) for name in (
            "model", "method", "scheme", "value", "low", "high", "standard_error", "metric", "points", "points_low",
            "points_high", "lost", "lost_low", "lost_high", "basis", "collapse", "fragile", "note")}  # fmt: skip
        titled = served_title(one, numbers) or f"{one}:{numbers}"
        out.append({"title": titled} | fields | {"sources": list(dict.fromkeys(r.reference for r in found.rows))})
    return out


def _band(value: float | None, low: float | None, high: float | None) -> str:
    return "unknown" if value is None else f"{value:+.3f} ({low:+.3f} to {high:+.3f})"


def _percent(value: float | None, low: float | None, high: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f} ({low:.1f} to {high:.1f})"


def _counts(rows: Any) -> list[dict[str, Any]]:
    from qsim.evidence.find import identity

    out = []
    for name in sorted({r.model for r in rows}):
        mine = [r for r in rows if r.model == name]
        known = identity(name, rows)
        out.append({
            "model": name, "parameters_b": known.parameters_b if known else None,
            "training_tokens_t": known.training_tokens_t if known else None, "rows": len(mine),
            "methods": len({r.method for r in mine}), "sources": len({r.source for r in mine}),
        })  # fmt: skip
    return out


def _flat(row: Any) -> dict[str, Any]:
    return {
        "model": row.model, "method": row.method, "label": row.label, "numbers": str(row.precision),
        "metric": row.metric.name, "kind": row.metric.kind, "context": row.context, "baseline": row.baseline,
        "value": row.value, "ln_ratio": row.ln_ratio, "percent_lost": row.percent_lost, "collapsed": row.collapsed,
        "grade": row.grade, "calibration": row.calibration, "title": row.title, "place": row.place,
        "reference": row.reference, "note": row.note,
    }  # fmt: skip


def _loss(ln_ratio: float | None, percent: float | None, collapsed: bool | None) -> str:
    if ln_ratio is None and percent is None:
        return ""
    text = f"{ln_ratio:+.3f}" if ln_ratio is not None else f"{percent:+.1f} %"
    return text + (" destroyed" if collapsed else "")


_COUNTED = (
    Column("model", "model", left=True), Column("parameters, billions", "parameters_b"),
    Column("training tokens, trillions", "training_tokens_t"), Column("rows", "rows"), Column("methods", "methods"),
    Column("sources", "sources"),
)  # fmt: skip
_EXPECTED = (
    Column("checkpoint", "title", left=True), Column("ln perplexity", ("value", "low", "high"), _band),
    Column("% of a score", ("lost", "lost_low", "lost_high"), _percent),
    Column("collapse", ("collapse", "fragile"),
           lambda p, f: "" if p is None else f"{100 * p:.0f} %" + (" fragile" if f else "")),
    Column("stands on", "basis", left=True), Column("note", "note", left=True, fold=True),
)  # fmt: skip
_COLUMNS = (
    Column("model", "model", left=True), Column("method", "label", left=True, fold=True),
    Column("numbers", "numbers", left=True, fold=True), Column("metric", "metric", left=True),
    Column("16 bit", "baseline"), Column("value", "value"),
    Column("loss", ("ln_ratio", "percent_lost", "collapsed"), _loss), Column("grade", "grade", left=True),
    Column("source", ("title", "place", "reference"), lambda t, p, r: f"{t}, {p} ({r})" if p else f"{t} ({r})",
           left=True, fold=True),
)  # fmt: skip
