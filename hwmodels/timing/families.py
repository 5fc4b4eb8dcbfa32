"""The kernel families by name: those of `known`, those of installed packages, and those that a program registers."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from qsim.errors import QsimError, nearest
from qsim.registry import add_installed

from .family import AttentionFamily, KernelFamily

ENTRY_POINTS = "hwmodels.kernels"
"""The entry-point group of installed packages: each entry is a `KernelFamily` or an `AttentionFamily`."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_F = TypeVar("_F", KernelFamily, AttentionFamily)


class Families(Mapping[str, _F]):
    """Families by name, in the order of preference; what is shipped and installed is loaded at first use."""

    def __init__(self, load: Callable[[], None]) -> None:
        self._load = load
        self._families: dict[str, _F] = {}

    def __getitem__(self, name: str) -> _F:
        self._load()
        return self._families[name]

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(self._families)

    def __len__(self) -> int:
        self._load()
        return len(self._families)

    def put(self, family: _F) -> None:
        together: list[_F] = [f for f in self._families.values() if f.name != family.name]
        together.append(family)
        together.sort(key=_preference)
        self._families = {f.name: f for f in together}


def _preference(family: KernelFamily | AttentionFamily) -> int:
    return family.preference


class Registry:
    """All families; see `register_kernels`."""

    def __init__(self) -> None:
        self.products: Families[KernelFamily] = Families(self.load)
        self.attention: Families[AttentionFamily] = Families(self.load)
        self._loaded = False
        self._shipped: frozenset[str] = frozenset()

    def load(self) -> None:
        """Find what is shipped and installed, once. A family of a package that cannot be loaded is left out, with a
        warning that names the package."""
        if self._loaded:
            return
        self._loaded = True  # first, since a module that is loaded here may register its family itself
        for module in pkgutil.iter_modules([str(Path(__file__).parent / "known")]):
            found = importlib.import_module(f"{__package__}.known.{module.name}")
            for family in (*getattr(found, "FAMILIES", ()), *getattr(found, "ATTENTION", ())):
                self._add(family)
        self._shipped = frozenset((*self.products, *self.attention))
        add_installed("kernel", ENTRY_POINTS, self._add)

    def add(self, family: KernelFamily | AttentionFamily) -> None:
        """See `register_kernels`."""
        self.load()
        self._add(family)

    def _add(self, family: KernelFamily | AttentionFamily) -> None:
        if not isinstance(family, KernelFamily | AttentionFamily):
            raise QsimError(f"a kernel family must be a KernelFamily or AttentionFamily: got {type(family).__name__}")
        if not _NAME.fullmatch(family.name) or family.name == "ideal":
            raise QsimError(
                "the name of a kernel family must be lower-case letters, digits and _, and not `ideal`: got "
                f"{family.name!r}"
            )
        if family.name in self._shipped:
            raise QsimError(f"hwmodels has a kernel family {family.name!r} already: give yours another name")
        if isinstance(family, AttentionFamily):
            self.attention.put(family)
        else:
            self.products.put(family)


REGISTRY = Registry()
FAMILIES: Mapping[str, KernelFamily] = REGISTRY.products
"""Every family of matrix products, by name."""
ATTENTION: Mapping[str, AttentionFamily] = REGISTRY.attention
"""Every family of attention kernels, by name."""


def register_kernels(family: KernelFamily | AttentionFamily) -> None:
    """Make a kernel family known to `predict`, `gemm`, `attention`, `kernel_families` and `qsim`.

    For a family outside this package. In an installed package, an entry point of the group `hwmodels.kernels` does the
    same for every program, the command line included:

        [project.entry-points."hwmodels.kernels"]
        mine = "my_package.my_module:FAMILY"

    Its parameters on a device go into `KernelFamily.measured`: what `hwmodels.fit` returns, or what `read_parameters`
    reads of the TOML that it wrote. Registering a family again replaces it, as when a cell of a notebook runs again.

    Raises:
        QsimError: not a family, a name that cannot be typed, or the name of a family of this package.
    """
    REGISTRY.add(family)


def get_family(name: str) -> KernelFamily:
    """The kernel family of that name.

    Raises:
        QsimError: unknown name; the nearest are listed.
    """
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise QsimError(nearest("kernel", name, [*FAMILIES, "ideal"]))
    return family


def get_attention(name: str) -> AttentionFamily:
    """The attention kernel of that name.

    Raises:
        QsimError: unknown name; the nearest are listed.
    """
    family = ATTENTION.get(name) if isinstance(name, str) else None
    if family is None:
        raise QsimError(nearest("attention kernel", name, ATTENTION))
    return family


def grouped_family(kernel: str) -> str:
    """The family that multiplies the experts of a mixture where `kernel` multiplies one matrix; "" for none."""
    return get_family(kernel).grouped
