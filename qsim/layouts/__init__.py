"""How checkpoints store quantised layers: one file for each layout, which ends with all that is known of it.

    layouts_for("w4a16-g128")                     # the layouts that hold a scheme, or a layer
    reason("w3a16-g128", "awq")                   # why one does not
    LAYOUTS["awq"].encode(q)                      # the tensors of a layer, bit for bit
    read_plan(config, Notes())                    # what a `quantization_config` says of each layer

A `Layout` is found by name in `LAYOUTS`; `register`, or an entry point of the group `qsim.layouts`, adds one from
outside. Models are read by `qsim.load` and written by `qsim.checkpoints`. Names load their part on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsim._cache import FOLDER as _FOLDER  # noqa: F401  (before Numba is imported)
from qsim.lazy import on_first_use

_LAZY = {
    "Fact": "layout",
    "Facts": "layout",
    "LAYOUTS": "registry",
    "Layer": "layout",
    "LayerPlan": "layout",
    "Layout": "layout",
    "Notes": "parts",
    "Parts": "parts",
    "Plan": "layout",
    "Reading": "layout",
    "default_layout": "registry",
    "from_config": "config",
    "get_layout": "registry",
    "layouts_for": "registry",
    "list_layouts": "registry",
    "read_plan": "config",
    "reason": "registry",
    "refusal": "registry",
    "register": "registry",
    "to_config": "config",
    "write_plan": "config",
}

if TYPE_CHECKING:
    from .config import from_config, read_plan, to_config, write_plan
    from .layout import Fact, Facts, Layer, LayerPlan, Layout, Plan, Reading
    from .parts import Notes, Parts
    from .registry import (
        LAYOUTS,
        default_layout,
        get_layout,
        layouts_for,
        list_layouts,
        reason,
        refusal,
        register,
    )

__all__ = [
    "LAYOUTS", "Fact", "Facts", "Layer", "LayerPlan", "Layout", "Notes", "Parts", "Plan", "Reading", "default_layout",
    "from_config", "get_layout", "layouts_for", "list_layouts", "read_plan", "reason", "refusal", "register",
    "to_config", "write_plan",
]  # fmt: skip


if not TYPE_CHECKING:  # a type checker would take any name for one that exists
    __getattr__, __dir__ = on_first_use(__name__, _LAZY)
