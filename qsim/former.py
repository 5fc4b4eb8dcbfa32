"""Former places of names, kept for one release: a module that has become a function of the same name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any


def leave_function(module: str, function: Callable[..., Any], names: Mapping[str, Any]) -> None:
    """Let `from package.thing import name` keep working where `package.thing` is a function now.

    Python makes a submodule an attribute of its package as soon as it is imported. What it takes is the entry of
    `sys.modules`, so the function is put there, with the names of the former module as its attributes.

    Arguments:
        module: `__name__` of the former module, which calls this at its end.
        function: what `package.thing` is.
        names: what could be imported from the module.
    """
    for name, value in names.items():
        setattr(function, name, value)
    sys.modules[module] = function  # type: ignore[assignment]
