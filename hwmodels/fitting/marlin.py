"""Marlin on four Ampere cards, from the speed-ups over 16 bit that its authors published.

They are the rows ML-* of `published.csv`. A figure is a ratio, so the time is our prediction of the 16-bit product over
it. Four numbers are fitted for all cards together: fixed time, reached shares of peak and bandwidth, and how far the
two overlap.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from qsim.errors import QsimError

from ..calibration.fitted import Parameters
from ..device.device import Device
from ..device.load import get_device
from ..timing.families import get_family
from ..timing.kernel import gemm
from .fit import Rows, Settings, bands, fit_parameters, gemm_rows, judge, predict_rows

CITATION = "IST-DASLab/marlin, README: peak.png, sustained.png, models.png (digitised), speed-up over FP16 CUTLASS"
CARDS = {"A10": "a10", "RTX3090": "rtx-3090", "A6000": "rtx-a6000", "A100": "a100-sxm-80gb"}
BASE_CLOCK = 885 / 1695
"""Of an A10: base over boost clock, for the rows measured at the base clock."""


def shapes_of(model: str) -> list[tuple[float, float]]:
    """(N, K) whose times a row adds up: one large layer, or those of a block of LLaMA-7B or 65B."""
    if "Llama" not in model:
        return [(73728.0, 18432.0)]
    h, f = (8192.0, 22016.0) if "65B" in model else (4096.0, 11008.0)
    return [(3 * h, h), (h, h), (2 * f, h), (h, f)]


def card(name: str) -> Device:
    """The device of a row; at its base clock where the row says so."""
    device = get_device(CARDS[name.split()[0]])
    if "base" not in name:
        return device
    peak = device.peak_flop_per_s("bfloat16")
    assert peak is not None
    return get_device(device, {"compute.peaks.bfloat16.dense_tflops": peak * BASE_CLOCK / 1e12})


def marlin_rows(published: Any) -> Rows:
    """Every published ratio as rows of one time each: a row's shapes get parts of its time as their predicted 16-bit
    times share it, and are held out together.

    Raises:
        QsimError: the table has no such rows.
    """
    mine = published[published.id.str.startswith("ML-") & published.method.str.contains("marlin")]
    if not len(mine):
        raise QsimError("published.csv has no rows ML-*-marlin: Marlin's published speed-ups")
    parts = []
    for number, row in enumerate(mine.itertuples()):
        device, shapes = card(str(row.device)), shapes_of(str(row.model))
        n, k = (np.array(v) for v in zip(*shapes, strict=True))
        sixteen = np.asarray(gemm(device, float(row.batch), n, k, "cublas_bf16").time_s)
        got = gemm_rows(device, get_family("marlin_int4"), np.full(len(n), float(row.batch)), n, k,
                        sixteen / float(row.speedup))  # fmt: skip
        parts.append({**{f: getattr(got, f) for f in got.__dataclass_fields__}, "shape": np.full(len(n), number)})
    return Rows(**{name: np.concatenate([p[name] for p in parts]) for name in parts[0]})


def marlin_kernel(published: Any) -> Parameters:
    """`marlin_int4` of all cards, judged row by row."""
    rows, settings = marlin_rows(published), Settings(ridge=(), tau=False)
    guess = np.empty(len(rows))
    for number in np.unique(rows.shape):
        mine = rows.shape == number
        others = fit_parameters(rows.take(~mine), "marlin_int4", settings, None)
        guess[mine] = predict_rows(rows.take(mine), others, None)
    fitted = fit_parameters(rows, "marlin_int4", settings, None)
    return replace(fitted, held_out_mape=judge(rows, guess), band=bands(rows.x, rows.time_s, guess))
