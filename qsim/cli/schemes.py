"""`qsim schemes`: the named schemes, and one in full."""

from __future__ import annotations

from typing import Any

import click

from .options import check_one_output, console, emit, print_json, show, table_options


@click.command(short_help="List quantisation schemes, or show one in full.")
@click.argument("name", required=False, metavar="[SCHEME]")
@table_options
def schemes(name: str | None, as_json: bool, as_csv: bool) -> None:
    """List quantisation schemes, or show one in full.

    Without SCHEME: the named ones with bits per weight, the preset of compressed-tensors (llm-compressor, vLLM) that
    means the same, and the checkpoint layouts that hold them. With one: its parts, its size, and why a layout cannot
    hold it. Other bits and group sizes are read by grammar (w3a16-g64-sym), and any name takes -kvfp8, -kvint8, ...

    \b
    Examples:
      qsim schemes
      qsim schemes w4a16-g128
      qsim schemes W4A16 --json
      qsim schemes fp8-rowwise-kvfp8
    """
    check_one_output(as_json, as_csv)
    from qsim.scheme.describe import describe_scheme, part_rows, scheme_row

    if name is None:
        from qsim.scheme import list_schemes

        rows = [scheme_row(scheme) | {"layouts": " ".join(_layouts(scheme))} for scheme in list_schemes()]
        if not emit(rows, as_json=as_json, as_csv=as_csv):
            wide = console().width >= 150  # what a narrower terminal holds; --csv has everything
            _print([{k: v for k, v in row.items() if wide or k not in ("kv_cache", "layouts")} for row in rows])
        return
    from qsim.checkpoints.layouts import LAYOUTS, reason
    from qsim.scheme import get_scheme

    scheme = get_scheme(name)
    facts = describe_scheme(scheme)
    refused = {layout: reason(scheme, layout) for layout in LAYOUTS}
    if as_json:
        print_json(facts | {"parts": part_rows(scheme), "layouts": refused})
    elif not emit(part_rows(scheme), as_json=False, as_csv=as_csv):
        for key, value in facts.items():
            click.echo(f"{key.replace('_', ' ')}: {_text(value) or 'none'}")
        click.echo()
        _print(part_rows(scheme))
        click.echo()
        _print([{"layout": layout, "holds it": why or "yes"} for layout, why in refused.items()])


def _layouts(scheme: Any) -> tuple[str, ...]:
    from qsim.checkpoints import layouts_for

    return layouts_for(scheme)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for i, (name, first) in enumerate(rows[0].items()):
        table.add_column(
            name.replace("_", " "), justify="right" if isinstance(first, float) else "left", overflow="fold",
            no_wrap=i == 0,
        )  # fmt: skip
    for row in rows:
        table.add_row(*(_text(v) for v in row.values()))
    show(console(), table)
