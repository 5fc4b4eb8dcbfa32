"""`qsim bench`: this computer's kernels under its two limits, and beside what others offer."""

from __future__ import annotations

from typing import Any

import click

from .hardware_options import Numbers, milliseconds
from .table import Column, Form, deliver, print_table, table_options, text_of
from .verbs import verb

_COLUMNS = (
    Column("kernel", "kernel", left=True), Column("tokens", "tokens"), Column("time", "time_s", milliseconds),
    Column("GB/s", "gbytes_per_s", "{:.1f}".format), Column("of read", "of_bandwidth", "{:.0%}".format),
    Column("GOP/s", "gop_per_s", "{:.0f}".format), Column("of float32", "of_peak", "{:.0%}".format),
    Column("over NumPy", "speedup", "{:.2f}x".format), Column("weight MB", "weight_mbytes", text_of),
)  # fmt: skip


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


@verb("bench")
@click.option("--scheme", multiple=True, metavar="NAME", help="Scheme to time; repeatable. Without it, six of them.")
@click.option("--batch", type=Numbers(), default="1,16,256", show_default=True, help="Tokens at once.")
@click.option("--shape", type=Shape(), default="4096x4096", show_default=True, help="Rows and columns of the weight.")
@table_options
def bench(scheme: tuple[str, ...], batch: tuple[int, ...], shape: tuple[int, int], form: Form) -> None:
    """Measures the read bandwidth and the rate of float32 arithmetic, then fused products of quantised weights, NumPy's
    float32 product and, where it is installed, torch's. A share near 100 % of either limit is as fast as it gets. A
    quick look of some ten seconds: the first run also compiles. Careful measurements are under reports/.

    \b
    Examples:
      qsim bench
      qsim bench --scheme w4a16-g128 --scheme fp8-rowwise --batch 1:64 --shape 11008x4096
    """
    from dataclasses import asdict

    from qsim.study.bench import SCHEMES
    from qsim.study.bench import bench as run

    from .progress import reporter

    with reporter("timing") as say:
        result = run(scheme or SCHEMES, batch, shape, progress=say)
    rows = [asdict(r) for r in result.rows]

    def table() -> None:
        n, k = result.shape
        click.echo(f"reads {result.bandwidth_bytes_per_s / 1e9:.3g} GB/s, float32 {result.peak_flop_per_s / 1e9:.3g} "
                   f"GFLOP/s; weight {n} x {k}")  # fmt: skip
        print_table(_COLUMNS, rows)
        for note in result.notes:
            click.echo(f"note  {note}")

    deliver(form, rows, table, whole={**asdict(result), "rows": rows})
