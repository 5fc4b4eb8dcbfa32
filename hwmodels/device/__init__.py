"""A device as data: reading its table, overriding fields, describing it."""

import importlib
from typing import TYPE_CHECKING, Any

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """What was here before the package had modules, for one release."""
        if name.startswith("__"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module("hwmodels.device.device"), name)
