"""Options that the verbs with a model share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qsim.errors import QsimError

if TYPE_CHECKING:
    from qsim.models import Model

_F = TypeVar("_F", bound=Callable[..., Any])


def tokenizer_option(function: _F) -> _F:
    """`--tokenizer`, for `with_tokenizer`."""
    return click.option("--tokenizer", type=click.Choice(["own", "bytes"]), default="own", show_default=True,
                        help="own: the model's tokenizer.json. bytes: each byte of a text is one token, for a folder "
                        "without tokenizer.")(function)  # fmt: skip


def with_tokenizer(model: Model, tokenizer: str) -> Model:
    """The model with the tokenizer that the option names."""
    from qsim.models.tokens import with_byte_tokens

    return with_byte_tokens(model) if tokenizer == "bytes" else model


def model_options(function: _F) -> _F:
    """`--scheme --engine --instruction --outliers --tokenizer`, for `prepared_model`."""
    function = tokenizer_option(function)
    for option in reversed(
        (
            click.option("--scheme", metavar="NAME", help="Round the weights to nearest by this scheme: w4a16-g128, "
                         "fp8-rowwise, w8a8, ...; see qsim quantize for better ways."),
            click.option("--engine", type=click.Choice(["fused", "mixed", "dequantized", "exact"]),
                         help="How Linears are multiplied: packed codes, codes for a few tokens and BLAS for many, "
                         "dequantised weights, or bit for bit as a tensor core does. Default: fused."),
            click.option("--instruction", metavar="NAME",
                         help="Tensor-core instruction of --engine exact, which it implies; see qsim mma --list."),
            click.option("--outliers", type=float, metavar="SIZE", help="Give the model synthetic activation outliers "
                         "of this size first; it computes the same."),
        )
    ):  # fmt: skip
        function = option(function)
    return function


def prepared_model(
    path: str, *, scheme: str | None, engine: str | None, instruction: str | None, outliers: float | None,
    tokenizer: str = "own",
) -> tuple[Model, Model]:  # fmt: skip
    """The model as the options want it, and as it was loaded (the same object when no option changes it)."""
    from qsim.models import load, with_outliers, with_scheme

    original = model = with_tokenizer(load(path), tokenizer)
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
