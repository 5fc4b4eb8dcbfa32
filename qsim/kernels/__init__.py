"""Fused low-bit matrix products that run fast on this computer's CPU.

    packed = pack(quantize(w, "w4a16-g128"))
    y = linear(x, packed)          # x @ w.T

`QSIM_KERNELS=portable` (or `vnni`) keeps to the paths up to that one; see `features`.
"""

from qsim._cache import FOLDER as _FOLDER  # noqa: F401  (before Numba is imported)

from .features import available_paths
from .identify import identify
from .linear import linear
from .packing import PackedWeight, has_fused_kernel, pack
from .pipelines import Pipeline, get_pipeline, list_pipelines
from .probing import PipelineProbe, probe_pipeline
from .traffic import Traffic, traffic

__all__ = ["PackedWeight", "Pipeline", "PipelineProbe", "Traffic", "available_paths", "get_pipeline",
           "has_fused_kernel", "identify", "linear", "list_pipelines", "pack", "probe_pipeline", "traffic"]  # fmt: skip
