"""A quick look at this computer's kernels: against memory, against arithmetic, and against what others offer.

Not a report (those are under `reports/`): best of a few runs, whatever else the machine does. Copies of the weight take
turns, 32 of them or 256 MB, so that most caches do not hold them; small weights may be found in a large cache.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwmodels.fitting.host import best_time, measure_bandwidth, measure_gemm
from qsim.errors import QsimError
from qsim.kernels import PackedWeight, linear, pack
from qsim.scheme import get_scheme, quantize

SCHEMES = ("w4a16-g128", "w3a16-g128", "w8a8-channel-token", "w4a8-g128", "fp8-weight-only", "fp8-rowwise")
FOOTPRINT = 256_000_000
MOST_COPIES = 32
BUDGET_S = 0.15


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One product: a kernel, tokens at once, its best time, and how near it comes to the two limits.

    Attributes:
        weight_mbytes: packed codes, scales and zero points, read once per product.
        of_bandwidth, of_peak: shares of the read bandwidth and of float32 arithmetic, measured in the same run.
        speedup: over NumPy's float32 product of the same shape and tokens, in the same run.
    """

    kernel: str
    tokens: int
    time_s: float
    weight_mbytes: float
    gbytes_per_s: float
    gop_per_s: float
    of_bandwidth: float
    of_peak: float
    speedup: float


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Limits of this machine, and the kernels under them."""

    bandwidth_bytes_per_s: float
    peak_flop_per_s: float
    shape: tuple[int, int]
    rows: tuple[BenchRow, ...]
    notes: tuple[str, ...]


def bench(
    schemes: Sequence[str] = SCHEMES,
    tokens: Sequence[int] = (1, 16, 256),
    shape: tuple[int, int] = (4096, 4096),
    progress: Callable[[str], None] = lambda _: None,
) -> Bench:
    """Time the fused kernels of some schemes, NumPy's float32 product, and torch's kernels where it is installed.

    Arguments:
        schemes: names of `qsim.get_scheme`.
        tokens: numbers of tokens at once, M.
        shape: (N, K) of the weight.

    Raises:
        ValueError: an unknown scheme, one that quantises nothing, or a shape that its groups do not divide.
    """
    n, k = shape
    if n < 1 or k < 1 or any(m < 1 for m in tokens):
        raise QsimError(f"sizes must be positive: got shape {n}x{k}, tokens {', '.join(map(str, tokens))}")
    found = [get_scheme(s) for s in schemes]
    for name, scheme in zip(schemes, found, strict=True):
        if not scheme.weight.is_quantized:
            raise QsimError(f"{name} quantises nothing: bench times kernels of quantised weights")
        scheme.weight.check_shape(shape)
    progress("read bandwidth")
    bandwidth = measure_bandwidth(1 << 28)
    progress("float32 arithmetic")
    peak = measure_gemm(1536)
    rng = np.random.default_rng(0)
    w = rng.standard_normal(shape, dtype=np.float32)
    inputs = {m: rng.standard_normal((m, k), dtype=np.float32) for m in tokens}
    limits = (bandwidth, peak)
    rows: list[BenchRow] = []
    progress("float32, NumPy")
    base = _numpy(w, inputs)
    rows += [_row("float32, NumPy", m, t, w.nbytes, shape, limits, t) for m, t in base.items()]
    notes = []
    for name in schemes:
        progress(name)
        packed = _packed(w, name)
        if packed[0].kind == "dense":
            notes.append(f"{name} has no fused kernel: its weights are dequantised for every product")
        for m, x in inputs.items():
            t = _turns(lambda i, x=x: linear(x, packed[i]), len(packed))  # type: ignore[misc]  # noqa: B023
            rows.append(_row(name, m, t, packed[0].source.nbytes, shape, limits, base[m]))
    if importlib.util.find_spec("torch") is None:
        notes.append("torch is not installed: no peer was timed (pip install 'qsim[bench]')")
    else:
        progress("torch")
        rows += [_row(name, m, t, size, shape, limits, base[m]) for name, m, t, size in _torch(w, inputs)]
    return Bench(bandwidth_bytes_per_s=bandwidth, peak_flop_per_s=peak, shape=shape, rows=tuple(rows),
                 notes=tuple(notes))  # fmt: skip


def _copies(nbytes: int) -> int:
    return max(1, min(MOST_COPIES, FOOTPRINT // max(1, nbytes)))


def _numpy(w: np.ndarray, inputs: dict[int, np.ndarray]) -> dict[int, float]:
    copies = [w, *(w.copy() for _ in range(_copies(w.nbytes) - 1))]
    return {m: _turns(lambda i, x=x: x @ copies[i].T, len(copies)) for m, x in inputs.items()}  # type: ignore[misc]


def _packed(w: np.ndarray, scheme: str) -> list[PackedWeight]:
    quantised = quantize(w, scheme)
    first = pack(quantised)
    return [first, *(pack(quantised) for _ in range(_copies(quantised.nbytes) - 1))]


def _turns(call: Callable[[int], Any], copies: int) -> float:
    """Seconds of one call, the copies taking turns."""
    return best_time(lambda: [call(i) for i in range(copies)], least_s=BUDGET_S, least_runs=2) / copies


def _row(
    kernel: str, m: int, time_s: float, nbytes: float, shape: tuple[int, int], limits: tuple[float, float], base: float
) -> BenchRow:
    operations = 2.0 * m * shape[0] * shape[1]
    return BenchRow(
        kernel=kernel, tokens=m, time_s=time_s, weight_mbytes=nbytes / 1e6, gbytes_per_s=nbytes / time_s / 1e9,
        gop_per_s=operations / time_s / 1e9, of_bandwidth=nbytes / time_s / limits[0],
        of_peak=operations / time_s / limits[1], speedup=base / time_s,
    )  # fmt: skip


def _torch(w: np.ndarray, inputs: dict[int, np.ndarray]) -> Iterator[tuple[str, int, float, float]]:
    """torch's products on the CPU: BF16, and 4 bits in groups of 128 with BF16 activations."""
    import torch

    weight = torch.from_numpy(w).bfloat16()
    wide = [weight.clone() for _ in range(_copies(weight.nbytes))]
    for m, x in inputs.items():
        given = torch.from_numpy(x).bfloat16()
        t = _turns(lambda i, x=given: torch.nn.functional.linear(x, wide[i]), len(wide))  # type: ignore[misc]
        yield "torch, BF16", m, t, float(weight.nbytes)
    wide.clear()
    n, k = w.shape
    if k % 128 or n % 16:
        return
    codes = torch.randint(0, 16, (n, k), dtype=torch.int32)
    small = torch._convert_weight_to_int4pack_for_cpu(codes, 1)
    scales = torch.ones(k // 128, n, 2, dtype=torch.bfloat16)
    nbytes = n * k / 2 + scales.nbytes
    packed = [small.clone() for _ in range(_copies(int(nbytes)))]
    for m, x in inputs.items():
        given = torch.from_numpy(x).bfloat16()
        t = _turns(lambda i, x=given: torch._weight_int4pack_mm_for_cpu(x, packed[i], 128, scales), len(packed))  # type: ignore[misc]
        yield "torch, int4pack g128", m, t, nbytes
