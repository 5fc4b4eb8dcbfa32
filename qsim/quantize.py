"""The former place of `qsim.scheme`, kept for one release: `from qsim.quantize import get_scheme` still works.

`qsim.quantize` is the function. Python makes a submodule an attribute of its package once it is imported, so this one
leaves the function in its place, with the former names as attributes.
"""

import sys
from typing import Any

from qsim import scheme as _scheme
from qsim.scheme import *  # noqa: F403
from qsim.scheme import quantize

_function: Any = quantize
for _name in _scheme.__all__:
    setattr(_function, _name, getattr(_scheme, _name))
sys.modules[__name__] = _function
