"""How a block cast looks in a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.text import Text

from qsim.formats.explain import hex_code, number
from qsim.formats.explain_blocks import BlockExplanation

from .format_view import gap_of
from .table import Column, print_table, say

if TYPE_CHECKING:
    from rich.console import Console


def rows(explanations: Sequence[BlockExplanation]) -> list[dict[str, Any]]:
    """One row per value and rule, for CSV."""
    return [
        {
            "format": e.format.name,
            "scale_rule": _rule(e),
            "block": e.block,
            "scale_code": hex_code(e.scale_code, e.format.scale),
            "scale": e.scale,
            "value": value,
            "code": hex_code(code, e.format.element),
            "result": result,
        }
        for e in explanations
        for value, code, result in zip(e.values, e.codes, e.results, strict=True)
    ]


def print_blocks(explanations: Sequence[BlockExplanation], out: Console) -> None:
    """Block by block: the scale each rule chooses, and the values it gives."""
    fmt = explanations[0].format
    count = sum(len(e.values) for e in explanations if e.scale_rule == explanations[0].scale_rule)
    out.print(Text.assemble((fmt.name, "bold"), f": blocks of {fmt.block_size} {fmt.element.name} share one "
                            f"{fmt.scale.name}; {count} value{'s' * (count != 1)}"))  # fmt: skip
    tensor_scale = explanations[0].tensor_scale
    if tensor_scale is not None:
        largest = f"amax / ({number(fmt.scale.max)} x {number(fmt.element.max)})"
        say(f"Tensor scale {tensor_scale:.9g} = {largest}, in float32.")
    for block, group in groupby(explanations, key=lambda e: e.block):
        _print_block(block, list(group), out)


def _print_block(block: int, same: list[BlockExplanation], out: Console) -> None:
    amax = same[0].amax
    out.print()
    mantissa, exponent = math.frexp(amax)
    of = "" if not math.isfinite(amax) or amax == 0 else f" = {2 * mantissa:.6g} x 2^{exponent - 1}"
    out.print(Text.assemble((f"Block {block}", "bold"), f"  amax {number(amax)}{of}"))
    print_table(_SCALES, [
        {"rule": _rule(e), "scale": _scale(e), "code": hex_code(e.scale_code, e.format.scale),
         "clips": e.clipped or "-", "rms error": e.rms_error, "how": e.decision} for e in same
    ], lined=True, gap=gap_of(out))  # fmt: skip
    out.print()
    columns = [Column("value", "value", number), *(Column(_rule(e), _rule(e)) for e in same)]
    print_table(columns, [
        {"value": value, **{_rule(e): _result(e, i) for e in same}} for i, value in enumerate(same[0].values)
    ], lined=True, gap=gap_of(out))  # fmt: skip


_SCALES = (
    Column("rule", "rule", left=True), Column("scale", "scale"), Column("code", "code", left=True),
    Column("clips", "clips"), Column("rms error", "rms error"), Column("how", "how", left=True, fold=True),
)  # fmt: skip


def _result(e: BlockExplanation, i: int) -> Text:
    shortest = number(e.results[i])
    text = Text(shortest if len(shortest) <= 9 else f"{e.results[i]:.6g}")
    text.append(f" {hex_code(e.codes[i], e.format.element)}", "dim")
    return text


def _rule(e: BlockExplanation) -> str:
    return e.scale_rule or e.format.name


def _scale(e: BlockExplanation) -> str:
    return number(e.scale) if e.format.tensor_scale or math.isnan(e.scale) else f"2^{math.frexp(e.scale)[1] - 1}"
