"""Numbers on the command line: decimals, hex floats, inf, nan, and a minus sign that is not an option."""

from __future__ import annotations

import re
from typing import Any

import click

# Click reads `-0.3` as options. Numbers pass its parser with this minus sign (U+2212) in place of the hyphen.
_MINUS = "\N{MINUS SIGN}"
_NEGATIVE = re.compile(r"-(inf|infinity|nan|(?=[.\d])[\d._]*(e[+-]?\d+)?|0x[\da-f]*\.?[\da-f]*(p[+-]?\d+)?)", re.I)


class NumberType(click.ParamType):
    """A float: decimal, C99 hex (0x1.8p-3), inf or nan."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value).replace(_MINUS, "-").strip()
        try:
            return float.fromhex(text) if "0x" in text.lower() else float(text)
        except OverflowError:
            self.fail(f"{text} is beyond float64's range", param, ctx)
        except ValueError:
            self.fail(f"{text!r} is not a number; 0.3, 1e-3, 0x1.8p-3, inf and nan are", param, ctx)


class WholeNumber(click.IntRange):
    """An integer option of a command whose arguments may be negative numbers."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text: Any = str(value).replace(_MINUS, "-")
        return super().convert(text, param, ctx)


class NumbersCommand(click.Command):
    """A command whose arguments may be negative numbers."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        args = [_MINUS + arg[1:] if _NEGATIVE.fullmatch(arg) else arg for arg in args]
        return super().parse_args(ctx, args)
