"""`qsim study`: quality against speed, in one folder; and two studies side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .hardware_options import complete, device_names, price_option, scheme_names
from .options import THEMES, wrote
from .table import Column, Form, deliver, print_table, records, table_options
from .verbs import verb, verbose_option

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)


@verb("study", click.group, invoke_without_command=True)
@click.option("--out", type=_FOLDER, default=Path("study"), show_default=True, metavar="DIR", help="Folder to write.")
@click.option("--force", is_flag=True, help="Replace a study that is there.")
@click.option("--quick", is_flag=True, help="Less text and wider intervals; about a minute once kernels are compiled.")
@click.option("--file", "file", type=_FILE, metavar="TOML", help="A study file; options here win over it.")
@click.option("--model", multiple=True, metavar="MODEL", help="Target: a name, a config.json, or a checkpoint: "
              "a folder or a GGUF file, which is then also measured. Repeatable.")  # fmt: skip
@click.option("--text", type=_FILE, metavar="FILE", help="Text that quality is measured on.")
@click.option("--max-bytes", type=click.IntRange(min=1), metavar="N", help="Score only the first N bytes of the "
              "text: 131072 without it, less of a checkpoint of more than 50 M parameters.")  # fmt: skip
@click.option("--calibration", type=_FILE, metavar="FILE", help="Text that methods are calibrated on.")
@click.option("--device", multiple=True, metavar="NAME", shell_complete=complete(device_names),
              help="Device, or its TOML; see qsim devices. Repeatable.")  # fmt: skip
@click.option("--set", "overrides", multiple=True, metavar="[DEVICE:]KEY=VALUE",
              help="Change a field of the devices named with --device. Repeatable.")  # fmt: skip
@click.option("--scheme", multiple=True, metavar="NAME", shell_complete=complete(scheme_names),
              help="Study this scheme with every compatible method. Repeatable.")  # fmt: skip
@click.option("--method", multiple=True, metavar="METHOD:SCHEME", help="As gptq:w4a16-g64. Repeatable.")
@click.option("--case", "workload", multiple=True, metavar="KIND:N:PROMPT[:NEW]", help="A case, "
              "as serve:32:2000:300 for 32 in flight; decode, prefill, request. Repeatable.")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), metavar="B", help="Batch size of a custom case.")
@click.option("--context", type=click.IntRange(min=1), metavar="L", help="Context length of a custom case, in tokens.")
@click.option("--max-loss", type=float, metavar="PERCENT", help="Largest loss of an answer, in percent of a "
              "score; 3 without it.")  # fmt: skip
@click.option("--rows", type=click.Path(path_type=Path), metavar="CSV|STUDY", help="Losses of your own that join the "
              "published ones: a CSV file, or the folder of a study of a checkpoint; see qsim evidence.")  # fmt: skip
@click.option("--profile", metavar="NAME", help="How the stack runs, as in qsim predict.")
@price_option
@table_options
@click.pass_context
def study(ctx: click.Context, form: Form, **given: Any) -> None:
    """Without options: 16 methods on Llama-3-8B and 70B on eight devices, into the folder study;
    open study/index.html. An interrupted study goes on where it stopped.

    \b
    Examples:
      qsim study
      qsim study --model ~/models/Qwen2.5-0.5B --text wiki.txt --device l40s --scheme w4a16-g128 --scheme fp8-rowwise
      qsim study --model config.json --device h100-sxm --batch 16 --context 8192
      qsim study --device h200 --case serve:64:2000:300 --case prefill:1:8192
      qsim study --device asic --set memory.bandwidth_gbytes_per_s=8000 --quick --out asic-8
      qsim study --file mine.toml --out mine
      qsim study diff study asic-8
    """
    if ctx.invoked_subcommand is not None:
        return
    from .progress import says_what_is_kept, steps
    from .study_options import spec_from

    spec = spec_from(given)
    from qsim.study import run_study

    with says_what_is_kept(lambda: _kept(given["out"])), steps() as progress:
        run = run_study(spec, given["out"], quick=given["quick"], force=given["force"], progress=progress,
                        announce=_announce)  # fmt: skip
    for note in run.notes:
        click.echo(f"note: {note}", err=True)
    table = run.result.frame("decisions")
    rows = records(table.astype(object).where(table.notna(), None))
    deliver(form, rows, lambda: _print_decisions(run, given["out"]))


def _announce(cost: Any) -> None:
    from qsim.study.cost import free_bytes

    free = free_bytes()
    short = "" if free is None or free >= cost.memory_bytes else f", more than the {free / 1e9:.1f} GB that are free"
    click.echo(
        f"measuring {cost.model} ({cost.parameters / 1e6:.0f} M parameters): {cost.tokens} tokens through "
        f"{cost.variants} variants, about {max(cost.time_s / 60, 1):.0f} minutes and {cost.memory_bytes / 1e9:.1f} GB "
        f"of memory{short}", err=True,
    )  # fmt: skip


def _kept(out: Path) -> str:
    from qsim.pieces import count
    from qsim.study.folder import PARTS

    done = count(out / PARTS, "")
    if not done:
        return "no part of the study is finished; the same command starts again"
    return f"{done} parts of the study are finished in {out / PARTS}; the same command goes on from there"


def _print_decisions(run: Any, out: Path) -> None:
    result = run.result
    devices = [d.title for d in result.spec.speed.devices]
    for model in dict.fromkeys(d.model for d in result.decisions):
        rows = [
            {"case": case.title or case.name, **{d.device: d.title or d.why.partition(":")[0]
             for d in result.decisions if (d.model, d.case) == (model, case.name)}}
            for case in result.spec.cases
        ]  # fmt: skip
        print_table([Column(n, n, left=True, fold=True) for n in ("case", *devices)], rows, title=model)
        click.echo()
    seconds = sum(run.seconds.values())
    resumed = f", {len(run.resumed)} parts from an earlier run" if run.resumed else ""
    click.echo(f"{seconds:.0f} s{resumed}; the report is {out / 'index.html'}")


@study.command(short_help="Show what differs between two studies.")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@table_options
@click.pass_context
def diff(ctx: click.Context, a: Path, b: Path, form: Form) -> None:
    """What differs between two studies: question, environment, answers, losses and times.

    A and B are folders or study.json files. Exit code 0 when they agree, 1 when they differ. `sure` marks differences
    larger than the errors of both.

    \b
    Example:
      qsim study diff study asic-8
    """
    from dataclasses import asdict

    from qsim.study import diff_studies, read_result

    changes = diff_studies(read_result(a), read_result(b))
    rows = [asdict(c) for c in changes]
    deliver(form, rows, lambda: _print_changes(changes) if rows else click.echo("no difference"))
    ctx.exit(1 if rows else 0)


def _sure(sure: bool | None) -> str:
    return "" if sure is None else "yes" if sure else "within errors"


_CHANGES = (
    Column("what", "what", left=True, fold=True), Column("A", "before", left=True, fold=True),
    Column("B", "after", left=True, fold=True),
    Column("change", "relative", lambda v: "" if v is None else f"{v:+.1%}"), Column("sure", "sure", _sure, left=True),
)  # fmt: skip


def _print_changes(changes: Any, at_most: int = 20) -> None:
    from dataclasses import asdict

    for part in dict.fromkeys(c.part for c in changes):
        mine = [c for c in changes if c.part == part]
        mine.sort(key=lambda c: -abs(c.relative or 0.0))
        print_table(_CHANGES, [asdict(c) for c in mine[:at_most]], title=part)
        if len(mine) > at_most:
            click.echo(f"... {len(mine) - at_most} more; --csv prints all")
        click.echo()


@study.command(short_help="Draw the report of a study again.")
@click.argument("source", metavar="STUDY", type=click.Path(path_type=Path))
@click.option("--out", type=_FOLDER, required=True, metavar="DIR", help="Folder to write.")
@click.option("--force", is_flag=True, help="Replace a study that is there.")
def render(source: Path, out: Path, force: bool) -> None:
    """Draw the report of a study again, from its study.json alone.

    \b
    Example:
      qsim study render study.json --out again
    """
    from qsim.study.folder import Parts, prepare
    from qsim.study.report import write_study
    from qsim.study.result import read_result, to_json

    from .progress import reporter

    result = read_result(source)
    prepare(out, {"drawn again": to_json(result)}, force=force)
    with reporter("drawing") as say:
        write_study(result, out, say)
    Parts(out).done()
    click.echo(f"wrote {out / 'index.html'}")


@study.command(short_help="Write the figures of a study as files.")
@click.argument("source", metavar="STUDY", type=click.Path(path_type=Path))
@click.option("--out", type=_FOLDER, required=True, metavar="DIR", help="Folder to write; made when it is not there.")
@click.option(
    "--kind", type=click.Choice(["svg", "png", "pdf"]), default="svg", show_default=True, help="Kind of file."
)
@click.option("--theme", type=click.Choice(THEMES), default="light", show_default=True, help="Colours of the figures.")
@click.option("--only", multiple=True, metavar="NAME", help="Only this figure, as quality_speed. Repeatable.")
def figures(source: Path, out: Path, kind: str, theme: str, only: tuple[str, ...]) -> None:
    """Write the figures of a study, for slides and papers, from its study.json alone.

    \b
    Example:
      qsim study figures study --out slides --kind png --theme dark
    """
    from qsim.study import read_result, write_figures

    for path in write_figures(read_result(source), out, kind=kind, theme=theme, only=only):
        wrote(path)


for _one in (diff, render, figures):
    _one.params.append(verbose_option())
