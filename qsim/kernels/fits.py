"""Which products the VNNI, BF16 and AMX kernels do."""

from __future__ import annotations

from .activations import Activation
from .packing import PackedWeight

_BF16_EXACT = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e2m3", "mxfp6_e3m2",
               "mxfp4")  # fmt: skip


def are_integers(act: Activation, packed: PackedWeight) -> bool:
    """Integers by integers, with integer zero points."""
    return act.integer and packed.kind == "uint" and packed.zero_bits <= 8


def are_bf16(act: Activation) -> bool:
    """Whether every activation is a BF16 number. A group's scale comes after the sums."""
    return act.format_name in _BF16_EXACT


def streams_bytes(act: Activation, packed: PackedWeight) -> bool:
    """Whether `vpdpbusd` multiplies these words as they are."""
    return are_integers(act, packed) and packed.bits in (4, 8)


def streams_bf16(act: Activation, packed: PackedWeight) -> bool:
    """Whether `vdpbf16ps` multiplies these words after a table look-up: 4-bit codes."""
    return are_bf16(act) and packed.bits == 4


def amx_fits(act: Activation, packed: PackedWeight) -> bool:
    """Groups of whole tiles."""
    if are_integers(act, packed):
        return packed.group % 64 == 0
    return are_bf16(act) and packed.padded_k % 32 == 0 and (packed.group % 32 == 0 or folds(act, packed))


def folds(act: Activation, packed: PackedWeight) -> bool:
    """Whether scales go into the weights before the product. A group's scale of the activation comes after its sums."""
    return packed.folds and act.group is None
