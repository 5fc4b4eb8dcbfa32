"""The former places of modules, kept for one release: `import hwmodels.load` finds `hwmodels.device.load`."""

from __future__ import annotations

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

FORMER = {
    "load": "device.load",
    "architecture": "workload.architecture", "footprint": "workload.footprint", "operators": "workload.operators",
    "step": "workload.step", "kernels": "timing.families", "profiles": "timing.profiles",
    "parameters": "timing.parameters", "grouped": "timing.grouped", "execution": "timing.execution",
    "grid": "calibration.grid", "neighbours": "calibration.neighbours", "surface": "calibration.surface",
    "calibration.fit": "fitting.fit", "calibration.build": "fitting.build", "calibration.sources": "fitting.sources",
    "calibration.flash": "fitting.flash", "host": "fitting.host", "validate": "validation.validate",
    "report": "validation.report", "published": "validation.published", "laws": "validation.laws",
    "claims": "validation.claims",
}  # fmt: skip


class _Former(MetaPathFinder, Loader):
    """Gives the module of today under its former name: the same object, so that no class exists twice."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package, _, rest = name.partition(".")
        return ModuleSpec(name, self) if package == "hwmodels" and rest in FORMER else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(f"hwmodels.{FORMER[spec.name.partition('.')[2]]}")
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state  # the import system has put the former name's here


def forward() -> None:
    """Let the import system look here first."""
    if not any(isinstance(finder, _Former) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Former())
