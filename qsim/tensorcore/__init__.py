"""How hardware multiplies matrices, bit for bit: tensor-core instructions and the GEMMs that libraries build of them.

    >>> from qsim.tensorcore import matmul, mma
    >>> y = matmul(a_codes, b_codes, preset="cublaslt_fp8_fast")   # the bits of torch._scaled_mm on an H200

Names load their part on first use; `mma`, `matmul` and `probe` bring in Numba.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsim._cache import FOLDER as _FOLDER  # noqa: F401  (before Numba is imported)
from qsim.lazy import on_first_use

_LAZY = {
    "Instruction": "model",
    "Rounding": "model",
    "generic": "model",
    "get_instruction": "model",
    "list_instructions": "model",
    "Preset": "presets",
    "get_preset": "presets",
    "PRESETS": "presets",
    "mma": "gemm",
    "matmul": "gemm",
    "matmul_floats": "floats",
    "Probe": "probing",
    "probe": "probing",
    "explain_dot": "explain",
    "approximate": "functions",
}

if TYPE_CHECKING:
    from .explain import explain_dot
    from .floats import matmul_floats
    from .functions import approximate
    from .gemm import matmul, mma
    from .model import Instruction, Rounding, generic, get_instruction, list_instructions
    from .presets import PRESETS, Preset, get_preset
    from .probing import Probe, probe

__all__ = [
    "Instruction",
    "PRESETS",
    "Preset",
    "Probe",
    "Rounding",
    "approximate",
    "explain_dot",
    "generic",
    "get_instruction",
    "get_preset",
    "list_instructions",
    "matmul",
    "matmul_floats",
    "mma",
    "probe",
]


if not TYPE_CHECKING:  # a type checker would take any name for one that exists
    __getattr__, __dir__ = on_first_use(__name__, _LAZY)
