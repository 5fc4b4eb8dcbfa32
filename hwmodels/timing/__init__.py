"""How long a kernel takes on a device: families, parameters, the soft roofline, operators of a step."""

import importlib
from typing import TYPE_CHECKING, Any

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """What was here before the package had modules, for one release."""
        if name.startswith("__"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        moved = name in ("attention", "attention_time", "check_heads")
        return getattr(importlib.import_module(f"hwmodels.timing.{'attention_kernel' if moved else 'kernel'}"), name)
