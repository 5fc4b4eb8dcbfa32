"""The sample of the tables of 2026 that is part of this repository: what tests need, a few shapes of every table.

`python -m hwmodels.fitting.sample DATA` writes it anew into `hwmodels/measurements/aiconfigurator`.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from typing import Any

import numpy as np

from qsim.files import write_whole

from .collectives_2026 import newest
from .field import hash_shapes
from .sources import data_table
from .tables_2026 import TABLES, mine

FOLDER = Path(__file__).parents[1] / "measurements" / "aiconfigurator"


def sample_table(kind: str) -> Any:
    """The sample of a table (`gemm`, `attention`, `collectives`) as a DataFrame with the table's columns."""
    import pandas as pd

    return pd.read_csv(FOLDER / f"{kind}.csv.gz")


def sampled(kind: str, table: Any) -> Any:
    """The rows of a table that are in the sample.

    Of products one shape (N, K) in 23 and of attention one pair of head counts in 6, chosen by hash, in the tables that
    calibrations are fitted to; of collectives all rows that the curves are made of.
    """
    import pandas as pd

    if kind == "collectives":
        return newest(table).drop(columns="power_w")
    rows = pd.concat([mine(table, which) for which in TABLES], ignore_index=True).drop(columns="power_w")
    shape, one_in = (["n", "k"], 23) if kind == "gemm" else (["q_heads", "kv_heads"], 6)
    return rows[np.asarray(hash_shapes(rows[shape].to_numpy()) % one_in == 0)]


SERVING = [
    "device", "model", "checkpoint", "engine", "engine_version", "weights", "moe_weights", "kv", "mode",
    "prompt_tokens", "output_tokens", "mean_prompt_tokens", "mean_output_tokens", "max_batched_tokens", "concurrency",
    "engine_concurrency", "tp", "attention_dp", "moe_tp", "moe_ep", "prefill_workers", "prefill_tp",
    "prefill_attention_dp", "prefill_moe_ep", "decode_workers", "decode_tp", "decode_attention_dp", "decode_moe_ep",
    "ttft_s", "tpot_s", "source", "traps",
]  # fmt: skip


def sampled_serving(table: Any) -> Any:
    """Every third serving point, in the order of their names."""
    return table.sort_values("id").iloc[::3][SERVING]


def write_sample(data: Path) -> None:
    """Write the sample of a folder with the full tables."""
    import pandas as pd

    table = pd.read_csv(data / "serving.csv", dtype=str, keep_default_na=False)
    points = sampled_serving(table).to_csv(index=False, lineterminator="\n")
    write_whole(FOLDER / "serving.csv.gz", lambda file: file.write(gzip.compress(points.encode(), 9, mtime=0)))
    for kind in ("gemm", "attention", "collectives"):
        text = sampled(kind, data_table(data, f"measured_{kind}_2026")).to_csv(index=False, lineterminator="\n")
        packed = gzip.compress(text.encode(), 9, mtime=0)
        write_whole(FOLDER / f"{kind}.csv.gz", lambda file, packed=packed: file.write(packed))  # type: ignore[misc]


if __name__ == "__main__":
    write_sample(Path(sys.argv[1]))
