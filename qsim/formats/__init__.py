"""Number formats: what a number is, and how it becomes a code and back."""

from .catalogue import get_element_format, get_format, list_formats, p3109, register
from .spec import BlockFormat, CodebookFormat, ElementFormat, FloatFormat, Format, IntFormat

__all__ = [
    "BlockFormat",
    "CodebookFormat",
    "ElementFormat",
    "FloatFormat",
    "Format",
    "IntFormat",
    "get_element_format",
    "get_format",
    "list_formats",
    "p3109",
    "register",
]
