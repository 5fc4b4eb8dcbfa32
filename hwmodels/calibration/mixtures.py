"""What was fitted to a fused mixture-of-experts kernel: the parameters of a product's roofline, and what routing adds.

t = (t0 + permute moved / BW + (C^p + M^p)^(1/p)) exp(correction), where C is the arithmetic of whole tiles, and M reads
the weights of the experts that have tokens and adds a time for each of these and for each expert of the GPU. The
correction is a grid over tokens per expert, the width of an expert, and experts that have tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qsim.errors import QsimError

from .fitted import Mixture, Parameters

_NUMBERS = ("permute", "active_ns", "local_ns", "tile", "untuned")


def mixture_of(roofline: Parameters, table: Mapping[str, Any]) -> Mixture:
    """The value of a `[moe.KERNEL]` table, of which `roofline` has been read.

    Raises:
        QsimError: a key is missing or no number.
    """
    try:
        numbers = {name: float(table[name]) for name in _NUMBERS}
    except (KeyError, TypeError, ValueError) as error:
        raise QsimError(
            f"calibration {roofline.origin}: moe.{roofline.kernel} must have {', '.join(_NUMBERS)} as numbers: {error}"
        ) from error
    return Mixture(
        roofline=roofline, permute=numbers["permute"], active_s=numbers["active_ns"] * 1e-9,
        local_s=numbers["local_ns"] * 1e-9, tile=numbers["tile"], untuned=numbers["untuned"],
    )  # fmt: skip


def mixture_lines(m: Mixture) -> list[str]:
    """Lines of TOML that a `[moe.KERNEL]` table has beside those of its roofline."""
    return [
        f"permute = {m.permute:.4g}", f"active_ns = {m.active_s * 1e9:.4g}", f"local_ns = {m.local_s * 1e9:.4g}",
        f"tile = {m.tile:g}", f"untuned = {m.untuned:.3g}",
    ]  # fmt: skip
