"""The AMX path. `test_linear` runs it where the CPU has it; here its tile instructions are loops."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qsim.kernels import available_paths


@pytest.mark.skipif("amx" not in available_paths(), reason="this CPU has no AMX, or QSIM_KERNELS switches it off")
def test_amx_by_hand(tmp_path):
    """The same layouts and epilogues with the tile instructions replaced: a process and a cache of their own."""
    script = Path(__file__).with_name("amx_by_hand.py")
    root = str(script.parents[2])
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
