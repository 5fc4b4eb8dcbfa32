"""Which schemes a kernel family runs: the questions that the families in `known` are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qsim.formats import BlockFormat, IntFormat

if TYPE_CHECKING:
    from qsim.scheme import Scheme


def plain(scheme: Scheme) -> bool:
    """Nothing is quantised."""
    return not scheme.weight.is_quantized and not scheme.activation.is_quantized


def weight_only(scheme: Scheme) -> bool:
    """The weights are quantised and the activations are not."""
    return scheme.weight.is_quantized and not scheme.activation.is_quantized


def integer_weight(scheme: Scheme) -> bool:
    return isinstance(scheme.weight.format, IntFormat)


def block_weight(scheme: Scheme) -> bool:
    """Weights in a block-scaled format, or floats of at most four bits."""
    w = scheme.weight
    return isinstance(w.format, BlockFormat) or (w.bits <= 4 and not isinstance(w.format, IntFormat))


def integers(scheme: Scheme) -> bool:
    """Integer weights and integer activations."""
    return integer_weight(scheme) and isinstance(scheme.activation.format, IntFormat)


def fp8_activation(scheme: Scheme) -> bool:
    return scheme.activation.format.name.startswith("float8")


def fp8(scheme: Scheme) -> bool:
    """FP8 weights and FP8 activations."""
    return scheme.weight.format.name.startswith("float8") and fp8_activation(scheme)


def weight_kind(scheme: Scheme) -> str:
    """What shares a scale of the weight: `tensor`, `channel`, `group`, `block`."""
    return scheme.weight.granularity.kind if scheme.weight.granularity is not None else "tensor"


def missing_product(scheme: Scheme) -> str:
    """What a device lacks that cannot multiply the scheme's operands, in words."""
    w, a = scheme.weight, scheme.activation
    if block_weight(scheme):
        return f"no {w.format.name} product"
    if integers(scheme):
        return "no INT8 product"
    return "no FP8 product" if fp8(scheme) else f"no product of {w.format.name} with {a.format.name}"


def widths(*measured: int) -> Callable[[Scheme], str]:
    """`KernelFamily.stands_in` of a family whose integer weights were measured with these bits: others borrow the
    efficiencies of the next wider ones."""

    def stands_in(scheme: Scheme) -> str:
        w = scheme.weight
        if not integer_weight(scheme) or w.bits in measured:
            return ""
        wider = min((bits for bits in measured if bits > w.bits), default=max(measured))
        return f"no {w.bits:g}-bit kernel was measured: priced with the efficiencies of the {wider}-bit one"

    return stands_in


def both(*questions: Callable[[Scheme], str]) -> Callable[[Scheme], str]:
    """The first of several `KernelFamily.stands_in` that has something to say."""
    return lambda scheme: next((text for question in questions if (text := question(scheme))), "")


def measured_with(
    *, group: int | None = None, kind: str = "group", zero_points: bool = False
) -> Callable[[Scheme], str]:
    """`KernelFamily.stands_in` of a family measured with one sharing of scales.

    Arguments:
        group: size of the groups, None where `kind` has none.
        kind: what shares a scale: `group`, `channel`.
        zero_points: they may be there.
    """

    def stands_in(scheme: Scheme) -> str:
        w = scheme.weight
        if weight_kind(scheme) != kind or w.group_size != group:
            what = f"groups of {group}" if group else f"one scale per {kind}"
            return f"{w.format.name} weights were measured with {what} only: priced with the efficiencies of those"
        if not (w.symmetric or zero_points):
            return (
                f"no {w.bits:g}-bit kernel with zero points was measured: priced with the efficiencies of one without"
            )
        return ""

    return stands_in
