"""qsim: what low-precision inference computes, bit for bit, and, with hwmodels, how long it takes.

    q = qsim.quantize(weight, "w4a16-g128")               # codes, scales, zero points
    y = qsim.linear(x, qsim.pack(q))                      # x @ weight.T, with a fused kernel
    qsim.evaluate(qsim.load("tiny"), text)                # bits per byte
    qsim.predict("h100", "llama-3-8b", "fp8")             # seconds of a step

`list_formats()`, `list_schemes()`, `list_devices()`, ... print as tables of what can be named. `import qsim` is light;
the names below load their part on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# name -> module that defines it; loaded on first access
_LAZY = {
    "QsimError": "qsim.errors",
    "QuantizedTensor": "qsim.scheme",
    "Scheme": "qsim.scheme",
    "Table": "qsim.tables",
    "cast": "qsim.formats",
    "decode": "qsim.formats",
    "encode": "qsim.formats",
    "evaluate": "qsim.models",
    "get_architecture": "hwmodels",
    "get_device": "hwmodels",
    "get_format": "qsim.formats",
    "get_instruction": "qsim.tensorcore",
    "get_scheme": "qsim.scheme",
    "linear": "qsim.kernels",
    "list_devices": "hwmodels",
    "list_formats": "qsim.formats",
    "list_instructions": "qsim.tensorcore",
    "list_layouts": "qsim.layouts",
    "list_methods": "qsim.methods",
    "list_models": "hwmodels",
    "list_pipelines": "qsim.kernels",
    "list_schemes": "qsim.scheme",
    "load": "qsim.models",
    "matmul": "qsim.tensorcore",
    "pack": "qsim.kernels",
    "predict": "hwmodels",
    "probe": "qsim.probing",
    "quantize": "qsim.scheme",
    "quantize_model": "qsim.methods",
}

# subpackages that `import qsim` makes reachable
_PACKAGES = (
    "algorithms", "analysis", "checkpoints", "evidence", "families", "formats", "kernels", "layouts", "methods",
    "models", "plots", "scheme", "study", "tensorcore",
)  # fmt: skip

if TYPE_CHECKING:
    from hwmodels import get_architecture, get_device, list_devices, list_models, predict
    from qsim.errors import QsimError
    from qsim.formats import cast, decode, encode, get_format, list_formats
    from qsim.kernels import list_pipelines, pack
    from qsim.kernels.linear import linear
    from qsim.layouts import list_layouts
    from qsim.methods import list_methods, quantize_model
    from qsim.models import evaluate, load
    from qsim.probing import probe
    from qsim.scheme import QuantizedTensor, Scheme, get_scheme, list_schemes, quantize
    from qsim.tables import Table
    from qsim.tensorcore import get_instruction, list_instructions, matmul

    from . import (
        analysis,
        checkpoints,
        evidence,
        families,
        formats,
        kernels,
        layouts,
        methods,
        models,
        plots,
        scheme,
        study,
        tensorcore,
    )
    from . import methods as algorithms

__all__ = [
    "QsimError", "QuantizedTensor", "Scheme", "Table", "__version__", "algorithms", "analysis", "cast", "checkpoints",
    "decode", "encode", "evaluate", "evidence", "families", "formats", "get_architecture", "get_device", "get_format",
    "get_instruction", "get_scheme", "kernels", "layouts", "linear", "list_devices", "list_formats",
    "list_instructions", "list_layouts", "list_methods", "list_models", "list_pipelines", "list_schemes", "load",
    "matmul", "methods",
    "models", "pack", "plots", "predict", "probe", "quantize", "quantize_model", "scheme", "study", "tensorcore",
]  # fmt: skip


if not TYPE_CHECKING:  # a type checker would take any name for one that exists

    def __getattr__(name: str) -> Any:
        if name in _LAZY:
            value = getattr(importlib.import_module(_LAZY[name]), name)
            globals()[name] = value
            return value
        if name in _PACKAGES:
            return importlib.import_module(f"qsim.{name}")
        raise AttributeError(f"module 'qsim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(n for n in globals() if n.startswith("__"))})
