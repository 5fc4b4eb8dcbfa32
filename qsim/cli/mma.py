"""`qsim mma`: one dot product as a tensor core computes it."""

from __future__ import annotations

import click

from qsim.errors import QsimError

from .numbers import NumberType
from .table import Form, console, deliver, table_options
from .verbs import verb


def _numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> list[float] | None:
    if value is None:
        return None
    return [NumberType().convert(part, param, ctx) for part in value.replace(",", " ").split()]


@verb("mma")
@click.argument("instructions", nargs=-1, metavar="[INSTRUCTION]...")
@click.option("-a", "a", callback=_numbers, metavar="NUMBERS", help='Row of A: "1, -0.5, 2". Give B as well.')
@click.option("-b", "b", callback=_numbers, metavar="NUMBERS", help="Row of B, as long as A.")
@click.option("-c", "c", callback=_numbers, metavar="NUMBER", help="The accumulator at the start; 0 without it.")
@click.option("--example", metavar="NAME", help="A dot product worth looking at: swallow (the default without -a), "
              "stops-at-64, small-c, no-carry.")  # fmt: skip
@click.option("--list", "prefix", is_flag=False, flag_value="", metavar="[PREFIX]",
              help="List the instructions, all or those whose name starts so.")  # fmt: skip
@click.option("--pipeline", is_flag=False, flag_value="", metavar="[NAME]",
              help="A fused kernel of a GPU, like humming.w4a16: one output element from codes to result. Without a "
              "name, the list of them.")  # fmt: skip
@table_options
def mma(
    instructions: tuple[str, ...],
    a: list[float] | None,
    b: list[float] | None,
    c: list[float] | None,
    example: str | None,
    prefix: str | None,
    pipeline: str | None,
    form: Form,
) -> None:
    """One INSTRUCTION: how its terms are aligned to the largest exponent, what is cut off below, the sum, the rounding.
    Several: their results for the same numbers, in a table. None: the list of instructions.

    \b
    Examples:
      qsim mma hopper.wgmma.f32.e4m3
      qsim mma hopper.wgmma.f32.e4m3 -a "1, 2, -0.5" -b "3, 0.25, 6" -c 1000
      qsim mma hopper.wgmma.f32.e4m3 hopper.mma.f32.e4m3 ada.mma.f32.e4m3
      qsim mma hopper.wgmma.f32.e4m3 --example stops-at-64
      qsim mma --list hopper
      qsim mma --pipeline humming.w4a8_fp8
    """
    if pipeline is not None:
        if instructions or a or b or c or example or prefix is not None:
            raise QsimError("--pipeline has its own example: leave out instructions, -a, -b, -c, --example and --list")
        _pipeline(pipeline, form)
        return
    from . import mma_view

    if prefix is not None or not instructions:
        rows = mma_view.instruction_rows(prefix or "")
        deliver(form, rows, lambda: mma_view.print_list(rows, console()))
        return
    explanations, says = mma_view.explain_all(instructions, a, b, c, example)
    out = console()
    deliver(
        form, (mma_view.row(e) for e in explanations),
        lambda: mma_view.print_one(explanations[0], says, out) if len(explanations) == 1
        else mma_view.print_several(explanations, says, out),
        whole=[e.as_dict() for e in explanations],
    )  # fmt: skip


def _pipeline(name: str, form: Form) -> None:
    from . import pipeline_view

    if not name:
        rows = pipeline_view.pipeline_rows("")
        deliver(form, rows, lambda: pipeline_view.print_pipelines(rows, console()))
        return
    from qsim.kernels.trace import trace

    t = trace(name)
    shown = pipeline_view.as_dict(t)
    deliver(form, shown["steps"], lambda: pipeline_view.print_trace(t, console()), whole=shown)
