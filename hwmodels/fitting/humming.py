"""The humming families of an H200, fitted on our own recordings, `RECORDINGS` in `hwmodels/measurements`.

Where several recordings hold a shape and size, their mean is taken. Products are fitted alone; the quantisation of the
activation, which `layer` rows hold too, is a kernel of its own (`layer_rows`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..calibration.fitted import Parameters, Quantizer
from ..device.load import get_device
from ..timing.families import get_family
from .fit import Rows, Settings, fit_and_judge, gemm_rows
from .sources import own_table

if TYPE_CHECKING:
    import pandas as pd

FORMATS = {
    "w4a16_g128": "humming_w4a16_g128", "w4a16_g128_zp": "humming_w4a16_g128_zp", "w3a16_g128": "humming_w3a16_g128",
    "w2a16_g128": "humming_w2a16_g128", "w8a16_ch": "humming_w8a16", "mxfp4_a16": "humming_mxfp4_a16",
    "nvfp4_a16": "humming_nvfp4_a16", "w4a8_fp8": "humming_w4a8_fp8", "mxfp4_fp8": "humming_mxfp4_fp8",
    "w4a8_int8": "humming_w4a8_int8", "w8a8_fp8": "humming_w8a8_fp8", "w8a8_int8": "humming_w8a8_int8",
}  # fmt: skip
"""`fmt` of the recordings -> family."""

RECORDINGS = ("humming", "gemm_fused", "gemm_zero_points")
SIXTEEN = Settings(ridge=(1.0,), smooth=0.1, waves=False, folds=99)
EIGHT = Settings(ridge=(0.3,), smooth=0.3, folds=99)
"""For 16-bit and for 8-bit activations, chosen by the error over layers left out. Products with 16-bit activations
share the length K between all units (stream-K), so whole waves of tiles say nothing of them."""


def recorded(fmt: str, part: str = "gemm") -> pd.DataFrame:
    """The rows of a format: layer, N, K, M, median_s; of products with 16-bit activations both parts are one."""
    import pandas as pd

    table = pd.concat([own_table(name) for name in RECORDINGS], ignore_index=True)
    mine = table[table.fmt == fmt]
    mine = mine[mine.part == (part if part in set(mine.part) else "layer")]
    return mine.groupby(["layer", "N", "K", "M"], as_index=False).median_s.mean()


def humming_rows(fmt: str, part: str = "gemm") -> Rows:
    """Rows of a format for a fit."""
    t = recorded(fmt, part)
    return gemm_rows(get_device("h200"), get_family(FORMATS[fmt]), t.M, t.N, t.K, t.median_s)


def humming_kernels() -> dict[str, Parameters]:
    """Every humming family fitted on all its layers, judged layer by layer."""
    units: Any = get_device("h200").compute.units
    return {
        kernel: fit_and_judge(humming_rows(fmt), kernel, settings_of(kernel), units) for fmt, kernel in FORMATS.items()
    }


def settings_of(kernel: str) -> Settings:
    """The fit of a family."""
    return SIXTEEN if get_family(kernel).compute == "bfloat16" else EIGHT


def quantizer() -> Quantizer:
    """The library's kernel that quantises activations, fitted on `layer` less `gemm` rows up to M = 256 and on those of
    M = 8192 with N = 4096; elsewhere the difference drowns in how much a large product varies."""
    from scipy.optimize import least_squares

    bandwidth = get_device("h200").memory.bandwidth_bytes_per_s
    parts = []
    for fmt, kernel in FORMATS.items():
        if get_family(kernel).layer_from_16_bit:
            t = recorded(fmt, "layer").merge(recorded(fmt), on=["layer", "N", "K", "M"], suffixes=("", "_gemm"))
            parts.append(t[(t.M <= 256) | (t.N == 4096)])
    m, k, more = (np.concatenate([v(t) for t in parts]) for v in (
        lambda t: t.M.to_numpy(float), lambda t: t.K.to_numpy(float),
        lambda t: (t.median_s - t.median_s_gemm).to_numpy(),
    ))  # fmt: skip

    def make(theta: Any) -> Quantizer:
        t0, tau, eta = np.exp(theta)
        return Quantizer(t0_s=float(t0), tau_s_per_k=float(tau), eta_memory=float(eta))

    found = least_squares(
        lambda theta: np.log(make(theta)(m, k, bandwidth) / np.maximum(more, 5e-7)),
        np.log([2e-6, 1e-10, 0.8]), loss="soft_l1", f_scale=0.1,
    )  # fmt: skip
    return make(found.x)
