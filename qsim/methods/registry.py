"""The methods by name: those of this folder, those of installed packages, and those that a program registers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qsim.errors import QsimError, nearest
from qsim.registry import OpenRegistry
from qsim.scheme import Scheme
from qsim.tables import Table

from .method import Method, Options
from .recipe import Recipe

ENTRY_POINTS = "qsim.methods"
"""The entry-point group of installed packages: each entry is a `Method`."""


class Registry(OpenRegistry[Method]):
    """Methods by name; see `qsim.registry.OpenRegistry`."""

    def __init__(self) -> None:
        super().__init__(
            kind="method", package=__package__, attribute="METHOD", group=ENTRY_POINTS,
            reserved={"none": "leaves a model in 16 bit"},
        )  # fmt: skip

    def check(self, value: object) -> None:
        _check(value)
        assert isinstance(value, Method), "checked above"
        for other in (m for name, m in self._values.items() if name != value.name):
            _check_flags(value, other)

    def home(self, value: Method) -> str:
        return getattr(value.recipe, "__module__", "")


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


def _check_flags(method: Method, other: Method) -> None:
    mine = {o.flag: o for o in method.options.declared().values() if o.flag is not None}
    for theirs in other.options.declared().values():
        if theirs.flag in mine and mine[theirs.flag].switch != theirs.switch:
            raise QsimError(
                f"method {method.name}: its option {theirs.flag} and that of {other.name} must both take a value, or "
                "both none: give it another flag"
            )
