"""What a quantisation method is: one value that says all there is to know of it, and its options as one dataclass."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qsim.errors import QsimError
from qsim.reprs import one_line
from qsim.scheme import Scheme, get_scheme
from qsim.scheme.rules import RULES

from .recipe import Recipe

_KINDS: dict[type, tuple[str, tuple[type, ...]]] = {
    bool: ("True or False", (bool, np.bool_)),
    int: ("an integer", (numbers.Integral,)),
    float: ("a number", (numbers.Real,)),
    str: ("a text", (str,)),
}


@dataclass(frozen=True, kw_only=True)
class Option:
    """What is known of one option of a method, beside its name: see `option`."""

    default: Any
    says: str
    kinds: tuple[type, ...]
    words: Mapping[str, Any]
    flag: str | None
    metavar: str | None
    setting: bool
    optional: bool

    @property
    def switch(self) -> bool:
        """Whether its flag takes no value."""
        return bool in self.kinds and not self.words

    def check(self, name: str, value: Any) -> None:
        """Refuse a value of the wrong type, or a word that the option does not know.

        Raises:
            QsimError: with the option, the rule and the value.
        """
        if value is None and self.optional:
            return
        if any(type(value) is type(known) and value == known for known in self.words.values()):
            return
        for kind in self.kinds:
            if isinstance(value, _KINDS[kind][1]) and (kind is bool or not isinstance(value, bool | np.bool_)):
                return
        rules = [_KINDS[kind][0] for kind in self.kinds] + [
            repr(known) for known in self.words.values() if known is not None and type(known) not in self.kinds
        ]
        rules += ["None"] if self.optional else []
        raise QsimError(f"{name} must be {' or '.join(rules)}: got {value!r}")

    def read(self, text: str) -> Any:
        """The value of a word on the command line.

        Raises:
            QsimError: neither one of `words` nor a number where one is wanted.
        """
        if text in self.words:
            return self.words[text]
        for kind in self.kinds:
            if kind in (int, float, str):
                try:
                    return kind(text)
                except ValueError:
                    continue
        rules = [_KINDS[kind][0] for kind in self.kinds if kind is not bool] + [f"`{word}`" for word in self.words]
        raise QsimError(f"{self.flag} must be {' or '.join(rules)}: got {text!r}")


def option(
    default: Any,
    says: str,
    *,
    kinds: type | tuple[type, ...] | None = None,
    words: Mapping[str, Any] | None = None,
    flag: str | None = "",
    metavar: str | None = None,
    setting: bool = True,
    optional: bool = False,
) -> Any:
    """A field of a method's options, declared once for Python, the command line, the record and resuming.

    Arguments:
        default: its value when it is not given.
        says: one line of help.
        kinds: types of its values, of bool, int, float and str; () where only `words` are values. Left out: the type of
            the default.
        words: further values by the word that stands for each on the command line.
        flag: on the command line of `qsim quantize`; left out: `--` and the name. None: in Python only. A bool without
            `words` takes no value; its flag gives the opposite of the default.
        metavar: what help calls the value.
        setting: whether the value is in the record and decides whether a run can be resumed. False for what the
            scheme says too.
        optional: None is a value too, as it is where it is the default.
    """
    found = (type(default),) if kinds is None else kinds if isinstance(kinds, tuple) else (kinds,)
    declared = Option(
        default=default,
        says=says,
        kinds=found,
        words=words or {},
        flag=flag,
        metavar=metavar,
        setting=setting,
        optional=optional or default is None,
    )
    return field(default=default, metadata={"option": declared})


def scale_rule_option(default: str | None = None) -> Any:
    """The option `scale_rule`, which several methods have: how scales follow from weights, see `qsim.scheme.quantize`.
    None is the format's default."""
    return option(default, f"rule of scales: {', '.join(RULES)}", kinds=str, metavar="NAME", optional=True)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a method; each method has a subclass with one `option` for each field.

    Making one checks the types of all values; `__post_init__` of a subclass calls this one's, then checks ranges.
    """

    ragged: bool = option(
        False, "allow a shorter last group, as a scheme with ragged=True does", flag=None, setting=False
    )

    def __post_init__(self) -> None:
        for name, declared in self.declared().items():
            declared.check(name, getattr(self, name))

    @classmethod
    def declared(cls) -> dict[str, Option]:
        """Every option by name, `ragged` last."""
        found = {}
        for one in dataclasses.fields(cls):
            known = one.metadata["option"]
            flag = f"--{one.name.replace('_', '-')}" if known.flag == "" else known.flag
            found[one.name] = dataclasses.replace(known, flag=flag)
        found["ragged"] = found.pop("ragged")
        return found

    def settings(self) -> dict[str, Any]:
        """What records and resuming hold: every value but those that the scheme says."""
        return {name: getattr(self, name) for name, known in self.declared().items() if known.setting}


def _nothing(rows: int, columns: int, recipe: Recipe) -> int:
    return 0


def rounding_work(rows: int, columns: int) -> float:
    """The work of quantising a layer (N, K) by rounding it, in floating-point operations; for progress bars."""
    return 2.0 * rows * columns * min(columns, 1024)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A quantisation method. Every list, choice, flag, title and table of methods is derived from such values.

    Arguments:
        name: what `quantize_model`, `--method` and a study call it: lower-case letters, digits, `_` and `-`.
        title: what people read, as `GPTQ`.
        says: what it does, in half a line.
        default_scheme: the scheme that it takes when none is given.
        options: its subclass of `Options`.
        refuses: function of a scheme: why the method cannot do it, in one sentence, or None.
        recipe: function (scheme, options) that gives the `Recipe`: what the method needs of calibration, and what it
            does to a layer. The scheme is one that is not refused.
        schemes: further names of schemes, that only this method knows.
        work: function (N, K): the floating-point operations of one layer, for progress.
        memory: function (N, K, recipe): bytes that the solver takes for one layer, on top of what every method takes.
        order: where lists show it: smallest first, then by name.
        unusual: function of a scheme: why a study must not measure the method with it, though the method could do it,
            in one sentence; or None.
        suits: function of a scheme that is neither: whether `qsim study --scheme` measures the method with it.
        usual: function of a scheme: whether this method is what rounds it when nobody names one.
        rank: of methods that fit one scheme, the one of the smallest rank goes through a study's emulated tensor cores.
        searched: function of a number of candidates: options that keep a search to so many, for studies; or None.
        label: what study titles write before the scheme; None is `title`.
        marker, filled: its mark in figures, as matplotlib calls it.
    """

    name: str
    title: str
    says: str
    default_scheme: str
    options: type[Options]
    refuses: Callable[[Scheme], str | None]
    recipe: Callable[[Scheme, Any], Recipe]
    schemes: Mapping[str, str] = field(default_factory=dict)
    work: Callable[[int, int], float] = rounding_work
    memory: Callable[[int, int, Recipe], int] = _nothing
    order: int = 100
    unusual: Callable[[Scheme], str | None] = lambda scheme: None
    suits: Callable[[Scheme], bool] = lambda scheme: True
    usual: Callable[[Scheme], bool] = lambda scheme: False
    rank: int = 50
    searched: Callable[[int], Mapping[str, Any]] | None = None
    label: str | None = None
    marker: str = "p"
    filled: bool = True

    __repr__ = one_line

    def get_scheme(self, scheme: str | Scheme | None) -> Scheme:
        """A scheme by a name, also by one that only this method knows; None is the default."""
        scheme = self.default_scheme if scheme is None else scheme
        return get_scheme(self.schemes.get(scheme, scheme) if isinstance(scheme, str) else scheme)

    def check(self, scheme: Scheme) -> None:
        """Refuse a scheme that the method cannot do.

        Raises:
            QsimError: the method's sentence, or that the scheme quantises no weights.
        """
        reason = self.refuses(scheme)
        if reason is None and not scheme.weight.is_quantized:
            reason = f"{scheme.name} keeps weights in {scheme.weight.format.name}: nothing to quantise"
        if reason is not None:
            raise QsimError(reason)

    def make(self, scheme: str | Scheme | None = None, options: Mapping[str, Any] | None = None) -> Recipe:
        """The recipe for a scheme and options by name.

        Raises:
            QsimError: an option that the method does not have, a value that it refuses, a scheme that it cannot do.
        """
        known = self.options.declared()
        for name in options or {}:
            if name not in known:
                raise QsimError(f"{self.name} has no option {name!r}; it has {', '.join(known)}")
        found = self.options(**(options or {}))
        resolved = self.get_scheme(scheme)
        resolved = resolved.with_ragged() if found.ragged else resolved
        self.check(resolved)
        return self.recipe(resolved, found)
