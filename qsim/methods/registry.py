"""The methods by name: those of this folder, those of installed packages, and those that a program registers."""

from __future__ import annotations

import importlib
import pkgutil
import re
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from qsim.errors import QsimError, nearest
from qsim.scheme import Scheme
from qsim.tables import Table

from .method import Method, Options
from .recipe import Recipe

ENTRY_POINTS = "qsim.methods"
"""The entry-point group of installed packages: each entry is a `Method`."""

_NAME = re.compile(r"[a-z][a-z0-9_-]*")


class Registry(Mapping[str, Method]):
    """Methods by name, in the order of lists. What lies in the folder and in installed packages is loaded at first use.

    A method of an installed package that cannot be loaded is left out, with a warning that names the package.
    """

    def __init__(self) -> None:
        self._methods: dict[str, Method] = {}
        self._loaded = False

    def register(self, method: Method) -> Method:
        """Add a method; see `register`."""
        self._load()
        self._add(method)
        return method

    def __getitem__(self, name: str) -> Method:
        self._load()
        return self._methods[name]

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._methods, key=lambda name: (self._methods[name].order, name)))

    def __len__(self) -> int:
        self._load()
        return len(self._methods)

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True  # first, since a module that is loaded here may register its method itself
        for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
            found = getattr(importlib.import_module(f"{__package__}.{module.name}"), "METHOD", None)
            if found is not None:
                self._add(found)
        for entry in entry_points(group=ENTRY_POINTS):
            try:
                self._add(entry.load())
            except Exception as error:
                package = entry.dist.name if entry.dist is not None else "an installed package"
                warnings.warn(f"the method {entry.name} of {package} cannot be loaded: {error}", stacklevel=3)

    def _add(self, method: Method) -> None:
        _check(method)
        known = self._methods.get(method.name)
        if known is not None and known != method and not _replaces(method, known):
            raise QsimError(f"two methods are called {method.name!r}: give the one that is added another name")
        for other in (m for m in self._methods.values() if m.name != method.name):
            _check_flags(method, other)
        self._methods[method.name] = method


METHODS = Registry()
"""Every method by name."""


def register(method: Method) -> Method:
    """Make a method known to `quantize_model`, `list_methods`, `qsim quantize` and `qsim study`.

    For a method outside this package. In an installed package, an entry point of the group `qsim.methods` does the same
    for every program, the command line included:

        [project.entry-points."qsim.methods"]
        mine = "my_package.my_module:METHOD"

    Returns:
        The method. Registering the same one again changes nothing; another one of the same name and module takes its
        place, as when a cell of a notebook runs again.

    Raises:
        QsimError: not a `Method`, a name that cannot be typed or that another one has, options that are not a frozen
            dataclass of `option`s, a flag that another method's option has with a value where this has none, or the
            other way round.
    """
    return METHODS.register(method)


def get_method(name: object) -> Method:
    """A method by its name.

    Raises:
        QsimError: no method has it.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise QsimError(nearest("method", name, METHODS))
    return METHODS[name]


def list_methods() -> Table[str]:
    """The methods of `quantize_model`, each with the scheme that it takes when none is given. Iterating gives names."""
    return Table(
        columns=("method", "default scheme", "what it does"),
        rows=tuple((m.name, m.default_scheme, m.says) for m in METHODS.values()),
        values=tuple(METHODS),
    )


def get_recipe(method: str, scheme: str | Scheme | None, options: Mapping[str, Any]) -> Recipe:
    """The recipe of a method.

    Raises:
        ValueError: an unknown method or option, a scheme that the method cannot do.
    """
    return get_method(method).make(scheme, options)


def _check(method: object) -> None:
    if not isinstance(method, Method):
        raise QsimError(f"a method must be a qsim.methods.Method: got {type(method).__name__}")
    if not _NAME.fullmatch(method.name) or method.name == "none":
        raise QsimError(
            "the name of a method must be lower-case letters, digits, _ and -, and not `none`, which leaves a model in "
            f"16 bit: got {method.name!r}"
        )
    kind = method.options
    if not (isinstance(kind, type) and issubclass(kind, Options)):
        raise QsimError(f"method {method.name}: options must be a subclass of qsim.methods.Options: got {kind!r}")
    missing = set(kind.__annotations__) - set(kind.__dataclass_fields__)
    plain = [name for name, one in kind.__dataclass_fields__.items() if "option" not in one.metadata]
    if missing or plain:
        culprit = sorted(missing or plain)[0]
        raise QsimError(
            f"method {method.name}: {kind.__name__} must be a frozen, keyword-only dataclass whose fields are all "
            f"`name: type = option(...)`: {culprit} is not"
        )


def _replaces(method: Method, known: Method) -> bool:
    """Whether a module outside the package, as a notebook, has made its own method again."""
    homes = {getattr(one.recipe, "__module__", "") for one in (method, known)}
    return len(homes) == 1 and not next(iter(homes)).startswith(f"{__package__}.")


def _check_flags(method: Method, other: Method) -> None:
    mine = {o.flag: o for o in method.options.declared().values() if o.flag is not None}
    for theirs in other.options.declared().values():
        if theirs.flag in mine and mine[theirs.flag].switch != theirs.switch:
            raise QsimError(
                f"method {method.name}: its option {theirs.flag} and that of {other.name} must both take a value, or "
                "both none: give it another flag"
            )
