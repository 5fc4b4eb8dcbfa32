"""A scheme as rows of plain values, for tables, JSON and CSV."""

from __future__ import annotations

from typing import Any

from qsim.formats import BlockFormat

from .presets import preset_names
from .scheme import Scheme
from .tensor_scheme import TensorScheme


def brief(part: TensorScheme, *, activation: bool = False) -> str:
    """A part on few columns: `uint4 group(128)`, `float8_e4m3fn tensor static`; scales are left to `part_rows`."""
    if not part.is_quantized or isinstance(part.format, BlockFormat):
        return part.format.name
    static = " static" if activation and not part.dynamic else ""
    return f"{part.format.name} {part.granularity}{static}"


def scheme_row(scheme: Scheme) -> dict[str, Any]:
    """One row of `qsim schemes`: name, bits per weight, the parts, and the presets of compressed-tensors."""
    return {
        "scheme": scheme.name,
        "bits_per_weight": float(scheme.bits_per_weight()),
        "weight": brief(scheme.weight),
        "activation": brief(scheme.activation, activation=True),
        "kv_cache": scheme.kv_cache.format.name,
        "compressed_tensors": ", ".join(preset_names(scheme)),
    }


def describe_scheme(scheme: Scheme) -> dict[str, Any]:
    """What holds of the whole scheme: name, bits per weight, bits of a KV code, compute format, presets.

    Bits per weight are those of a large tensor whose rows divide, with the share of scales and zero points; the bits of
    a KV code are without its scale, whose share depends on the heads.
    """
    assert scheme.compute is not None
    return {
        "scheme": scheme.name,
        "bits_per_weight": float(scheme.bits_per_weight()),
        "bits_of_kv_code": scheme.kv_cache.bits,
        "multiplied_in": scheme.compute.name,
        "compressed_tensors": ", ".join(preset_names(scheme)),
    }


def part_rows(scheme: Scheme) -> list[dict[str, Any]]:
    """The weight, the activation and the KV cache, one row each; what a part does not have is None."""
    return [
        {
            "part": name.replace("_", " "),
            "format": part.format.name,
            "granularity": None if part.granularity is None else str(part.granularity),
            "scale_format": None if part.scale_format is None else part.scale_format.name,
            "zero_point_format": None if part.zero_point_format is None else part.zero_point_format.name,
            "minimum_format": None if part.minimum_format is None else part.minimum_format.name,
            "superblock": part.superblock,
            "scales_found": None if not part.is_quantized else "from each tensor" if part.dynamic else "once, stored",
            "ragged": part.ragged if part.is_quantized else None,
        }
        for name in ("weight", "activation", "kv_cache")
        for part in (getattr(scheme, name),)
    ]
