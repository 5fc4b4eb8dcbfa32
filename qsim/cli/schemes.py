"""`qsim schemes`: the named schemes, and one in full."""

from __future__ import annotations

from typing import Any

import click

from .table import Column, Form, deliver, print_table, table_options, text_of
from .verbs import verb


@verb("schemes")
@click.argument("name", required=False, metavar="[SCHEME]")
@table_options
def schemes(name: str | None, form: Form) -> None:
    """Without SCHEME: the named ones with bits per weight, the preset of compressed-tensors (llm-compressor, vLLM) that
    means the same, and the checkpoint layouts that hold them. With one: its parts, its size, and why a layout cannot
    hold it. Other bits and group sizes are read by grammar (w3a16-g64-sym), and any name takes -kvfp8, -kvint8, ...

    \b
    Examples:
      qsim schemes
      qsim schemes w4a16-g128
      qsim schemes W4A16 --json
      qsim schemes fp8-rowwise-kvfp8
    """
    from qsim.scheme.describe import describe_scheme, part_rows, scheme_row

    if name is None:
        from qsim.scheme import list_schemes

        rows = [scheme_row(scheme) | {"layouts": " ".join(_layouts(scheme))} for scheme in list_schemes()]
        deliver(form, rows, lambda: _print(rows))
        return
    from qsim.layouts import LAYOUTS, reason
    from qsim.scheme import get_scheme

    scheme = get_scheme(name)
    facts = describe_scheme(scheme)
    refused = {layout: reason(scheme, layout) for layout in LAYOUTS}
    parts = part_rows(scheme)

    def table() -> None:
        for key, value in facts.items():
            click.echo(f"{key.replace('_', ' ')}: {_exact(value) or 'none'}")
        click.echo()
        _print(parts)
        click.echo()
        _print([{"layout": layout, "holds it": why or "yes"} for layout, why in refused.items()])

    deliver(form, parts, table, whole=facts | {"parts": parts, "layouts": refused})


def _layouts(scheme: Any) -> tuple[str, ...]:
    from qsim.layouts import layouts_for

    return layouts_for(scheme)


def _exact(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else text_of(value)


def _print(rows: list[dict[str, Any]]) -> None:
    """Every key is a column; all but the first may be folded where they hold texts."""
    columns = [
        Column(
            key.replace("_", " "), key, _exact, left=not isinstance(value, float), fold=i > 0 and isinstance(value, str)
        )
        for i, (key, value) in enumerate(rows[0].items())
    ]
    print_table(columns, rows)
