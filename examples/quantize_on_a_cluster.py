"""The Linears of a block solved side by side on a Dask cluster: here two processes of this computer.

pip install 'qsim[cluster]'
python examples/quantize_on_a_cluster.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import joblib

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from qsim.methods import quantize_model
from qsim.models import load, tiny_text

WINDOWS = 4  # of calibration, unless the command names another number; more find better weights


def main() -> None:
    """Quantise the embedded model here and on the cluster, and compare bit for bit."""
    from dask.distributed import Client, LocalCluster

    model, text = load("tiny"), tiny_text("calibration")
    windows = int(sys.argv[1]) if len(sys.argv) > 1 else WINDOWS
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
        # quantize_model names no backend of its own: whatever joblib is told outside is used
        joblib.parallel_config(backend="dask"),
    ):
        there = quantize_model(model, "gptq", "w4a16-g128", text, windows=windows)
    here = quantize_model(model, "gptq", "w4a16-g128", text, windows=windows)
    names = [f"{record.layer}.weight" for record in here.layers]
    equal = sum(here.model.tensors[n] == there.model.tensors[n] for n in names)
    ratio = sum(record.error_ratio or 0 for record in there.layers) / len(names)
    print(f"{len(names)} layers, mean error {ratio:.3f} of round-to-nearest's")
    print(f"{equal} of them have the same codes, scales and zero points as without the cluster")


if __name__ == "__main__":  # the workers import this file
    main()
