"""The AMX path, run natively on hosts that have it: every layout and epilogue, in memory that is full of NaNs.

`test_linear` runs this path too, on its own shapes. Here the shapes are those with partial tiles, and whatever the
kernels read without having written it shows: freed memory holds NaNs (as integers, the largest ones).
"""

import numpy as np
import pytest

from qsim.kernels import available_paths, fits, linear, pack
from qsim.kernels.activations import take
from qsim.scheme import quantize

pytestmark = pytest.mark.skipif(
    "amx" not in available_paths(), reason="this CPU has no AMX, or QSIM_KERNELS switches it off"
)


def soil_memory():
    """Fill blocks of many sizes with NaN patterns and free them, so that the next allocations find them."""
    blocks = [np.full(1 << bits, 0xFF, np.uint8) for bits in range(8, 23) for _ in range(8)]
    del blocks


@pytest.mark.parametrize("m", [9, 40, 257])
@pytest.mark.parametrize(("n", "k"), [(64, 256), (100, 384)])
@pytest.mark.parametrize(
    "name", ["w8a8", "w4a8-g128-asym", "w4a16-g128", "w3a16-g64-sym", "fp8-rowwise", "mxfp4", "nvfp4-weight-only"]
)
def test_amx_equals_the_portable_path(name, n, k, m):
    rng = np.random.default_rng(0)
    q = quantize((rng.standard_normal((n, k)) * 0.02).astype(np.float32), name)
    packed, x = pack(q, np.arange(n, dtype=np.float32)), rng.standard_normal((m, k)).astype(np.float32)
    activation = None if q.scheme.activation.is_quantized else "bfloat16"
    act = take(x, q.scheme.activation, input_scale=None, activation=activation)
    assert fits.amx_fits(act, packed)
    soil_memory()
    got = linear(x, packed, activation=activation, path="amx")
    want = linear(x, packed, activation=activation, path="portable")
    # both sum float32 terms, in another order
    assert np.linalg.norm(got - want) / np.linalg.norm(want) < 1e-6
