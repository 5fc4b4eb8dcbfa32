"""Options that the verbs with a model share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qsim.errors import QsimError

if TYPE_CHECKING:
    from qsim.models import Model

_F = TypeVar("_F", bound=Callable[..., Any])


def model_options(function: _F) -> _F:
    """`--scheme --engine --instruction --outliers`, for `prepared_model`."""
    for option in reversed(
        (
            click.option("--scheme", metavar="NAME", help="Round the weights to nearest by this scheme: w4a16-g128, "
                         "fp8-rowwise, w8a8, ...; see qsim quantize for better ways."),
            click.option("--engine", type=click.Choice(["fused", "dequantized", "exact"]),
                         help="How Linears are multiplied: packed codes, dequantised weights, or bit for bit as a "
                         "tensor core does. Default: fused."),
            click.option("--instruction", metavar="NAME",
                         help="Tensor-core instruction of --engine exact, which it implies; see qsim mma --list."),
            click.option("--outliers", type=float, metavar="SIZE", help="Give the model synthetic activation outliers "
                         "of this size first; it computes the same."),
        )
    ):  # fmt: skip
        function = option(function)
    return function


def prepared_model(
    path: str, *, scheme: str | None, engine: str | None, instruction: str | None, outliers: float | None
) -> tuple[Model, Model]:
    """The model as the options want it, and as it was loaded (the same object when no option changes it)."""
    from qsim.models import load, with_outliers, with_scheme

    original = model = load(path)
    if outliers is not None:
        model = with_outliers(model, magnitude=outliers)
    if scheme is not None:
        model = with_scheme(model, scheme)
    if instruction is not None and engine not in (None, "exact"):
        raise QsimError(f"--instruction belongs to --engine exact: got --engine {engine}")
    if engine is not None or instruction is not None:
        settings: dict[str, Any] = {"engine": engine or "exact"}
        if instruction is not None:
            settings["instruction"] = instruction
        own = dict(model.linear_settings)
        model = model.replace(linear_settings={**own, **{n: {**own.get(n, {}), **settings} for n in model.linears()}})
    return model, original
