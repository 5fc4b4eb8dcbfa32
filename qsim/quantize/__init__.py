"""How a tensor becomes codes: schemes, scale rules, quantised tensors.

The package can be called: `qsim.quantize(w, "w4a16-g128")` is `qsim.quantize.quantize(w, "w4a16-g128")`.
"""

import sys
from types import ModuleType
from typing import Any

from .granularity import Granularity
from .presets import get_scheme, list_schemes
from .quantizer import encode_with, find_parameters, quantize, region_range, round_scale
from .rules import RULES, ScaleRule, default_rule, get_rule
from .scheme import Scheme, TensorScheme
from .tensor import QuantizedTensor

__all__ = [
    "Granularity",
    "QuantizedTensor",
    "RULES",
    "ScaleRule",
    "Scheme",
    "TensorScheme",
    "default_rule",
    "encode_with",
    "find_parameters",
    "get_rule",
    "get_scheme",
    "list_schemes",
    "quantize",
    "region_range",
    "round_scale",
]


class _Callable(ModuleType):
    """Both `qsim.quantize(w, scheme)` and `qsim.quantize.Scheme` are names that others use."""

    def __call__(self, *args: Any, **kwargs: Any) -> QuantizedTensor:
        return quantize(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
