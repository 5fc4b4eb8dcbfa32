"""Measured time of a collective over the size of its message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .surface import Array


@dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective of one library over so many GPUs of a node or NVLink domain.

    Attributes:
        library: `nccl`, `trtllm`, `vllm_graph` or `sglang_graph` (custom kernels in a CUDA graph).
        version: of the library or of the engine that holds it.
        op: `all_reduce`, `all_gather`, `reduce_scatter` or `alltoall`.
        gpus: that take part.
        message_bytes, time_s: (n,) size of the whole tensor of a rank, increasing, and the time, not decreasing.
        held_out_mape: mean absolute error at a size left out, as a fraction.
        band: factors on the time between which 80 % of the sizes left out lie.
    """

    library: str
    version: str
    op: str
    gpus: int
    message_bytes: Array
    time_s: Array
    held_out_mape: float
    band: tuple[float, float]

    def __call__(self, message_bytes: Any) -> Any:
        """Seconds; linear in the logarithms between measured sizes, at the last rate beyond the largest."""
        size = np.asarray(message_bytes, dtype=np.float64)
        known, seconds = np.log(self.message_bytes), np.log(self.time_s)
        inside = np.exp(np.interp(np.log(np.maximum(size, 1.0)), known, seconds))
        return np.where(size > self.message_bytes[-1], size * (self.time_s[-1] / self.message_bytes[-1]), inside)


def collective_of(table: Mapping[str, Any]) -> Collective:
    """The value of a `[[collectives]]` table."""
    return Collective(
        library=table["library"],
        version=table["version"],
        op=table["op"],
        gpus=table["gpus"],
        message_bytes=np.array(table["bytes"], dtype=np.float64),
        time_s=np.array(table["time_us"], dtype=np.float64) * 1e-6,
        held_out_mape=table["held_out_mape"],
        band=(table["band_80"][0], table["band_80"][1]),
    )


def collective_toml(c: Collective) -> str:
    """The `[[collectives]]` table of a value."""
    return (
        "[[collectives]]\n"
        f'library = "{c.library}"\nversion = "{c.version}"\nop = "{c.op}"\ngpus = {c.gpus}\n'
        f"held_out_mape = {c.held_out_mape:.3g}\nband_80 = [{c.band[0]:.4g}, {c.band[1]:.4g}]\n"
        f"bytes = [{', '.join(f'{b:.0f}' for b in c.message_bytes)}]\n"
        f"time_us = [{', '.join(f'{t * 1e6:.4g}' for t in c.time_s)}]\n"
    )
