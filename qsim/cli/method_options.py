"""The options of every quantisation method on the command line, as the methods declare them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from qsim.errors import QsimError
from qsim.methods import METHODS, get_method
from qsim.methods.method import Option

_PREFIX = "of_a_method_"  # of the parameters, so that a method's option cannot be taken for one of the verb


class MethodCommand(click.Command):
    """A command whose help shows the options of methods in groups of their own: first what several have, then each
    method's."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own: list[tuple[str, str]] = []
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option) and not is_of_a_method(param):
                own.append(record)
        with formatter.section("Options"):
            formatter.write_dl(own)
        groups: dict[tuple[str, ...], list[tuple[str, str]]] = {}
        for param in self.params:
            record = param.get_help_record(ctx)
            if record is not None and is_of_a_method(param):
                groups.setdefault(owners(param.opts[0]), []).append(record)
        for names, records in sorted(groups.items(), key=lambda group: -len(group[0])):
            with formatter.section(f"Options of {', '.join(METHODS[name].title for name in names)}"):
                formatter.write_dl(records)


def is_of_a_method(param: click.Parameter) -> bool:
    """Whether an option is a method's, not the verb's."""
    return param.name is not None and param.name.startswith(_PREFIX)


def declared(method: str) -> dict[str, tuple[str, Option]]:
    """The options of a method that have a flag: flag -> (name, option)."""
    options = METHODS[method].options.declared()
    return {option.flag: (name, option) for name, option in options.items() if option.flag is not None}


def owners(flag: str) -> tuple[str, ...]:
    """The methods that have an option with this flag."""
    return tuple(name for name in METHODS if flag in declared(name))


def method_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Every option of every method, each once. They reach the function among its `**options`, for `given_options`."""
    taken = {flag for param in getattr(function, "__click_params__", ()) for flag in param.opts}
    flags = dict.fromkeys(flag for name in METHODS for flag in declared(name))
    for flag in reversed(flags):
        users = owners(flag)
        if flag in taken:
            raise QsimError(
                f"method {users[0]}: qsim quantize has an option {flag} itself: give the method's another flag"
            )
        option = declared(users[0])[flag][1]
        kind: dict[str, Any] = {"is_flag": True, "default": None} if option.switch else {"metavar": option.metavar}
        click.option(flag, _PREFIX + flag.lstrip("-").replace("-", "_"), help=_sentence(option.says), **kind)(function)
    return function


def given_options(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a method by name, from what `method_options` passed; those that were not given stay away.

    Raises:
        QsimError: an option of another method, a value that the option does not have.
    """
    known = declared(get_method(method).name)
    of_flag = {_PREFIX + f.lstrip("-").replace("-", "_"): f for name in METHODS for f in declared(name)}
    out: dict[str, Any] = {}
    for key, value in given.items():
        if value is None:
            continue
        flag = of_flag[key]
        if flag not in known:
            mine = f"{method} has {', '.join(known)}" if known else f"{method} has no options"
            raise QsimError(f"{flag} is an option of {' and '.join(owners(flag))}, not of {method}; {mine}")
        name, option = known[flag]
        out[name] = not option.default if option.switch else option.read(value)
    return out


def _sentence(says: str) -> str:
    return says[0].upper() + says[1:] + "."
