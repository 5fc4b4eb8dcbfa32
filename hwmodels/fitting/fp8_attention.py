"""cuDNN's FP8 attention in prefill, fitted on our own recording `measurements/fp8_attention.csv` (one H200).

A call takes no less than a fixed time; above it, the time of the products at a share of the FP8 peak that depends on
the head size (64, 128, 256), as if every query saw `tile_keys` / 2 more keys: tiles along the diagonal are computed
whole, and a block of queries begins and ends. Only causal rows are fitted, since only causal prefills are priced.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..calibration.fitted import Parameters
from ..device.load import get_device
from ..workload.operators import attention_cost
from .fit import bands, regime_of
from .sources import own_table

HEAD_SIZES = (64, 128, 256)
SOFT = 6.0
"""Exponent of the soft maximum of arithmetic and traffic: traffic is a hundredth of the time, so no row tells."""
ETA_MEMORY = 0.9


def recorded_fp8() -> Any:
    """The causal FP8 prefills: batch, seq, q_heads, kv_heads, head_dim, median_s."""
    table = own_table("fp8_attention")
    return table[(table.dtype == "fp8") & (table.phase == "prefill") & (table.causal == 1)].reset_index(drop=True)


def _named(theta: Any, dim: int, **more: Any) -> Parameters:
    floor, tile, *etas = np.exp(theta)
    return Parameters(
        kernel=f"cudnn_fp8.prefill_{dim}", t0_s=0.0, floor_s=float(floor), tile_keys=float(tile),
        eta_compute=float(etas[HEAD_SIZES.index(dim)]), eta_memory=ETA_MEMORY, p=SOFT, **more,
    )  # fmt: skip


def predict_fp8(theta: Any, table: Any) -> Any:
    """Seconds of the rows by the law above; theta holds the logarithms of floor, tile keys and the three shares."""
    floor, tile, *etas = np.exp(theta)
    device = get_device("h200")
    peak = device.peak_flop_per_s("float8_e4m3fn")
    assert peak is not None
    batch, seq, q, kv, dim = (table[c].to_numpy(float) for c in ("batch", "seq", "q_heads", "kv_heads", "head_dim"))
    cost = attention_cost(
        "prefill", batch=batch, context=seq, q_heads=q, kv_heads=kv, head_dim=dim, activation_bytes=1.0
    )
    share = np.array(etas)[np.searchsorted(HEAD_SIZES, dim)]
    work = cost.flop * (1 + (cost.tile_work - 1) * tile / 128) / (share * peak)
    traffic = cost.traffic_bytes / (ETA_MEMORY * device.memory.bandwidth_bytes_per_s)
    return np.maximum(floor, (work**SOFT + traffic**SOFT) ** (1 / SOFT))


def _fit(table: Any) -> Any:
    from scipy.optimize import least_squares

    measured = table.median_s.to_numpy()
    start = np.log([2e-5, 900.0, 0.3, 0.5, 0.6])
    found = least_squares(
        lambda theta: np.log(predict_fp8(theta, table) / measured), start, loss="soft_l1", f_scale=0.05
    )
    return found.x


def leave_one_out() -> tuple[Any, Any]:
    """The recorded rows, and each predicted by a fit without it."""
    table = recorded_fp8()
    at = np.arange(len(table))
    return table, np.array([predict_fp8(_fit(table[at != i]), table[at == i])[0] for i in at])


def fp8_attention() -> dict[str, Parameters]:
    """`cudnn_fp8.prefill_<head size>` of an H200, judged row by row."""
    table, guess = leave_one_out()
    seq, measured, dim = table.seq.to_numpy(float), table.median_s.to_numpy(), table.head_dim.to_numpy()
    error = np.abs(guess / measured - 1)
    theta, band, names = _fit(table), bands(seq, measured, guess), ("small", "medium", "large")
    out = {}
    for size in HEAD_SIZES:
        mine = dim == size
        held = {"all": float(error[mine].mean())}
        held |= {names[i]: float(error[mine & (regime_of(seq) == i)].mean()) for i in np.unique(regime_of(seq[mine]))}
        fitted = _named(theta, size, band=band, held_out_mape=held, rows=int(mine.sum()), shapes=int(mine.sum()))
        out[fitted.kernel] = fitted
    return out
