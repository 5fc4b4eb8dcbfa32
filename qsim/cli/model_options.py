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


outliers_option = click.option("--outliers", metavar="SIZE|PROFILE", help="Give the model synthetic outliers first; it "
                               "computes the same. A number is the size of activation channels; opt-13b-like, "
                               "llama-2-7b-like and llama-3-70b-like are published profiles.")  # fmt: skip
"""`--outliers`, for `with_given_outliers`."""


def with_given_outliers(model: Model, outliers: str | None) -> Model:
    """The model with the synthetic outliers that the option asks for: a size, or the name of a profile."""
    from qsim.models import list_profiles, with_outliers, with_profile

    if outliers is None:
        return model
    try:
        size = float(outliers)
    except ValueError:
        if outliers not in list_profiles():
            raise QsimError(f"--outliers must be a size or one of {', '.join(list_profiles())}: "
                            f"got {outliers!r}") from None  # fmt: skip
        return with_profile(model, outliers)
    return with_outliers(model, magnitude=size)


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
            outliers_option,
        )
    ):  # fmt: skip
        function = option(function)
    return function


def prepared_model(
    path: str, *, scheme: str | None, engine: str | None, instruction: str | None, outliers: str | None,
    tokenizer: str = "own",
) -> tuple[Model, Model]:  # fmt: skip
    """The model as the options want it, and as it was loaded (the same object when no option changes it)."""
    from qsim.models import load, with_scheme

    original = model = with_tokenizer(load(path), tokenizer)
    model = with_given_outliers(model, outliers)
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
