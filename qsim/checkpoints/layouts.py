"""Which layout holds which scheme, and the sentence that says why one does not.

`layouts_for` answers for a scheme, `reason` for a scheme or a quantised tensor; the writers refuse with the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from qsim.errors import QsimError
from qsim.safetensors import Stored
from qsim.scheme import QuantizedTensor, Scheme, get_scheme, list_schemes
from qsim.tables import Table

from . import awq, compressed, fp8, gptq


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way to store quantised layers.

    Arguments:
        name: what `write` and `convert` call it.
        method: the `quant_method` of its config.
        scheme_reason: why it cannot hold a scheme; None when it can.
        shape_reason: why it cannot hold a weight of that shape, whose scheme it can hold; the last argument says
            whether its columns are in act order, in groups that are not consecutive.
        tensor_reason: the same, and why not the scales and zero points of a tensor.
        encode: a layer's tensors by their last name.
        remark: what a user must know of a tensor that is stored this way, or None.
    """

    name: str
    method: str
    scheme_reason: Callable[[Scheme], str | None]
    shape_reason: Callable[[Scheme, tuple[int, ...], bool], str | None]
    tensor_reason: Callable[[QuantizedTensor], str | None]
    encode: Callable[[QuantizedTensor], dict[str, Stored]]
    remark: Callable[[QuantizedTensor], str | None] = lambda qt: None


# In the order of preference: compressed-tensors holds most and every engine reads it.
QUANTIZED = {
    layout.name: layout
    for layout in (
        Layout(
            name="compressed-tensors",
            method="compressed-tensors",
            scheme_reason=compressed.scheme_reason,
            shape_reason=compressed.shape_reason,
            tensor_reason=compressed.tensor_reason,
            encode=compressed.encode,
        ),
        *(
            Layout(
                name=name,
                method="gptq",
                scheme_reason=partial(gptq.scheme_reason, version=version),
                shape_reason=gptq.shape_reason,
                tensor_reason=partial(gptq.tensor_reason, version=version),
                encode=partial(gptq.encode, version=version),
                remark=gptq.remark,
            )
            for name, version in (("gptq", 1), ("gptq_v2", 2))
        ),
        Layout(
            name="awq",
            method="awq",
            scheme_reason=awq.scheme_reason,
            shape_reason=awq.shape_reason,
            tensor_reason=awq.tensor_reason,
            encode=awq.encode,
        ),
        Layout(
            name="fp8",
            method="fp8",
            scheme_reason=fp8.scheme_reason,
            shape_reason=fp8.shape_reason,
            tensor_reason=fp8.tensor_reason,
            encode=fp8.encode,
            remark=fp8.remark,
        ),
    )
}
LAYOUTS = ("plain", *QUANTIZED)


def list_layouts() -> Table[str]:
    """The layouts of checkpoint folders, in the order of preference, and how many of the named schemes each holds.

    Iterating gives the names. Which layouts hold a scheme is `layouts_for`.
    """
    schemes = list_schemes()
    return Table(
        columns=("layout", "quant_method", "named schemes", "for example"),
        rows=tuple(_row(name, [s.name for s in schemes if reason(s, name) is None]) for name in LAYOUTS),
        values=LAYOUTS,
    )


def _row(name: str, held: list[str]) -> tuple[str, str | None, int, str]:
    method = QUANTIZED[name].method if name in QUANTIZED else None
    return name, method, len(held), ", ".join(held[:3])


def check_layout(name: str) -> str:
    """The name of a layout.

    Raises:
        ValueError: an unknown one.
    """
    if name not in LAYOUTS:
        raise QsimError(f"layout must be one of {', '.join(LAYOUTS)}: got {name!r}")
    return name


def reason(value: str | Scheme | QuantizedTensor, layout: str) -> str | None:
    """Why a layout cannot hold a scheme, or a tensor; None when it can.

    Arguments:
        value: a scheme by name or value, or a quantised weight, which is checked with its shape, scales and zero
            points.
        layout: one of `LAYOUTS`.
    """
    check_layout(layout)
    scheme = value.scheme if isinstance(value, QuantizedTensor) else get_scheme(value)
    if layout == "plain":
        return (
            f"plain holds unquantised weights: got {scheme.weight.format.name}" if scheme.weight.is_quantized else None
        )
    if not scheme.weight.is_quantized:
        return f"{layout} holds quantised weights: got {scheme.weight.format.name}"
    if isinstance(value, QuantizedTensor) and (len(value.shape) != 2 or value.part != "weight"):
        return f"{layout} holds weights (N, K): got {value.part} of shape {value.shape}"
    found = QUANTIZED[layout].scheme_reason(scheme)
    if found is None and isinstance(value, QuantizedTensor):
        found = QUANTIZED[layout].tensor_reason(value)
    return found


def layouts_for(scheme: str | Scheme | QuantizedTensor) -> tuple[str, ...]:
    """The layouts that hold a scheme (or a quantised tensor), the preferred one first; () when none does.

    >>> layouts_for("w4a16-g128"), layouts_for("fp8-block128"), layouts_for("nf4-g64"), layouts_for("bf16")
    (('compressed-tensors', 'gptq', 'gptq_v2', 'awq'), ('compressed-tensors', 'fp8'), (), ('plain',))
    """
    return tuple(name for name in (*QUANTIZED, "plain") if reason(scheme, name) is None)


def default_layout(scheme: str | Scheme, tensors: Iterable[QuantizedTensor] = ()) -> str:
    """The layout to write a scheme in: the first of `layouts_for` that also holds these tensors.

    Raises:
        ValueError: no layout does; the sentence names the rule that the first one breaks.
    """
    candidates = layouts_for(scheme)
    broken: tuple[str, QuantizedTensor] | None = None
    kept = list(tensors)
    for name in candidates:
        bad = next((qt for qt in kept if reason(qt, name) is not None), None)
        if bad is None:
            return name
        broken = broken or (name, bad)
    if broken is not None:
        why = refusal(broken[1], broken[0])
        assert why is not None, "the tensor was refused above"
        raise QsimError(why)
    scheme = get_scheme(scheme)
    label = scheme.name or scheme.weight.format.name
    raise QsimError(f"no checkpoint layout holds scheme {label}: {reason(scheme, next(iter(QUANTIZED)))}")


def default_scheme(layout: str, usual: str) -> str:
    """The scheme to quantise to when none is asked for.

    Arguments:
        layout: `auto` or one of `LAYOUTS`.
        usual: the method's own default.

    Returns:
        `usual`, but for the GPTQ layouts its symmetric twin: the fast kernels of engines read no other (`gptq.remark`).
    """
    symmetric = layout not in QUANTIZED or QUANTIZED[layout].method != "gptq" or get_scheme(usual).weight.symmetric
    return usual if symmetric else f"{usual}-sym"


def refusal(qt: QuantizedTensor, layout: str, name: str = "") -> str | None:
    """The sentence on a tensor that a layout cannot hold: layer, rule, what to use instead. None when it can."""
    found = reason(qt, layout)
    if found is None:
        return None
    others = layouts_for(qt)
    use = f"use layout {' or '.join(map(repr, others))}" if others else "no other layout holds it"
    if layout == "plain":
        use += ", or dequantize=True for its values"
    return f"layer {name or qt.name or '(without a name)'}: {found}; {use}"
