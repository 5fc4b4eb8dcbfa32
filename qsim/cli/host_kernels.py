"""Timing of this package's fused kernels for `qsim calibrate --host`: the one place where both wings meet for it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

SCHEMES = ("w4a16-g128", "w8a16-channel", "w8a8-channel-token", "fp8-weight-only")


def measure_kernels(
    schemes: Sequence[str] = SCHEMES, shapes: Sequence[tuple[int, int]] = ((4096, 4096), (11008, 4096))
) -> list[dict[str, Any]]:
    """Rows (scheme, M, N, K, bytes, seconds) of the fused kernels at M = 1; none when they are not there.

    Weights rotate over copies of 1 GB together, as far as packing them takes a reasonable time (at most 8 copies).
    """
    if importlib.util.find_spec("qsim.kernels") is None:
        return []
    import numpy as np

    from hwmodels.host import best_time
    from qsim.scheme import get_scheme, quantize

    kernels: Any = importlib.import_module("qsim.kernels")
    if not hasattr(kernels, "pack") or not hasattr(kernels, "linear"):
        return []
    rows: list[dict[str, Any]] = []
    rng = np.random.default_rng(0)
    for name in schemes:
        scheme = get_scheme(name)
        for n, k in shapes:
            x = rng.standard_normal((1, k), dtype=np.float32)
            w = rng.standard_normal((n, k), dtype=np.float32)
            quantised = quantize(w, scheme)
            try:
                packed = [kernels.pack(quantised) for _ in range(8)]
                kernels.linear(x, packed[0])
            except (ValueError, NotImplementedError):
                continue
            seconds = best_time(lambda packed=packed, x=x: [kernels.linear(x, p) for p in packed]) / len(packed)  # type: ignore[misc]
            rows.append({"scheme": name, "M": 1, "N": n, "K": k, "bytes": int(quantised.nbytes), "seconds": seconds})
    return rows
