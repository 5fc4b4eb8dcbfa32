"""`qsim study`: quality against speed, in one folder; and two studies side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .hardware_options import complete, device_names, scheme_names
from .options import check_one_output, console, print_csv, print_json, show, table_options

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group(invoke_without_command=True, short_help="Quality against speed, for every method on every device.")
@click.option("--out", type=_FOLDER, default=Path("study"), show_default=True, metavar="DIR", help="Folder to write.")
@click.option("--force", is_flag=True, help="Replace a study that is there.")
@click.option("--quick", is_flag=True, help="Less text and wider intervals; about a minute once kernels are compiled.")
@click.option("--file", "file", type=_FILE, metavar="TOML", help="A study file; options here win over it.")
@click.option("--model", multiple=True, metavar="MODEL", help="Target: a name, a config.json, or a checkpoint folder, "
              "which is then also measured. Repeatable.")  # fmt: skip
@click.option("--text", type=_FILE, metavar="FILE", help="Text that quality is measured on.")
@click.option("--calibration", type=_FILE, metavar="FILE", help="Text that methods are calibrated on.")
@click.option("--device", multiple=True, metavar="NAME", shell_complete=complete(device_names),
              help="Device, or its TOML; see qsim devices. Repeatable.")  # fmt: skip
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
              help="Change a field of the devices named with --device. Repeatable.")  # fmt: skip
@click.option("--scheme", multiple=True, metavar="NAME", shell_complete=complete(scheme_names),
              help="Scheme, by every method that fits it. Repeatable.")  # fmt: skip
@click.option("--method", multiple=True, metavar="METHOD:SCHEME", help="As gptq:w4a16-g64. Repeatable.")
@click.option("--batch", type=click.IntRange(min=1), metavar="B", help="A case of your own: sequences ...")
@click.option("--context", type=click.IntRange(min=1), metavar="L", help="... and tokens of each.")
@click.option("--max-loss", type=float, metavar="BITS", help="Bits a byte that a recommended method may lose.")
@click.option("--profile", metavar="NAME", help="How the stack runs, as in qsim predict.")
@table_options
@click.pass_context
def study(ctx: click.Context, **given: Any) -> None:
    """Quality against speed, for every method on every device.

    Without options: the embedded model through 15 methods, Llama-3-8B and 70B on six devices, into the folder study;
    open study/index.html. An interrupted study goes on where it stopped.

    \b
    Examples:
      qsim study
      qsim study --model ~/models/Qwen2.5-0.5B --text wiki.txt --device l40s --scheme w4a16-g128 --scheme fp8-rowwise
      qsim study --model config.json --device h100-sxm --batch 16 --context 8192
      qsim study --device asic --set memory.bandwidth_gbytes_per_s=8000 --quick --out asic-8
      qsim study --file mine.toml --out mine
      qsim study diff study asic-8
    """
    if ctx.invoked_subcommand is not None:
        return
    as_json, as_csv = given.pop("as_json"), given.pop("as_csv")
    check_one_output(as_json, as_csv)
    from .progress import says_what_is_kept, steps
    from .study_options import spec_from

    spec = spec_from(given)
    from qsim.study import run_study

    with says_what_is_kept(lambda: _kept(given["out"])), steps() as progress:
        run = run_study(
            spec, given["out"], quick=given["quick"], force=given["force"], compile_ahead=True, progress=progress
        )
    for note in run.notes:
        click.echo(f"note: {note}", err=True)
    table = run.result.frame("decisions")
    if as_json:
        print_json(table.astype(object).where(table.notna(), None).to_dict("records"))
    elif as_csv:
        print_csv({str(k): v for k, v in row.items()} for row in table.to_dict("records"))
    else:
        _print_decisions(run, given["out"])


def _kept(out: Path) -> str:
    from qsim.pieces import count
    from qsim.study.folder import PARTS

    done = count(out / PARTS, "")
    if not done:
        return "no part of the study is finished; the same command starts again"
    return f"{done} parts of the study are finished in {out / PARTS}; the same command goes on from there"


def _print_decisions(run: Any, out: Path) -> None:
    from rich.table import Table

    result = run.result
    titles = {m.method: m.title for m in result.methods}
    devices = [d.title for d in result.spec.speed.devices]
    for model in dict.fromkeys(d.model for d in result.decisions):
        table = Table(box=None, pad_edge=False, header_style="bold", title=model, title_justify="left")
        for name in ("case", *devices):
            table.add_column(name, overflow="fold")
        for case in result.spec.cases:
            found = {d.device: d for d in result.decisions if (d.model, d.case) == (model, case.name)}
            table.add_row(case.title or case.name, *(titles.get(found[d].method or "", "none fits") for d in devices))
        show(console(), table)
        click.echo()
    seconds = sum(run.seconds.values())
    resumed = f", {len(run.resumed)} parts from an earlier run" if run.resumed else ""
    click.echo(f"{seconds:.0f} s{resumed}; the report is {out / 'index.html'}")


@study.command(short_help="What differs between two studies.")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@table_options
def diff(a: Path, b: Path, as_json: bool, as_csv: bool) -> None:
    """What differs between two studies: question, environment, answers, losses and times.

    A and B are folders or study.json files. Exit code 0 when they agree, 1 when they differ. `sure` marks differences
    larger than the errors of both.

    \b
    Example:
      qsim study diff study asic-8
    """
    check_one_output(as_json, as_csv)
    from dataclasses import asdict

    from qsim.study import diff_studies, read_result

    changes = diff_studies(read_result(a), read_result(b))
    rows = [asdict(c) for c in changes]
    if as_json:
        print_json(rows)
    elif as_csv:
        print_csv(rows)
    elif not rows:
        click.echo("no difference")
    else:
        _print_changes(changes)
    if rows:
        raise SystemExit(1)


def _print_changes(changes: Any, at_most: int = 20) -> None:
    from rich.table import Table

    for part in dict.fromkeys(c.part for c in changes):
        mine = [c for c in changes if c.part == part]
        mine.sort(key=lambda c: -abs(c.relative or 0.0))
        table = Table(box=None, pad_edge=False, header_style="bold", title=part, title_justify="left")
        for name in ("what", "A", "B", "change", "sure"):
            table.add_column(name, justify="right" if name == "change" else "left", overflow="fold")
        for c in mine[:at_most]:
            sure = "" if c.sure is None else "yes" if c.sure else "within errors"
            table.add_row(c.what, c.before, c.after, "" if c.relative is None else f"{c.relative:+.1%}", sure)
        show(console(), table)
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
