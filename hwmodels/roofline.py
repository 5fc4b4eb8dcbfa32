"""The former place of `hwmodels.limits`, kept for one release; `hwmodels.roofline` is the function."""

from hwmodels.limits import Roofline, roofline
from qsim.former import leave_function

__all__ = ["Roofline", "roofline"]

leave_function(__name__, roofline, {name: globals()[name] for name in __all__})
