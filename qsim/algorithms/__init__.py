"""Post-training quantisation: RTN, GPTQ, AWQ, SmoothQuant and FP8, as functions on arrays and as recipes on a model."""

from .gptq import gptq
from .record import LayerRecord
from .rtn import rtn

__all__ = ["LayerRecord", "gptq", "rtn"]
