"""FlashAttention-2 and -3 on an H100, from the bars that their authors published (forward, 16-bit, 16k tokens).

The structure of the kernel, how much of the exponentials' time the products do not hide, is fitted on the bars of
FlashAttention-2; FlashAttention-3 has the same structure and one number of its own, the share of the tensor-core peak.
A row of FlashAttention-3 is predicted with that number from the other rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from qsim.errors import QsimError

from ..calibration.fitted import Parameters
from ..device.device import Device
from ..device.load import get_device
from ..workload.operators import attention_cost
from .fit import Rows, bands, judge, predict_rows

CITATION = (
    "Dao-AILab/flash-attention, assets/flash3_fp16_fwd.png (bars labelled), H100 SXM5, with FlashAttention-2 beside"
)
HIDDEN = 2048
"""Query heads times head dimension in those bars; keys and values have as many heads."""
SHAPE = Parameters(kernel="fa2", t0_s=5e-6, eta_compute=0.5, eta_memory=0.85, p=2.0)
"""What five bars cannot tell: launch, reached bandwidth (as in the copies of these devices), and a soft maximum."""


def flash_rows(published: Any, *, baseline: bool) -> Rows:
    """The bars as rows: of FlashAttention-3, or of the baseline FlashAttention-2; x is the sequence.

    Raises:
        ValueError: the table has no such rows.
    """
    mine = published[published.id.str.startswith("FA3-")]
    if not len(mine):
        raise QsimError("published.csv has no rows FA3-*: the flash-attention bars")
    device = get_device("h100-sxm")
    rate = (mine.baseline_value if baseline else mine.value).to_numpy(dtype=np.float64) * 1e12
    seq, batch = (np.array([float(v) for v in mine[c]]) for c in ("input_len", "batch"))
    dim = np.where(mine.model.str.contains("hd64"), 64.0, 128.0)
    causal = ~mine.model.str.contains("noncausal").to_numpy()
    flop = 4 * batch * HIDDEN * seq * seq * np.where(causal, 0.5, 1.0)  # as the authors count them
    return _rows(device, batch, seq, dim, causal, flop / rate)


def _rows(device: Device, batch: Any, seq: Any, dim: Any, causal: Any, time_s: Any) -> Rows:
    heads = HIDDEN / dim
    cost = attention_cost("prefill", batch=batch, context=seq, q_heads=heads, kv_heads=heads, head_dim=dim)
    full = np.where(causal, 1.0, seq / (seq / 2 + 0.5))  # without a mask: every pair, and no tile is cut
    work = np.where(causal, cost.tile_work, full)
    peak, rate = device.peak_flop_per_s("bfloat16"), device.compute.exp_per_s
    assert peak is not None
    assert rate is not None
    zeros = np.zeros(len(seq))
    return Rows(
        x=seq, a=batch * heads, b=np.ones(len(seq)), k=zeros, known=zeros, time_s=time_s,
        flop_s=cost.flop * work / peak, exp_s=cost.exp * work / rate,
        memory_s=cost.traffic_bytes / device.memory.bandwidth_bytes_per_s, shape=np.arange(len(seq)),
    )  # fmt: skip


def fit_flash(rows: Rows, exp_weight: float | None = None) -> Parameters:
    """The share of the peak, and with `exp_weight=None` the weight of the exponentials; least squares of logarithms."""
    from scipy.optimize import least_squares

    def unpack(theta: Any) -> Parameters:
        weight = float(theta[1]) if exp_weight is None else exp_weight
        return replace(SHAPE, eta_compute=float(theta[0]), exp_weight=weight)

    start = [0.5, 0.5] if exp_weight is None else [0.5]
    found = least_squares(lambda t: np.log(predict_rows(rows, unpack(t), None) / rows.time_s), start)
    return replace(unpack(found.x), rows=len(rows), shapes=len(rows))


def leave_one_out(rows: Rows, exp_weight: float) -> Any:
    """Every row by the share of the peak that the other rows give."""
    out = np.empty(len(rows))
    for i in range(len(rows)):
        mine = np.arange(len(rows)) == i
        out[i] = predict_rows(rows.take(mine), fit_flash(rows.take(~mine), exp_weight), None)[0]
    return out


def flash_attention(published: Any) -> dict[str, Parameters]:
    """`fa3.prefill` of an H100, judged row by row."""
    structure = fit_flash(flash_rows(published, baseline=True))
    rows = flash_rows(published, baseline=False)
    guess = leave_one_out(rows, structure.exp_weight)
    fitted = replace(
        fit_flash(rows, structure.exp_weight), kernel="fa3.prefill", held_out_mape=judge(rows, guess),
        band=bands(rows.x, rows.time_s, guess),
    )  # fmt: skip
    return {"fa3.prefill": fitted}
