"""The report: a study's tables and figures as one self-contained HTML page, and the files beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from qsim.errors import QsimError, nearest
from qsim.evidence import rows_text
from qsim.evidence.table import IN_STUDY
from qsim.files import make_folder, write_text
from qsim.plots.style import rendered, save

from . import texts
from .folder import RESULT, whole_study
from .looks import case_rows, decided, titles
from .own import measured_rows
from .registry import REPORT, drawings
from .result import TABLES, StudyResult, to_json
from .rows import DecisionRow, SpeedRow
from .study_file import to_toml

_COLORS = {"#ffffff": "var(--paper)", "#000000": "var(--plot)", "#e3e3e3": "var(--grid)", "#f3f3f3": "var(--shade)",
           "#222222": "var(--plot2)", "#333333": "var(--plot2)", "#444444": "var(--plot2)", "#555555": "var(--plot2)",
           "#d9d9d9": "var(--line)", "#777777": "var(--plot2)", "#6b6b6b": "var(--plot2)",
           "#8a8a8a": "var(--plot2)", "#b5b5b5": "var(--line)"}  # fmt: skip


def write_study(result: StudyResult, out: Path, progress: Callable[[str], None] = lambda _: None) -> None:
    """Write `index.html`, `study.json`, `study.toml` and `data/*.csv` into a folder; `data/evidence.csv` is what was
    measured as rows of evidence, which `qsim.evidence.read_rows` finds in the folder.

    They take their places together; `study.json` comes last, so its presence means that the rest is there. Tables of an
    earlier study that this one does not have are removed, and figures of it in `figures`; nothing else is. Figures are
    in the page, and `write_figures` writes them as files.

    Raises:
        OSError: a file cannot be written; the study before is as it was.
    """
    ours = [IN_STUDY.as_posix(), *(f"data/{name}.csv" for name in TABLES)]
    ours += [f"figures/{figure.name}.{kind}" for figure in REPORT.figures for kind in ("svg", "png", "pdf")]
    with whole_study(out, ours) as folder:
        _write_files(result, folder, progress)


def _write_files(result: StudyResult, out: Path, progress: Callable[[str], None]) -> None:
    make_folder(out / "data")
    for name, _ in result.tables():
        write_text(out / "data" / f"{name}.csv", result.frame(name).to_csv(index=False, lineterminator="\n"))
    write_text(out / IN_STUDY, rows_text(measured_rows(result)))
    inlined = []
    for figure, d in drawings(result):
        progress(f"figure: {d.title}")
        inlined.append({"name": figure.name, "section": figure.section, "title": d.title, "says": d.says,
                        "svg": _inline(d.draw(), figure.name, d.title)})  # fmt: skip
    progress("page")
    write_text(out / "index.html", render(result, inlined))
    write_text(out / "study.toml", to_toml(result.spec))
    write_text(out / RESULT, to_json(result))


def write_figures(
    result: StudyResult, out: Path, *, kind: str = "svg", theme: str = "light", only: Sequence[str] = ()
) -> list[Path]:
    """Write the figures of a study as files `NAME.KIND` into a folder, which is made; such files there are replaced.

    Arguments:
        kind: `svg`, `png` or `pdf`. theme: a name of `qsim.plots.theme.THEMES`.
        only: names of the figures to write; all where it is empty.

    Returns:
        What was written.

    Raises:
        QsimError: no such figure, or one that the tables of the study do not allow.
        OSError: a file cannot be written.
    """
    found = {figure.name: d for figure, d in drawings(result)}
    for name in only:
        if name not in found:
            raise QsimError(nearest("figure of this study", name, found))
    make_folder(out)
    return [save(found[name].draw(), out / f"{name}.{kind}", theme=theme) for name in only or found]


def render(result: StudyResult, inlined: list[dict[str, Any]]) -> str:
    """The page; `inlined` are the figures with their SVG."""
    folder = resources.files(__package__) / "templates"
    env = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
                      loader=FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")))  # fmt: skip
    models = list(dict.fromkeys(r.model for r in result.speed))
    sections = [
        {"name": s.name, "title": s.title, "short": s.short, "numbered": s.numbered, "template": s.template,
         "text": s.text(result) if s.text else "", "drawings": [d for d in inlined if d["section"] == s.name]}
        for s in REPORT.sections
    ]  # fmt: skip
    page: str = env.get_template("report.html").render(
        r=result, css=Markup((folder / "report.css").read_text(encoding="utf-8")), sections=sections,
        titles=titles(result), devices=[d.title for d in result.spec.speed.devices],
        when={m: _when(result, m) for m in models}, models=models, fits=_fits(result),
        speeds={m: _speeds(result, m) for m in models}, trust=_by_section(result),
        **texts.all_texts(result),
    )  # fmt: skip
    return "\n".join(line.rstrip() for line in page.splitlines() if line.strip()) + "\n"


# --- figures ---------------------------------------------------------------------------------------------------


def _inline(figure: Figure, name: str, title: str) -> Markup:
    """The SVG as an element of the page: identifiers of its own, colours of the page, a name for screen readers."""
    svg = rendered(figure, "svg").decode()
    body = re.sub(r' d="[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), svg[svg.index("<svg") :])
    prefix = f"{name}-"
    body = re.sub(r'\bid="', f'id="{prefix}', body)
    body = re.sub(r'(xlink:href="|url\()#', rf"\1#{prefix}", body)
    body = body.replace("xlink:href", "href")
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"#[0-9a-f]{6}", lambda m: _COLORS.get(m[0], m[0]), body)
    # matplotlib leaves black unsaid: text and ticks inherit it
    head = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-labelledby="{prefix}t" '
                  rf'style="fill: var(--plot)"><title id="{prefix}t">{Markup.escape(title)}</title>',
                  body, count=1)  # fmt: skip
    return Markup(head)


# --- tables ----------------------------------------------------------------------------------------------------


def amount(value: float, measure: str) -> str:
    """A time or rate with three digits and its unit."""
    if measure == "tokens_per_s":
        return f"{value:,.0f} tokens/s" if value >= 100 else f"{value:.3g} tokens/s"
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def _plain(value: float, measure: str) -> str:
    return amount(value, measure).replace(" tokens/s", "")


def _when(result: StudyResult, model: str) -> list[dict[str, Any]]:
    found = decided(result, model)
    return [
        {"title": case.title or case.name, "what": texts.case_words(case),
         "answers": [_answer(found[case.name][d.title]) for d in result.spec.speed.devices
                     if d.title in found.get(case.name, {})]}
        for case in result.spec.cases
    ]  # fmt: skip


def _answer(d: DecisionRow) -> dict[str, Any]:
    out: dict[str, Any] = {"device": d.device, "method": None, "why": d.why}
    if d.method is None:
        return out
    assert d.value is not None
    assert d.low is not None
    assert d.high is not None
    gain = band = ""
    if d.speedup is not None:
        gain, band = f"{d.speedup:.2f}x", f"{d.speedup_low:.2f} to {d.speedup_high:.2f}x"
    lost = "loses nothing"
    if d.basis != "exact":
        lost = f"loses {d.lost:.1f} % ({d.lost_low:.1f} to {d.lost_high:.1f})"
    return out | {
        "method": d.title, "value": amount(d.value, d.measure), "low": _plain(d.low, d.measure),
        "high": _plain(d.high, d.measure), "count": d.devices, "gain": gain,
        "gain_band": band, "fidelity": d.fidelity, "lost": lost,
        "basis": d.basis,
    }  # fmt: skip


def _fits(result: StudyResult) -> dict[str, list[dict[str, Any]]]:
    out: dict[str, list[dict[str, Any]]] = {}
    for model in dict.fromkeys(c.model for c in result.capacity):
        mine = [c for c in result.capacity if c.model == model]
        out[model] = [
            {"scheme": scheme, "weights": f"{next(c.weights_gbytes for c in mine if c.scheme == scheme):.1f} GB",
             "cells": [
                 str(c.largest_batch) if c.largest_batch else
                 (f"{c.devices_needed} devices" if c.devices_needed else "over 8 devices")
                 for c in mine if c.scheme == scheme
             ]}
            for scheme in dict.fromkeys(c.scheme for c in mine)
        ]  # fmt: skip
    return out


def _speeds(result: StudyResult, model: str) -> dict[str, Any]:
    cases = list(result.spec.cases)
    tables: dict[tuple[str, str], dict[str, SpeedRow]] = {}
    for case in cases:
        for row in case_rows(result, case.name, model):
            tables.setdefault((row.device, row.scheme), {})[case.name] = row
    rows = []
    for (device, scheme), mine in tables.items():
        cells = []
        for case in cases:
            found = mine.get(case.name)
            cells.append("" if found is None else "does not fit" if not found.fits else _cell(found))
        rows.append(
            {"device": device, "scheme": scheme, "cells": cells, "fidelity": next(iter(mine.values())).fidelity}
        )
    return {"cases": [f"{c.title or c.name}" for c in cases], "rows": rows}


def _cell(row: SpeedRow) -> str:
    count = f" on {row.devices}" if row.devices > 1 else ""
    return f"{amount(row.value, row.measure)}{count} ({_plain(row.low, row.measure)}–{_plain(row.high, row.measure)})"


def _by_section(result: StudyResult) -> dict[str, list[Any]]:
    out: dict[str, list[Any]] = {}
    for t in result.trust:
        out.setdefault(t.section, []).append(t)
    return out
