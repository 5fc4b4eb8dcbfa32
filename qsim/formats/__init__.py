"""Number formats: what a number is, and how it becomes a code and back."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qsim._cache import FOLDER as _FOLDER  # noqa: F401  (before Numba is imported)

from .catalogue import get_element_format, get_format, list_formats, p3109, register
from .rounding import NanPolicy, Overflow, Rounding
from .spec import BlockFormat, CodebookFormat, ElementFormat, FloatFormat, Format, IntFormat

if TYPE_CHECKING:
    from .blocks import BlockQuantized, ScaleRule, dequantize_blocks, quantize_blocks
    from .codec import cast, decode, encode
    from .packing import pack, packed_size, unpack

# These load Numba; names of formats do not need it.
_LAZY = {
    "encode": "codec",
    "decode": "codec",
    "cast": "codec",
    "pack": "packing",
    "unpack": "packing",
    "packed_size": "packing",
    "quantize_blocks": "blocks",
    "dequantize_blocks": "blocks",
    "BlockQuantized": "blocks",
    "ScaleRule": "blocks",
}

__all__ = [
    "BlockFormat",
    "BlockQuantized",
    "CodebookFormat",
    "ElementFormat",
    "FloatFormat",
    "Format",
    "IntFormat",
    "NanPolicy",
    "Overflow",
    "Rounding",
    "ScaleRule",
    "cast",
    "decode",
    "dequantize_blocks",
    "encode",
    "get_element_format",
    "get_format",
    "list_formats",
    "p3109",
    "pack",
    "packed_size",
    "quantize_blocks",
    "register",
    "unpack",
]


if not TYPE_CHECKING:  # a type checker would take any name for one that exists

    def __getattr__(name: str) -> Any:
        if name in _LAZY:
            value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
