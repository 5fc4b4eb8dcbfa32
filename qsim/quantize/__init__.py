"""How a tensor becomes codes: schemes, scale rules, quantised tensors."""

from .granularity import Granularity
from .presets import get_scheme, list_schemes
from .scheme import Scheme, TensorScheme

__all__ = ["Granularity", "Scheme", "TensorScheme", "get_scheme", "list_schemes"]
