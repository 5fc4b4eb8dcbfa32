"""`qsim bench`: this computer's kernels under its two limits, and beside what others offer."""

from __future__ import annotations

from typing import Any

import click

from .hardware_options import Numbers, milliseconds
from .options import check_one_output, console, print_csv, print_json, show, table_options


class Shape(click.ParamType):
    """`4096x11008`: N rows, K columns."""

    name = "NxK"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        parts = str(value).lower().split("x")
        if len(parts) != 2 or not all(p.isdigit() for p in parts):
            self.fail(f"{value!r} is not a shape like 4096x11008", param, ctx)
        return int(parts[0]), int(parts[1])


@click.command(short_help="Time this computer's kernels against their limits and peers.")
@click.option("--scheme", multiple=True, metavar="NAME", help="Scheme to time; repeatable. Without it, six of them.")
@click.option("--batch", type=Numbers(), default="1,16,256", show_default=True, help="Tokens at once.")
@click.option("--shape", type=Shape(), default="4096x4096", show_default=True, help="Rows and columns of the weight.")
@table_options
def bench(scheme: tuple[str, ...], batch: tuple[int, ...], shape: tuple[int, int], as_json: bool, as_csv: bool) -> None:
    """Time this computer's kernels against their limits and peers.

    Measures the read bandwidth and the rate of float32 arithmetic, then fused products of quantised weights, NumPy's
    float32 product and, where it is installed, torch's. A share near 100 % of either limit is as fast as it gets. A
    quick look of some ten seconds: the first run also compiles. Careful measurements are under reports/.

    \b
    Examples:
      qsim bench
      qsim bench --scheme w4a16-g128 --scheme fp8-rowwise --batch 1:64 --shape 11008x4096
    """
    check_one_output(as_json, as_csv)
    from dataclasses import asdict

    from qsim.study.bench import SCHEMES
    from qsim.study.bench import bench as run

    from .progress import reporter

    with reporter("timing") as say:
        result = run(scheme or SCHEMES, batch, shape, progress=say)
    rows = [asdict(r) for r in result.rows]
    if as_csv:
        print_csv(rows)
        return
    if as_json:
        print_json({**asdict(result), "rows": rows})
        return
    from rich.table import Table

    n, k = result.shape
    click.echo(f"reads {result.bandwidth_bytes_per_s / 1e9:.3g} GB/s, float32 {result.peak_flop_per_s / 1e9:.3g} "
               f"GFLOP/s; weight {n} x {k}")  # fmt: skip
    columns: dict[str, Any] = {
        "kernel": lambda r: r.kernel, "tokens": lambda r: str(r.tokens), "time": lambda r: milliseconds(r.time_s),
        "GB/s": lambda r: f"{r.gbytes_per_s:.1f}", "of read": lambda r: f"{r.of_bandwidth:.0%}",
        "GOP/s": lambda r: f"{r.gop_per_s:.0f}", "of float32": lambda r: f"{r.of_peak:.0%}",
        "over NumPy": lambda r: f"{r.speedup:.2f}x",
    }  # fmt: skip
    out = console()
    if out.width < 92:  # the shares say the same
        columns = {name: get for name, get in columns.items() if name not in ("GB/s", "GOP/s")}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="left" if name == "kernel" else "right", no_wrap=True)
    for r in result.rows:
        table.add_row(*(get(r) for get in columns.values()))
    show(out, table)
    for note in result.notes:
        click.echo(f"note  {note}")
