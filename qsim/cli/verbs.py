"""The verbs of the command, each declared once: its section, where it lives, and the line that says what it does."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from qsim.errors import QsimError


@dataclass(frozen=True, kw_only=True)
class Verb:
    """`qsim NAME`: the click command of that name in the module `qsim.cli.NAME`."""

    section: str
    name: str
    says: str


VERBS = {
    verb.name: verb
    for verb in (
        Verb(section="Learn", name="formats", says="List number formats, show one in full, compare their errors."),
        Verb(section="Learn", name="schemes", says="List quantisation schemes, or show one in full."),
        Verb(section="Learn", name="cast", says="Round numbers to a format and see every step of the decision."),
        Verb(section="Learn", name="mma", says="Multiply as a given tensor core does, bit for bit."),
        Verb(section="Quantise", name="quantize",
             says="Quantise a checkpoint with RTN, GPTQ, AWQ, SmoothQuant or FP8."),
        Verb(section="Quantise", name="convert", says="Rewrite a checkpoint in another layout, or as a GGUF file."),
        Verb(section="Quantise", name="eval", says="Measure what a quantised model has lost."),
        Verb(section="Quantise", name="outliers", says="Find a model's outliers, and what they do to each format."),
        Verb(section="Quantise", name="generate", says="Generate text with a quantised model."),
        Verb(section="Predict", name="devices", says="List GPUs and ASICs with their peaks, bandwidths and sources."),
        Verb(section="Predict", name="predict", says="Predict the time, memory and throughput of inference."),
        Verb(section="Predict", name="roofline", says="Place a model's operators on a device's roofline."),
        Verb(section="Predict", name="sweep", says="Predict over devices, schemes, batches and contexts."),
        Verb(section="Predict", name="serve", says="Serve a workload: latencies, tokens per second, cost, and why."),
        Verb(section="Predict", name="plan", says="Find the cheapest deployment within limits on TTFT and TPOT."),
        Verb(section="Predict", name="explore", says="Move hardware, scheme and batch in a page, live or as one file."),
        Verb(section="Predict", name="calibrate", says="Fit a device's kernel parameters to measured timings."),
        Verb(section="Prove", name="validate", says="Compare predictions with measured and published numbers."),
        Verb(section="Prove", name="bench", says="Time this computer's kernels against their limits and peers."),
        Verb(section="Decide", name="evidence",
             says="Show published losses of quantised models, with sources."),
        Verb(section="Decide", name="study", says="Quality against speed, for every method on every device."),
    )
}  # fmt: skip
"""By name, in the order of `qsim --help`."""


def verbose_option() -> click.Option:
    """`--verbose`, which the guard reads from the command line itself: a mistake may come before options are read."""
    return click.Option(["--verbose"], is_flag=True, expose_value=False, help="On an error, show the traceback too.")


def refuse_repeats(command: click.Command) -> None:
    """Make a verb refuse an option that is given twice but holds one value: click would keep the last one silently."""
    if "make_parser" in vars(command):
        return
    make_parser = command.make_parser

    def make(ctx: click.Context) -> Any:
        parser = make_parser(ctx)
        parse = parser.parse_args

        def parse_once(args: list[str]) -> Any:
            values, rest, order = parse(args)
            for one in order:
                single = isinstance(one, click.Option) and not one.multiple and not one.count
                if single and order.count(one) > 1:
                    raise click.UsageError(f"{one.opts[0]} is given {order.count(one)} times: it takes one value", ctx)
            return values, rest, order

        parser.parse_args = parse_once  # type: ignore[method-assign]
        return parser

    command.make_parser = make  # type: ignore[method-assign]


def in_flags(text: str, params: Sequence[click.Parameter]) -> str:
    """A sentence of the library in the words of a command: `overwrite=True` is `--force` where that sets it."""
    flags = {str(p.name): p.opts[0] for p in params if isinstance(p, click.Option) and p.is_flag}
    return re.sub(
        r"\b(\w+)=(True|False)\b",
        lambda m: m[0] if m[1] not in flags else flags[m[1]] if m[2] == "True" else f"no {flags[m[1]]}",
        text,
    )


def speak_in_flags(command: click.Command) -> None:
    """Let refusals of the library that a verb lets through name its flags instead of Python's arguments."""
    invoke = command.invoke

    def run(ctx: click.Context) -> Any:
        try:
            return invoke(ctx)
        except QsimError as error:
            error.args = (in_flags(str(error), command.params), *error.args[1:])
            raise

    command.invoke = run  # type: ignore[method-assign]


def verb(name: str, make: Callable[..., Any] = click.command, **settings: Any) -> Callable[[Callable[..., Any]], Any]:
    """The decorator of a verb: its help is the line in `VERBS`, then the function's docstring.

    Arguments:
        make: `click.command` or `click.group`.
        settings: for click.
    """
    says = VERBS[name].says

    def decorate(function: Callable[..., Any]) -> Any:
        details = inspect.cleandoc(function.__doc__ or "")
        command = make(name, short_help=says, help=f"{says}\n\n{details}", **settings)(function)
        command.params.append(verbose_option())
        speak_in_flags(command)
        return command

    return decorate
