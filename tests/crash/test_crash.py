"""A part of the crash tests that takes seconds: `make crash` runs all of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each stop is a forked process")
@pytest.mark.parametrize("name", ["quantize", "convert", "study"])
def test_a_run_that_is_stopped_anywhere_loses_nothing_and_goes_on(name):
    """In a process of its own, with one thread: what is forked must not hold another's locks."""
    command = [sys.executable, "-m", "tests.crash.driver", "--points", "4", "--random", "3", "--disks", "2", name]
    alone = os.environ | {"OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert not report["failures"], "\n".join(report["failures"])
    assert done.returncode == 0
    assert len(report["cases"]) == 2
    for case in report["cases"].values():
        assert case["changes"] > 50
        assert case["stops"] >= 3 * 4 + 3
    if report["skipped"]:
        pytest.skip(f"all but real small disks was run: {report['skipped'][0]}")
