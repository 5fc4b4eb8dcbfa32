"""The same FP8 matrices through different accumulators, and what each of them loses.

python examples/tensorcore_bits.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from qsim.formats import decode, encode
from qsim.tensorcore import generic, matmul

rng = np.random.default_rng(0)
x = encode(rng.random((64, 4096)).astype(np.float32), "e4m3")  # one sign: the worst case for truncation
w = encode(rng.random((64, 4096)).astype(np.float32), "e4m3")
exact = decode(x, "e4m3").astype(np.float64) @ decode(w, "e4m3").astype(np.float64).T

ways = {
    "cuBLASLt, fast accumulation (H100)": {"preset": "cublaslt_fp8_fast"},
    "cuBLASLt, promoted every 128 (H100)": {"preset": "cublaslt_fp8_precise"},
    "mma.sync on the same H100": {"instruction": "hopper.mma.f32.e4m3"},
    "Ada": {"instruction": "ada.mma.f32.e4m3"},
    "Blackwell tcgen05": {"instruction": "blackwell.tcgen05.f32.e4m3"},
    "a made-up chip, F = 17": {"instruction": generic(input="e4m3", products=32, fraction_bits=17)},
}
print(f"{'accumulator':<38}{'relative error':>16}{'bias':>12}")
for name, arguments in ways.items():
    y = matmul(x, w, **arguments).view(np.float32).astype(np.float64)
    error = np.linalg.norm(y - exact) / np.linalg.norm(exact)
    print(f"{name:<38}{error:>16.2e}{np.mean((y - exact) / exact):>12.1e}")
