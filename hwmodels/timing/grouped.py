"""Time of a grouped product: the experts of a mixture, every one with its rows and its weight, in one kernel."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import check_positive
from ..device.device import Device
from ..workload.operators import gemm_cost, grouped_cost
from .families import get_family, grouped_family
from .kernel import Estimate, estimate, ideal
from .parameters import kernel_parameters, transferred
from .peaks import kernel_peak


def grouped(
    device: Device, m: Any, n: Any, k: Any, groups: Any, kernel: str = "cublas_bf16", *, weight_bytes: Any,
    fidelity: str = "calibrated", compute: str | None = None,
) -> Estimate:  # fmt: skip
    """Time of `groups` products with m rows each, with its band. Arguments broadcast.

    Arguments:
        kernel: family of a single product. Where no grouped kernel of its kind was measured (4-bit and INT8 weights),
            the efficiency of one large product carries over, as `transferred`.
        weight_bytes: of all packed weights.
        fidelity, compute: as in `timing.gemm`.

    Raises:
        ValueError: as `timing.gemm`.
    """
    check_positive(M=m, N=n, K=k, groups=groups)
    twin = grouped_family(kernel)
    family = get_family(twin or kernel)
    cost = grouped_cost(
        m, n, k, groups, weight_bytes=weight_bytes, operand=family.activation_bytes, output=family.output_bytes
    )
    peak = kernel_peak(device, family, compute, fidelity)
    if fidelity == "ideal":
        return ideal(cost, peak, device)
    if twin:
        return estimate(device, cost, peak, kernel_parameters(device, family.name, fidelity), m, None)
    more = (np.asarray(groups) - 1) * family.activation_bytes * m * k
    large = gemm_cost(
        m, np.asarray(n, np.float64) * groups, k, weight_bytes=weight_bytes + more,
        activation_bytes=family.activation_bytes, output_bytes=family.output_bytes,
    )  # fmt: skip
    # what single shapes were corrected by says nothing of many at once
    p = transferred(kernel_parameters(device, kernel, fidelity), f"{kernel}, one large product")
    return estimate(device, large, peak, p, m, None, k)
