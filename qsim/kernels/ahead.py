"""Compile the kernels of some schemes into Numba's cache, in a process beside the one that will need them.

    python -m qsim.kernels.ahead w4a16-g128 fp8

Numba compiles on one thread, and a first run that meets a dozen formats waits for each in turn. A second process that
takes them from the other end halves that wait; both write the same on-disk cache.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from qsim._stale import stamp
from qsim.files import make_folder, write_text

TOKENS = 64  # the product of many tokens; decode's is compiled when it is called


def compile_kernels(schemes: Sequence[str]) -> None:
    """Run one small product of each scheme; whatever is in the cache already is loaded."""
    import numpy as np

    from qsim.scheme import get_scheme, quantize

    from . import linear, pack

    rng = np.random.default_rng(0)
    w = (rng.standard_normal((128, 256)) * 0.02).astype(np.float32)
    x = rng.standard_normal((TOKENS, 256)).astype(np.float32)
    for name in schemes:
        if get_scheme(name).weight.is_quantized:
            linear(x, pack(quantize(w, name)))


def marker(schemes: Sequence[str]) -> Path:
    """The file, in Numba's cache, that says that these were compiled from the sources as they are."""
    from .weights import decode_scale

    folder = Path(__file__).parent
    behind = [stamp(folder / name) for name in ("linear.py", "dot/many.py", "amx/bf16.py", "amx/int8.py")]
    state = hashlib.sha256(" ".join([*behind, *sorted(set(schemes))]).encode())
    return Path(str(decode_scale.stats.cache_path)) / f"ahead.{state.hexdigest()[:16]}"


def start(schemes: Sequence[str]) -> subprocess.Popen[bytes] | None:
    """A process that compiles for these schemes, first the last; None when that was done before, or on one core."""
    if (os.cpu_count() or 1) < 2 or marker(schemes).exists():
        return None
    order = list(dict.fromkeys(reversed(schemes)))
    command = [sys.executable, "-m", "qsim.kernels.ahead", *order]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        command, stdin=quiet, stdout=quiet, stderr=quiet, env=os.environ | {"NUMBA_NUM_THREADS": "1"}
    )


def main() -> None:
    schemes = sys.argv[1:]
    compile_kernels(schemes)
    done = marker(schemes)
    make_folder(done.parent)
    write_text(done, "")


if __name__ == "__main__":
    main()
