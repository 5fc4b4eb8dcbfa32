"""Compiling in a process beside this one: what it compiles is what a later process finds."""

from __future__ import annotations

import os
import subprocess
import sys

from qsim.kernels import ahead

LATER = """
import numpy as np
from qsim.kernels import linear, pack
from qsim.kernels.dot import many as dot
from qsim.kernels.portable import many
from qsim.kernels.stream import loops
from qsim.scheme import quantize
linear(np.ones((64, 256), np.float32), pack(quantize(np.eye(128, 256, dtype=np.float32), "w8a8")))
found = [f for m in (many, dot, loops) for f in vars(m).values() if hasattr(f, "stats")]
hits, misses = (sum(sum(getattr(f.stats, name).values()) for f in found) for name in ("cache_hits", "cache_misses"))
print(hits, misses)
"""


def test_a_later_process_compiles_nothing_again(tmp_path):
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "QSIM_KERNELS": "portable"}
    run = {"env": env, "check": True, "capture_output": True, "text": True}
    subprocess.run([sys.executable, "-m", "qsim.kernels.ahead", "w8a8", "bf16"], **run)
    assert len(list(tmp_path.rglob("ahead.*"))) == 1
    hits, misses = map(int, subprocess.run([sys.executable, "-c", LATER], **run).stdout.split())
    assert hits > 0
    assert misses == 0


def test_it_starts_once(monkeypatch, tmp_path):
    """Nothing on one core, nothing when the same schemes were compiled from the same sources."""
    started = []
    monkeypatch.setattr(ahead.subprocess, "Popen", lambda command, **more: started.append(command))
    monkeypatch.setattr(ahead, "marker", lambda schemes: tmp_path / "+".join(sorted(schemes)))
    monkeypatch.setattr(ahead.os, "cpu_count", lambda: 1)
    ahead.start(["w8a8"])
    assert not started
    monkeypatch.setattr(ahead.os, "cpu_count", lambda: 2)
    ahead.start(["w8a8", "fp8"])
    assert started[0][-2:] == ["fp8", "w8a8"]
    (tmp_path / "fp8+w8a8").touch()
    ahead.start(["fp8", "w8a8"])
    assert len(started) == 1
