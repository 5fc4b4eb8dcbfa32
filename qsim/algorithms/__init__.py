"""Post-training quantisation: RTN, GPTQ, AWQ, SmoothQuant and FP8, as functions on arrays and as recipes on a model."""

from .awq import awq
from .fp8 import fp8
from .gptq import gptq
from .record import LayerRecord
from .rtn import rtn
from .smoothquant import smoothquant

__all__ = ["LayerRecord", "awq", "fp8", "gptq", "rtn", "smoothquant"]
