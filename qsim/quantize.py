"""The former place of `qsim.scheme`, kept for one release; `qsim.quantize` is the function."""

from qsim import scheme as _scheme
from qsim.former import leave_function
from qsim.scheme import *  # noqa: F403
from qsim.scheme import quantize

leave_function(__name__, quantize, {name: getattr(_scheme, name) for name in _scheme.__all__})
