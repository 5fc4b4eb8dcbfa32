"""How a tensor becomes codes: schemes, scale rules, quantised tensors."""

from .from_codes import from_codes
from .granularity import Granularity
from .presets import FIELD, get_scheme, list_schemes, preset_names
from .quantizer import encode_with, find_parameters, quantize, region_range, round_scale
from .rules import RULES, ScaleRule, default_rule, get_rule
from .scheme import Scheme
from .shared import shared_scale, shares_scale, tensor_scale_of, with_tensor_scale
from .tensor import QuantizedTensor
from .tensor_scheme import TensorScheme

__all__ = [
    "FIELD",
    "Granularity",
    "QuantizedTensor",
    "RULES",
    "ScaleRule",
    "Scheme",
    "TensorScheme",
    "default_rule",
    "encode_with",
    "find_parameters",
    "from_codes",
    "get_rule",
    "get_scheme",
    "list_schemes",
    "preset_names",
    "quantize",
    "region_range",
    "round_scale",
    "shared_scale",
    "shares_scale",
    "tensor_scale_of",
    "with_tensor_scale",
]

vars(quantize)["from_codes"] = from_codes  # qsim.quantize.from_codes: the other way to a quantised tensor
