"""The layouts by name, which of them holds what, and the sentence that says why one does not."""

from __future__ import annotations

from collections.abc import Iterable

from qsim.errors import QsimError
from qsim.registry import OpenRegistry
from qsim.scheme import QuantizedTensor, Scheme, get_scheme, list_schemes
from qsim.tables import Table

from .layout import Layer, Layout

ENTRY_POINTS = "qsim.layouts"
"""The entry-point group of installed packages: each entry is a `Layout`."""


class Registry(OpenRegistry[Layout]):
    """Layouts by name; see `qsim.registry.OpenRegistry`."""

    def __init__(self) -> None:
        super().__init__(
            kind="layout", package=__package__, attribute="LAYOUT", group=ENTRY_POINTS,
            reserved={"auto": "is the first that holds a model"},
        )  # fmt: skip

    def check(self, value: object) -> None:
        if not isinstance(value, Layout):
            raise QsimError(f"a layout must be a qsim.layouts.Layout: got {type(value).__name__}")
        if value.quant_method is None:
            return
        for name, wanted in (("marks", value.marks), ("scale", value.scale), ("plan", value.plan),
                             ("from_config", value.from_config)):  # fmt: skip
            if not wanted:
                raise QsimError(f"layout {value.name}: {name} must be given, since it has a quant_method")
        odd = sorted({*value.marks, *value.scale} - {*value.parts})
        if odd:
            raise QsimError(f"layout {value.name}: parts must name every tensor of a layer: {odd[0]} is missing")

    def home(self, value: Layout) -> str:
        return getattr(value.refuses, "__module__", "")


LAYOUTS = Registry()
"""Every layout by name."""


def register(layout: Layout) -> Layout:
    """Make a layout known to `write`, `convert`, `load`, `list_layouts` and the command line of this program.

    For a layout outside this package. In an installed package, an entry point of the group `qsim.layouts` does the same
    for every program:

        [project.entry-points."qsim.layouts"]
        mine = "my_package.my_module:LAYOUT"

    Returns:
        The layout. Registering the same one again changes nothing; another one of the same name and module takes its
        place, as when a cell of a notebook runs again.

    Raises:
        QsimError: not a `Layout`, a name that cannot be typed or that another one has, or a part of it that is missing.
    """
    return LAYOUTS.register(layout)


def get_layout(name: object, *, auto: bool = False) -> Layout:
    """A layout by its name.

    Arguments:
        auto: whether the message names `auto` too, where the caller takes it.

    Raises:
        QsimError: no layout has it.
    """
    if not isinstance(name, str) or name not in LAYOUTS:
        raise QsimError(f"layout must be one of {', '.join([*(['auto'] if auto else []), *LAYOUTS])}: got {name!r}")
    return LAYOUTS[name]


def list_layouts() -> Table[str]:
    """The layouts of checkpoints, in the order of preference, and how many of the named schemes each holds.

    Iterating gives the names. Which layouts hold a scheme is `layouts_for`.
    """
    schemes = list_schemes()
    held = {name: [s.name for s in schemes if reason(s, name) is None] for name in LAYOUTS}
    return Table(
        columns=("layout", "what it is", "named schemes", "for example"),
        rows=tuple((name, LAYOUTS[name].says, len(held[name]), ", ".join(held[name][:3])) for name in LAYOUTS),
        values=tuple(LAYOUTS),
    )


def reason(value: str | Scheme | QuantizedTensor | Layer, layout: str) -> str | None:
    """Why a layout cannot hold a scheme, or a layer; None when it can.

    Arguments:
        value: a scheme by name or value; a quantised weight, which is checked with its shape, scales and zero points;
            or a `Layer`, which is checked as far as it is known.
        layout: one of `LAYOUTS`.
    """
    found, layer = get_layout(layout), _layer(value)
    if layer.scheme.weight.is_quantized and found.quant_method is not None and layer.shape is not None:
        part = "weight" if layer.tensor is None else layer.tensor.part
        if len(layer.shape) != 2 or part != "weight":
            return f"{layout} holds weights (N, K): got {part} of shape {layer.shape}"
    if not layer.scheme.weight.is_quantized and found.quant_method is not None:
        return f"{layout} holds quantised weights: got {layer.scheme.weight.format.name}"
    return found.refuses(layer)


def _layer(value: str | Scheme | QuantizedTensor | Layer) -> Layer:
    if isinstance(value, Layer):
        return value
    return Layer.of(value) if isinstance(value, QuantizedTensor) else Layer(scheme=get_scheme(value))


def layouts_for(value: str | Scheme | QuantizedTensor | Layer) -> tuple[str, ...]:
    """The layouts that hold a scheme (or a layer, see `reason`), the preferred one first; () when none does.

    >>> layouts_for("w4a16-g128"), layouts_for("fp8-block128"), layouts_for("nf4-g64"), layouts_for("bf16")
    (('compressed-tensors', 'gptq', 'gptq_v2', 'awq'), ('compressed-tensors', 'fp8'), (), ('plain', 'gguf'))
    """
    layer = _layer(value)
    return tuple(name for name in LAYOUTS if reason(layer, name) is None)


def default_layout(scheme: str | Scheme, tensors: Iterable[QuantizedTensor | Layer] = ()) -> str:
    """The layout to write a scheme in: the first of `layouts_for` that also holds these tensors.

    Raises:
        QsimError: no layout does; the sentence names the rule that the first one breaks.
    """
    broken: tuple[str, Layer] | None = None
    kept = [_layer(value) for value in tensors]
    for name in layouts_for(scheme):
        bad = next((layer for layer in kept if reason(layer, name) is not None), None)
        if bad is None:
            return name
        broken = broken or (name, bad)
    if broken is not None:
        raise QsimError(str(refusal(broken[1], broken[0])))
    scheme = get_scheme(scheme)
    label = scheme.name or scheme.weight.format.name
    first = next(name for name, layout in LAYOUTS.items() if layout.quant_method is not None)
    raise QsimError(f"no checkpoint layout holds scheme {label}: {reason(scheme, first)}")


def choose_layout(layers: Iterable[Layer], *, kv_cache: bool) -> str:
    """The layout of a model that is written with `auto`: the first that holds every layer, or the one that holds most.

    Arguments:
        kv_cache: whether the KV cache is quantised.
    """
    kept = list(layers)
    fits = [n for n, found in LAYOUTS.items() if kept or not kv_cache or found.kv_cache_alone]
    found = (name for name in fits if all(reason(layer, name) is None for layer in kept))
    return next(found, next(name for name, layout in LAYOUTS.items() if layout.quant_method is not None))


def refusal(value: QuantizedTensor | Layer, layout: str, name: str = "") -> str | None:
    """The sentence on a layer that a layout cannot hold: layer, rule, what to use instead. None when it can."""
    layer = _layer(value)
    found = reason(layer, layout)
    if found is None:
        return None
    others = layouts_for(layer)
    use = f"use layout {' or '.join(map(repr, others))}" if others else "no other layout holds it"
    if get_layout(layout).quant_method is None:
        use += ", or dequantize=True for its values"
    return f"layer {name or layer.name or '(without a name)'}: {found}; {use}"
