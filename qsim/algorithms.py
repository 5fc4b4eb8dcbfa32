"""The former place of `qsim.methods`, kept for one release: `qsim.algorithms` is the same package."""

import importlib
import pkgutil
import sys

from qsim import methods as _methods
from qsim.methods import *  # noqa: F403  (for type checkers)

for _module in pkgutil.iter_modules(_methods.__path__):  # not a second copy of any class
    sys.modules[f"{__name__}.{_module.name}"] = importlib.import_module(f"{_methods.__name__}.{_module.name}")
sys.modules[__name__] = _methods
