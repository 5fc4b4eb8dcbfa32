"""The Linears of a block solved side by side on a Dask cluster: here two processes of this computer.

pip install 'qsim[cluster]'
python examples/quantize_on_a_cluster.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import joblib

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from qsim.algorithms import quantize_model
from qsim.models import load, tiny_text

WINDOWS = 4  # of calibration; more find better weights


def main() -> None:
    """Quantise the embedded model here and on the cluster, and compare."""
    from dask.distributed import Client, LocalCluster

    model, text = load("tiny"), tiny_text("calibration")
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
        # quantize_model names no backend of its own: whatever joblib is told outside is used
        joblib.parallel_config(backend="dask"),
    ):
        there = quantize_model(model, "gptq", "w4a16-g128", text, windows=WINDOWS)
    here = quantize_model(model, "gptq", "w4a16-g128", text, windows=WINDOWS)
    ratios = [(a.error_ratio, b.error_ratio) for a, b in zip(here.layers, there.layers, strict=True)]
    print(f"{len(ratios)} layers; mean error over round-to-nearest's:")
    print(f"  here            {sum(a or 0 for a, _ in ratios) / len(ratios):.4f}")
    print(f"  on the cluster  {sum(b or 0 for _, b in ratios) / len(ratios):.4f}")


if __name__ == "__main__":  # the workers import this file
    main()
