"""The former place of `hwmodels.prediction`, kept for one release; `hwmodels.predict` is the function."""

from hwmodels.predicted import Prediction, Speedup, speedup
from hwmodels.prediction import COMPOSITION, CORRELATION, predict, resolve_scheme
from qsim.former import leave_function

__all__ = ["COMPOSITION", "CORRELATION", "Prediction", "Speedup", "predict", "resolve_scheme", "speedup"]

leave_function(__name__, predict, {name: globals()[name] for name in __all__})
