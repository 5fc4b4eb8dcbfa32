"""`qsim mma`: one dot product as a tensor core computes it."""

from __future__ import annotations

import click

from .numbers import NumberType
from .options import check_one_output, console, emit, print_json, table_options


def _numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> list[float] | None:
    if value is None:
        return None
    return [NumberType().convert(part, param, ctx) for part in value.replace(",", " ").split()]


@click.command(short_help="Multiply as a given tensor core does, bit for bit.")
@click.argument("instructions", nargs=-1, metavar="[INSTRUCTION]...")
@click.option("-a", "a", callback=_numbers, metavar="NUMBERS", help='Row of A: "1, -0.5, 2". Give B as well.')
@click.option("-b", "b", callback=_numbers, metavar="NUMBERS", help="Row of B, as long as A.")
@click.option("-c", "c", callback=_numbers, metavar="NUMBER", help="The accumulator at the start; 0 without it.")
@click.option("--example", metavar="NAME", help="A dot product worth looking at: swallow (the default without -a), "
              "stops-at-64, small-c, no-carry.")  # fmt: skip
@click.option("--list", "prefix", is_flag=False, flag_value="", metavar="[PREFIX]",
              help="List the instructions, all or those whose name starts so.")  # fmt: skip
@table_options
def mma(
    instructions: tuple[str, ...],
    a: list[float] | None,
    b: list[float] | None,
    c: list[float] | None,
    example: str | None,
    prefix: str | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Multiply as a given tensor core does, bit for bit, and see every step.

    One INSTRUCTION: how its terms are aligned to the largest exponent, what is cut off below, the sum, the rounding.
    Several: their results for the same numbers, in a table. None: the list of instructions.

    \b
    Examples:
      qsim mma hopper.wgmma.f32.e4m3
      qsim mma hopper.wgmma.f32.e4m3 -a "1, 2, -0.5" -b "3, 0.25, 6" -c 1000
      qsim mma hopper.wgmma.f32.e4m3 hopper.mma.f32.e4m3 ada.mma.f32.e4m3
      qsim mma hopper.wgmma.f32.e4m3 --example stops-at-64
      qsim mma --list hopper
    """
    check_one_output(as_json, as_csv)
    from . import mma_view

    if prefix is not None or not instructions:
        rows = mma_view.instruction_rows(prefix or "")
        if not emit(rows, as_json=as_json, as_csv=as_csv):
            mma_view.print_list(rows, console())
        return
    explanations, says = mma_view.explain_all(instructions, a, b, c, example)
    if as_json:
        print_json([e.as_dict() for e in explanations])
    elif not emit((mma_view.row(e) for e in explanations), as_json=False, as_csv=as_csv):
        out = console()
        if len(explanations) == 1:
            mma_view.print_one(explanations[0], says, out)
        else:
            mma_view.print_table(explanations, says, out)
