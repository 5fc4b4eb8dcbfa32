"""Number formats as values for the page's codec."""

from __future__ import annotations

from typing import Any

from qsim.formats import BlockFormat, CodebookFormat, Format, IntFormat, list_formats

LARGEST = 8
"""Bits of the widest format that the page shows."""


def formats() -> dict[str, Any]:
    """Every format of at most eight bits, and the block formats of these."""
    known = list(list_formats())
    elements = {f.name: element(f) for f in known if not isinstance(f, BlockFormat) and f.bits <= LARGEST}
    blocks = {
        f.name: {"element": f.element.name, "scale": f.scale.name, "size": f.block_size, "tensor_scale": f.tensor_scale}
        for f in known if isinstance(f, BlockFormat)
    }  # fmt: skip
    return {"elements": elements, "blocks": blocks}


def element(f: Format) -> dict[str, Any]:
    """What the codec reads of a format."""
    assert not isinstance(f, BlockFormat)
    common = {"bits": f.bits, "max": f.max, "emax": f.emax, "nan": f.nan_code}
    if isinstance(f, CodebookFormat):
        return {"type": "table", "table": list(f.table), **common}
    if isinstance(f, IntFormat):
        return {"type": "int", "signed": f.signed, "fraction_bits": f.fraction_bits, "min_integer": f.min_integer,
                "max_integer": f.max_integer, **common}  # fmt: skip
    return {"type": "float", "signed": f.signed, "m": f.mantissa_bits, "bias": f.bias, "subnormals": f.has_subnormals,
            "sign": f.sign_mask, "max_magnitude": f.max_magnitude_code, "inf": f.has_inf,
            "negative_zero": f.has_negative_zero, **common}  # fmt: skip
