"""A backend given from outside: a Dask cluster of two local workers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest

from qsim.methods import quantize_model
from tests.models.small import random_model

distributed = pytest.importorskip("distributed")
pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]  # dask's own, of ports and of closing
EXAMPLE = Path(__file__).parents[2] / "examples" / "quantize_on_a_cluster.py"


def test_dask_gives_the_same_model():
    model = random_model()
    tokens = np.random.default_rng(7).integers(0, 96, (6, 32))
    here = quantize_model(model, "gptq", "w4a16-g32", tokens)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        there = quantize_model(model, "gptq", "w4a16-g32", tokens)
    for name in model.linears():
        assert here.model.tensors[f"{name}.weight"] == there.model.tensors[f"{name}.weight"]


def test_the_example_runs_as_a_script():
    """Two processes, the embedded model: every layer as without them."""
    done = subprocess.run([sys.executable, EXAMPLE, "1"], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "56 of them have the same codes, scales and zero points" in done.stdout
