"""The methods by name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from qsim.errors import QsimError
from qsim.scheme import Scheme
from qsim.tables import Table

from .recipe import Recipe

DEFAULT_SCHEMES = {
    "rtn": "w4a16-g128", "gptq": "w4a16-g128", "awq": "w4a16-g128", "smoothquant": "w8a8-channel-token",
    "fp8": "fp8-tensor",
}  # fmt: skip
METHODS = tuple(DEFAULT_SCHEMES)
_WHAT = {
    "rtn": "round to nearest, no calibration",
    "gptq": "rounds column by column and passes each error on, by the Hessian of the inputs",
    "awq": "scales salient input channels up before rounding",
    "smoothquant": "moves outliers of the activations into the weights",
    "fp8": "FP8 weights and activations, with calibrated scales where they are static",
}


def list_methods() -> Table[str]:
    """The methods of `quantize_model`, each with the scheme that it takes when none is given. Iterating gives names."""
    return Table(
        columns=("method", "default scheme", "what it does"),
        rows=tuple((name, DEFAULT_SCHEMES[name], _WHAT[name]) for name in METHODS),
        values=METHODS,
    )


def get_recipe(method: str, scheme: str | Scheme | None, options: Mapping[str, Any]) -> Recipe:
    """The recipe of a method.

    Raises:
        ValueError: an unknown method or option, a scheme that the method cannot do.
    """
    if method not in DEFAULT_SCHEMES:
        raise QsimError(f"methods are {', '.join(METHODS)}: got {method!r}")
    make = importlib.import_module(f".{method}", __package__).recipe
    known = [p for p in inspect.signature(make).parameters if p != "scheme"]
    for name in options:
        if name not in known:
            raise QsimError(f"{method} has no option {name!r}; it has {', '.join(known)}")
    recipe: Recipe = make(DEFAULT_SCHEMES[method] if scheme is None else scheme, **options)
    if not recipe.scheme.weight.is_quantized:
        raise QsimError(
            f"{recipe.scheme.name} keeps weights in {recipe.scheme.weight.format.name}: nothing to quantise"
        )
    return recipe
