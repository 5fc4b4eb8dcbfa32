"""Fused low-bit matrix products that run fast on this computer's CPU.

packed = pack(quantize(w, "w4a16-g128"))
y = linear(x, packed)          # x @ w.T
"""

from .linear import linear
from .packing import PackedWeight, pack

__all__ = ["PackedWeight", "linear", "pack"]
