"""Post-training quantisation: RTN, GPTQ, AWQ, SmoothQuant and FP8, as functions on arrays and as recipes on a model.

    q, record = gptq(weight, hessian, "w4a16-g128", act_order=True)
    result = quantize_model(load("tiny"), "gptq", "w4a16-g128", tiny_text("calibration"))
    result.model, result.records                 # a model of quantised Linears, a DataFrame of one row per layer

One file for each method (`rtn`, `gptq`, `awq`, `smoothquant`, `fp8`), which ends with all that is known of it: a
`Method`, by name in `METHODS`. `register`, or an entry point of the group `qsim.methods`, adds one from outside.
`salient` is the lesson that AWQ starts from.
"""

from qsim._cache import FOLDER as _FOLDER  # noqa: F401  (before Numba is imported)

from .awq import awq
from .calibration import Calibration, InputStatistics, LayerInputs, calibration_of
from .folding import Fold, apply_folds
from .fp8 import fp8
from .gptq import gptq
from .memory import MemoryEstimate
from .method import Method, Options, option
from .outliers import OutlierReport, measure_outliers
from .pipeline import quantize_model
from .recipe import BlockView, Recipe
from .record import LayerRecord, measure
from .registry import METHODS, get_method, list_methods, register
from .result import QuantizationResult, read_records
from .rotation import rotate_model
from .rtn import rtn
from .salient import ChannelSize, channel_sizes, keep_channels, protect, salient_table
from .smoothquant import smoothquant

__all__ = [
    "METHODS",
    "BlockView",
    "Calibration",
    "ChannelSize",
    "Fold",
    "InputStatistics",
    "LayerInputs",
    "LayerRecord",
    "MemoryEstimate",
    "Method",
    "Options",
    "OutlierReport",
    "QuantizationResult",
    "Recipe",
    "apply_folds",
    "awq",
    "calibration_of",
    "channel_sizes",
    "fp8",
    "get_method",
    "gptq",
    "keep_channels",
    "list_methods",
    "measure",
    "measure_outliers",
    "option",
    "protect",
    "quantize_model",
    "read_records",
    "register",
    "rotate_model",
    "rtn",
    "salient_table",
    "smoothquant",
]
