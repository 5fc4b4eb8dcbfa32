"""qsim: what low-precision inference computes, bit for bit.

`import qsim` is light; the names below load their part on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# name -> module that defines it; loaded on first access
_LAZY = {
    "encode": "qsim.formats",
    "decode": "qsim.formats",
    "cast": "qsim.formats",
    "get_format": "qsim.formats",
    "QuantizedTensor": "qsim.scheme",
    "Scheme": "qsim.scheme",
    "get_scheme": "qsim.scheme",
    "quantize": "qsim.scheme",
}

# subpackages that `import qsim` makes reachable
_PACKAGES = ("algorithms", "analysis", "checkpoints", "formats", "kernels", "models", "plots", "scheme", "tensorcore")

if TYPE_CHECKING:
    from qsim.formats import cast, decode, encode, get_format
    from qsim.scheme import QuantizedTensor, Scheme, get_scheme, quantize

__all__ = [
    "QuantizedTensor",
    "Scheme",
    "__version__",
    "cast",
    "decode",
    "encode",
    "get_format",
    "get_scheme",
    "quantize",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    if name in _PACKAGES:
        try:
            return importlib.import_module(f"qsim.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"qsim.{name}":
                raise
    raise AttributeError(f"module 'qsim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
