"""A heavy library that annotations name: it is imported when something of it is looked up."""

from __future__ import annotations

import importlib
from typing import Any


class LazyModule:
    """Stands for a module in a namespace, so that `typing.get_type_hints` finds it, without importing it.

    Arguments:
        name: of the module, as in an import statement.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)

    def __repr__(self) -> str:
        return f"LazyModule({self._name!r})"
