"""Number formats: what a number is, and how it becomes a code and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsim._cache import FOLDER as _FOLDER  # noqa: F401  (before Numba is imported)
from qsim.lazy import on_first_use

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
    __getattr__, __dir__ = on_first_use(__name__, _LAZY)
