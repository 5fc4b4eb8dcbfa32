"""How `matmul(split_k=S)` cuts K, against the splits that cuBLASLt was seen to take on an H200."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np

from qsim.tensorcore import get_instruction, matmul
from qsim.tensorcore.order import slices_of

TABLE = Path(__file__).parents[2] / "hwmodels" / "measurements" / "gemm_split.csv"
INSTRUCTIONS = {"bf16": "hopper.wgmma.f32.bf16", "fp16": "hopper.wgmma.f32.f16", "fp8": "hopper.wgmma.f32.e4m3"}


def test_recorded_splits_of_k_are_those_of_split_k_once_their_number_is_known():
    """Units of 64 elements of 16 bits or 128 of 8; the parts are added forward, in float32. Their number is taken from
    the table: it changes with M for one shape, and no rule for it has been searched for."""
    seen = Counter()
    with TABLE.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["fmt"] not in INSTRUCTIONS or int(row["parts"]) < 2:
                continue
            lengths = slices_of(int(row["K"]), int(row["parts"]), get_instruction(INSTRUCTIONS[row["fmt"]]))
            bounds = np.cumsum([0, *lengths])
            assert " ".join(map(str, bounds)) == row["bounds"], row
            assert row["order"] in ("two", "forward")
            assert row["partials"] == "float32"
            seen[row["fmt"]] += 1
    assert seen == {"bf16": 178, "fp16": 191, "fp8": 74}


def test_parts_are_added_forward_in_float32():
    rng = np.random.default_rng(1)
    a, b = (rng.integers(0x3F00, 0x4100, (rows, 1024)).astype(np.uint16) for rows in (2, 3))
    ins = INSTRUCTIONS["bf16"]
    total = np.zeros((2, 3), np.float32)
    for start, stop in ((0, 384), (384, 768), (768, 1024)):  # ceil(16 units / 3) = 6 units of 64
        total += matmul(a[:, start:stop], b[:, start:stop], instruction=ins).view(np.float32)
    np.testing.assert_array_equal(matmul(a, b, instruction=ins, split_k=3).view(np.float32), total)
