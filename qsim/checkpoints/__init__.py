"""Checkpoints in and out, in the layouts that serving engines load.

    read(folder)                                  # a Model; its Linears stay quantised as they are stored
    write(model, folder, "compressed-tensors")    # or plain, gptq, gptq_v2, awq, fp8, gguf; "auto" chooses
    write(model, "model.gguf", "gguf", tensor_type="q4_k")
    convert(folder, other, "gptq")                # one layer at a time

Which layout holds which scheme is `layouts_for(scheme)`, and why one does not `reason(scheme, layout)`:

    weights                          plain  compressed-tensors  gptq  gptq_v2  awq  fp8  gguf
    integers of 2, 3, 4, 8 bits                     x            x       x     4 b
    integers of 5, 6, 7 bits                        x
    symmetric 4, 5, 8 bits, groups of 32            x            -       -      -         x
    with minima or superblocks (Q4_K, ...)                                                x
    with integer activations                        x
    E4M3, one scale per tensor                      x                               x
    E4M3, one scale per row                         x
    E4M3, one scale per 128x128 block               x                               x
    MXFP4, weights only                             x                                     x
    MXFP4, MXFP6 (E2M3), MXFP8, NVFP4               x
    act order with g_idx                                         x       x
    16- and 32-bit floats              x                                                  x

`-`: some of them. GPTQ and AWQ want float16 scales in groups or rows; GPTQ version 1 has no zero point 0. Nothing is
changed to fit: what a layout cannot hold is refused before anything is written. The layouts themselves are
`qsim.layouts`. Names load their part on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_LAZY = {
    "LAYOUTS": ("qsim.layouts", "LAYOUTS"),
    "Written": (".writer", "Written"),
    "convert": (".writer", "convert"),
    "default_layout": ("qsim.layouts", "default_layout"),
    "layouts_for": ("qsim.layouts", "layouts_for"),
    "list_layouts": ("qsim.layouts", "list_layouts"),
    "read": ("qsim.models", "load"),
    "reason": ("qsim.layouts", "reason"),
    "write": (".writer", "write"),
}

if TYPE_CHECKING:
    from qsim.layouts import LAYOUTS, default_layout, layouts_for, list_layouts, reason
    from qsim.models import load as read

    from .writer import Written, convert, write

__all__ = ["LAYOUTS", "Written", "convert", "default_layout", "layouts_for", "list_layouts", "read", "reason", "write"]


if not TYPE_CHECKING:  # a type checker would take any name for one that exists

    def __getattr__(name: str) -> Any:
        if name in _LAZY:
            module, attribute = _LAZY[name]
            return getattr(importlib.import_module(module, __name__), attribute)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
