"""How far efficiencies carry: each calibrated device predicted from the others, and engines beside our kernels.

What this finds sets the bands of transferred predictions (`timing.parameters.TRANSFER_BANDS`,
`prediction.TRANSFER_CORRELATION`, `prediction.ENGINES`); `reports/transfer.py` prints it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.lazy import LazyModule

from ..calibration.fitted import REGIMES
from ..calibration.store import load_calibration
from ..device.load import get_device
from ..timing.families import FAMILIES, get_family
from ..timing.kernel import gemm
from ..timing.parameters import across

if TYPE_CHECKING:
    import pandas as pd
else:
    pd = LazyModule("pandas")

CALIBRATED = ("a100-sxm-80gb", "h100-sxm", "h200", "l40s", "b200", "b300", "gb200", "gb300", "rtx-pro-6000")
SHAPES = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (10240, 8192), (8192, 8192), (57344, 8192),
          (8192, 28672), (12288, 4096), (22016, 4096), (4096, 11008))  # fmt: skip
"""(N, K) of the linear layers of Llama-3-8B, Llama-3-70B and Llama-2-7B."""
SIZES = {"small": (1, 2, 4, 8, 16), "medium": (32, 64, 128, 256), "large": (512, 2048, 8192)}


def device_errors() -> pd.DataFrame:
    """Each product kernel of each calibrated device, predicted as if the device had no calibration.

    Left out are grouped products, and the fused humming kernels of vLLM 2026: they were measured on one device and are
    of another generation than all that could lend to them, so these tables do not say how far they carry.

    Returns:
        One row for each device, kernel, regime, (N, K) and M: `ratio` is the time by the device's own calibration over
        the transferred one, `sixteen_bit` that of the family, `origin` where the parameters come from, `across` what
        separates the two (`timing.parameters.ACROSS`).
    """
    n, k = (np.array(v, dtype=np.float64) for v in zip(*SHAPES, strict=True))
    twins = {family.grouped for family in FAMILIES.values()}
    parts = []
    for name in CALIBRATED:
        device = get_device(name)
        table = load_calibration(str(device.calibration))
        assert table is not None
        for kernel in table.kernels:
            if kernel in twins or kernel.startswith("humming"):
                continue
            for regime in REGIMES:
                m = np.array(SIZES[regime], dtype=np.float64)[:, None]
                own, other = (gemm(device, m, n, k, kernel, fidelity=f) for f in ("calibrated", "transferred"))
                ratio = np.asarray(own.time_s / other.time_s)
                parts.append(pd.DataFrame({
                    "device": name, "kernel": kernel, "regime": regime, "sixteen_bit": get_family(kernel).sixteen_bit,
                    "origin": other.origin, "across": across(device, kernel, other.origin),
                    "M": np.broadcast_to(m, ratio.shape).reshape(-1),
                    "ratio": ratio.reshape(-1),
                }))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def shared_error(errors: pd.DataFrame) -> float:
    """Correlation of the transfer errors of two shapes of a kernel at about the same M: the share of the mean squared
    logarithm of the ratio that its mean over shapes makes up, over all devices, kernels and regimes."""
    logs = np.log(errors.ratio).groupby([errors.device, errors.kernel, errors.regime])
    return float((logs.mean() ** 2).sum() / logs.agg(lambda v: float((v**2).mean())).sum())


def engine_errors(data: str | Path) -> pd.DataFrame:
    """Published decode steps at batch 1 on calibrated devices, by engines whose kernels were not measured.

    Arguments:
        data: the folder of the published tables.

    Returns:
        One row for each: `id`, `engine`, `device`, `model`, `scheme`, `ratio` of the published time over that of the
        `cuda_graph` profile.

    Raises:
        QsimError: the folder lacks the table.
    """
    from ..fitting.sources import data_table
    from ..prediction import predict
    from .published import decode_cases

    found: list[dict[str, Any]] = []
    for row, device, arch, scheme, time_s in decode_cases(data_table(data, "published")):
        if device.name in CALIBRATED:
            p = predict(device, arch, scheme, "decode", 1, row["context"], tensor_parallel=row["devices"])
            found.append({"id": row["id"], "engine": row["engine"], "device": device.name, "model": arch.name,
                          "scheme": scheme, "ratio": time_s / float(p.time_s)})  # fmt: skip
    return pd.DataFrame(found)
