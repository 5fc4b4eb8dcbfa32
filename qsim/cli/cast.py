"""`qsim cast`: one rounding, seen from close by."""

from __future__ import annotations

from typing import Any

import click

from qsim.errors import QsimError
from qsim.formats.catalogue import get_format
from qsim.formats.explain import explain
from qsim.formats.rounding import NAN_POLICIES, OVERFLOWS, ROUNDINGS
from qsim.formats.spec import BlockFormat, ElementFormat

from .numbers import NumbersCommand, NumberType, WholeNumber
from .table import Form, console, deliver, table_options
from .verbs import verb


def _split_names(_ctx: click.Context, _param: click.Parameter, value: tuple[str, ...]) -> list[str]:
    return [name for part in value for name in part.split(",") if name]


@verb("cast", cls=NumbersCommand)
@click.argument("values", nargs=-1, required=True, type=NumberType(), metavar="NUMBER...")
@click.option("--to", "names", multiple=True, required=True, callback=_split_names, metavar="FORMAT",
              help="Where to: e4m3, int8, bfloat16, mxfp4, ... Repeat it, or separate by commas.")  # fmt: skip
@click.option("--rounding", type=click.Choice(ROUNDINGS), default="nearest_even", show_default=True,
              help="Which neighbour is taken.")  # fmt: skip
@click.option("--overflow", type=click.Choice(OVERFLOWS), default="saturate", show_default=True,
              help="What becomes of a value beyond the largest finite one.")  # fmt: skip
@click.option("--nan", type=click.Choice(NAN_POLICIES), default="canonical", show_default=True,
              help="What becomes of a NaN.")  # fmt: skip
@click.option("--via", multiple=True, callback=_split_names, metavar="FORMAT",
              help="A format in between, as in a pipeline that holds bfloat16; repeat for more.")  # fmt: skip
@click.option("--random-value", type=WholeNumber(min=0), metavar="R",
              help="Random bits of --rounding stochastic, as an integer; drawn from --seed without it.")  # fmt: skip
@click.option("--random-bits", type=WholeNumber(1, 32), default=32, show_default=True, metavar="N",
              help="How many random bits.")  # fmt: skip
@click.option("--seed", type=WholeNumber(min=0), default=0, show_default=True, metavar="N", help="Random seed.")
@table_options
def cast(values: tuple[float, ...], names: list[str], form: Form, **choices: Any) -> None:
    """One number and one format: the bits of the code, both neighbours, which of them was taken and why, and the
    error. Several: a table. A block format (mxfp4, nvfp4) takes the numbers as one tensor and shows the scale that
    each rule chooses.

    \b
    Examples:
      qsim cast 0.3 --to e4m3
      qsim cast -0.3 0x1.8p-3 inf --to e4m3,e5m2,int8
      qsim cast 1.0625 --to e4m3 --rounding toward_zero
      qsim cast 1.0630 --to e4m3 --via bfloat16
      qsim cast 0.1 -2.7 7.5 0.01 --to mxfp4
    """
    if not names:
        raise QsimError("--to names no format: give one, like --to e4m3")
    formats = [get_format(name) for name in names]
    blocks = [f for f in formats if isinstance(f, BlockFormat)]
    elements = [f for f in formats if not isinstance(f, BlockFormat)]
    if blocks and elements:
        raise QsimError(f"{blocks[0].name} is a block format and {elements[0].name} is not: cast to them in two calls")
    if blocks:
        _cast_blocks(values, blocks, form, choices)
    else:
        _cast_elements(values, elements, form, choices)


def _cast_blocks(
    values: tuple[float, ...], formats: list[BlockFormat], form: Form, choices: dict[str, Any]
) -> None:  # fmt: skip
    if choices["via"]:
        raise QsimError(f"--via is for element formats, not for the block format {formats[0].name}")
    if choices["nan"] != "canonical":
        raise QsimError(f"--nan is for element formats: a NaN makes a whole block of {formats[0].name} NaN")
    from qsim.formats.explain_blocks import explain_blocks

    rules = {k: choices[k] for k in ("rounding", "overflow")}
    found = [explain_blocks(values, f, **rules) for f in formats]
    from . import block_view

    def table() -> None:
        out = console()
        for i, explanations in enumerate(found):
            if i:
                out.print()
            block_view.print_blocks(explanations, out)

    deliver(
        form, (row for e in found for row in block_view.rows(e)), table,
        whole=[e.as_dict() for explanations in found for e in explanations],
    )  # fmt: skip


def _cast_elements(
    values: tuple[float, ...], formats: list[ElementFormat], form: Form, choices: dict[str, Any]
) -> None:  # fmt: skip
    explanations = [explain(x, f, **_chance(choices, i)) for i, x in enumerate(values) for f in formats]
    from . import cast_view

    deliver(
        form, (cast_view.row(e) for e in explanations),
        lambda: cast_view.print_one(explanations[0], console()) if len(explanations) == 1
        else cast_view.print_several(explanations),
        whole=[e.as_dict() for e in explanations],
    )  # fmt: skip


def _chance(choices: dict[str, Any], index: int) -> dict[str, Any]:
    """The choices with random bits filled in: element `index` of the seed's stream."""
    rest = {k: v for k, v in choices.items() if k != "seed"}
    if rest["random_value"] is None:
        rest["random_value"] = 0
        if rest["rounding"] == "stochastic":
            import numpy as np

            bound = (1 << rest["random_bits"]) - 1
            draws = np.random.default_rng(choices["seed"]).integers(0, bound, index + 1, np.uint64, endpoint=True)
            rest["random_value"] = int(draws[index])
    elif rest["random_value"] >> rest["random_bits"]:
        raise QsimError(
            f"--random-value must be below 2^{rest['random_bits']}, as --random-bits says: got {rest['random_value']}"
        )
    return rest
