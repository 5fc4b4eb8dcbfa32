"""What is declared once, by name: values of a folder, of installed packages, and those that a program adds.

A method, a layout, ... is one value in one module. A registry finds the values of its package's modules, and of the
entry points of other packages, at first use; every list, choice and table is derived from it.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, Protocol, TypeVar

from qsim.errors import QsimError


class Declared(Protocol):
    """What every declared value has."""

    @property
    def name(self) -> str:
        """What programs and people call it."""
        ...

    @property
    def order(self) -> int:
        """Where lists show it: smallest first, then by name."""
        ...


T = TypeVar("T", bound=Declared)
_NAME = re.compile(r"[a-z][a-z0-9_-]*")


def add_installed(kind: str, group: str, add: Callable[[Any], object]) -> None:
    """Add what installed packages declare by entry points of a group.

    One that cannot be loaded or added is left out, with a warning that names the package.

    Arguments:
        kind: what one is called in the warning.
        group: of entry points, as a package's `pyproject.toml` names it.
        add: takes each value.
    """
    for entry in entry_points(group=group):
        try:
            add(entry.load())
        except Exception as error:
            package = entry.dist.name if entry.dist is not None else "an installed package"
            warnings.warn(f"the {kind} {entry.name} of {package} cannot be loaded: {error}", stacklevel=3)


class OpenRegistry(Mapping[str, T], Generic[T]):
    """Values by name, in the order of lists. What lies in the package and in installed ones is loaded at first use.

    A value of an installed package that cannot be loaded is left out, with a warning that names the package.

    Arguments:
        kind: what one is called in messages, e.g. `method`.
        package: whose modules are searched, each for one value.
        attribute: the name of that value in its module.
        group: of entry points of installed packages, each of which is a value.
        reserved: names that none may have, each with what it means.
    """

    def __init__(self, *, kind: str, package: str, attribute: str, group: str, reserved: Mapping[str, str]) -> None:
        self.kind, self.package, self.attribute, self.group = kind, package, attribute, group
        self.reserved = reserved
        self._values: dict[str, T] = {}
        self._loaded = False

    def register(self, value: T) -> T:
        """Add a value.

        Returns:
            The value. Registering the same one again changes nothing; another one of the same name and module takes its
            place, as when a cell of a notebook runs again.

        Raises:
            QsimError: as `check`, or a name that another one has.
        """
        self._load()
        self._add(value)
        return value

    def check(self, value: object) -> None:
        """Refuse what is no such value, or does not go together with the others.

        Raises:
            QsimError: why.
        """
        raise NotImplementedError

    def home(self, value: T) -> str:
        """The module that has made a value."""
        raise NotImplementedError

    def __getitem__(self, name: str) -> T:
        self._load()
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._values, key=lambda name: (self._values[name].order, name)))

    def __len__(self) -> int:
        self._load()
        return len(self._values)

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True  # first, since a module that is loaded here may register its value itself
        for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
            found = getattr(importlib.import_module(f"{self.package}.{module.name}"), self.attribute, None)
            if found is not None:
                self._add(found)
        add_installed(self.kind, self.group, self._add)

    def _add(self, value: T) -> None:
        self.check(value)
        if not _NAME.fullmatch(value.name) or value.name in self.reserved:
            but = "".join(f", and not `{name}`, which {why}" for name, why in self.reserved.items())
            raise QsimError(
                f"the name of a {self.kind} must be lower-case letters, digits, _ and -{but}: got {value.name!r}"
            )
        known = self._values.get(value.name)
        if known is not None and known != value and not self._replaces(value, known):
            raise QsimError(f"two {self.kind}s are called {value.name!r}: give the one that is added another name")
        self._values[value.name] = value

    def _replaces(self, value: T, known: T) -> bool:
        """Whether a module outside the package, as a notebook, has made its own value again."""
        homes = {self.home(value), self.home(known)}
        return len(homes) == 1 and not next(iter(homes)).startswith(f"{self.package}.")
