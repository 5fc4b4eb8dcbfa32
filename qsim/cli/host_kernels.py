"""Timing of this package's fused kernels for `qsim calibrate --host`: the one place where both wings meet for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

SCHEMES = ("w4a16-g128", "w8a16-channel", "w8a8-channel-token", "fp8-weight-only")


def measure_kernels(
    schemes: Sequence[str] = SCHEMES, shapes: Sequence[tuple[int, int]] = ((4096, 4096), (11008, 4096)),
    progress: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows (scheme, M, N, K, bytes, seconds) of the fused kernels at M = 1.

    Weights rotate over copies of 1 GB together, as far as packing them takes a reasonable time (at most 8 copies).
    """
    import numpy as np

    from hwmodels.fitting.host import best_time
    from qsim import kernels
    from qsim.scheme import get_scheme, quantize

    rows: list[dict[str, Any]] = []
    rng = np.random.default_rng(0)
    for name in schemes:
        scheme = get_scheme(name)
        for n, k in shapes:
            progress(f"{name}, {n} x {k}")
            x = rng.standard_normal((1, k), dtype=np.float32)
            w = rng.standard_normal((n, k), dtype=np.float32)
            quantised = quantize(w, scheme)
            packed = [kernels.pack(quantised) for _ in range(8)]
            seconds = best_time(lambda packed=packed, x=x: [kernels.linear(x, p) for p in packed]) / len(packed)  # type: ignore[misc]
            rows.append({"scheme": name, "M": 1, "N": n, "K": k, "bytes": int(quantised.nbytes), "seconds": seconds})
    return rows
