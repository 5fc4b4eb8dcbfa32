"""The files recorded on an H200 are whole: columns, ranges, no case twice, nothing faster than the device can be."""

import csv
import itertools
import math
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "hwmodels" / "measurements"
BANDWIDTH = 4.8e12  # bytes per second, data sheet
PEAK = {"16": 989.5e12, "8": 1979e12}  # dense FLOP per second of BF16, and of FP8 and INT8
L2 = 60e6  # bytes; what rotates over less may come from there


def rows(name):
    with open(FOLDER / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def floor_s(nbytes, flop=0.0, peak=PEAK["16"]):
    return max(nbytes / BANDWIDTH, flop / peak)


# file: columns that name a case, columns of numbers above zero, rows at least
FILES = {
    "gemm_fused": ("layer M fmt part", "N K M median_s min_s max_s", 800),
    "operators": ("operator mode tokens hidden", "tokens hidden bytes median_s min_s max_s", 590),
    "sampling": ("operator mode tokens vocabulary", "tokens vocabulary bytes median_s min_s max_s", 60),
    "attention_decode": ("kernel kv_dtype batch seq q_heads kv_heads", "batch seq head_dim median_s min_s max_s", 190),
    "power": ("kernel shape", "mean_w sampled_w averaged_w samples sm_mhz celsius seconds", 50),
    "gemm_split": ("fmt N K M", "N K M", 2800),
}


@pytest.mark.parametrize("name", FILES)
def test_every_case_stands_once_and_every_number_is_finite_and_positive(name):
    case, numbers, least = FILES[name]
    found = rows(name)
    assert len(found) >= least
    keys = [tuple(row[column] for column in case.split()) for row in found]
    assert len(set(keys)) == len(keys)
    for row in found:
        for column in numbers.split():
            assert 0 < float(row[column]) < math.inf, (name, row)


@pytest.mark.parametrize("name", ["gemm_fused", "operators", "sampling", "attention_decode"])
def test_least_median_and_largest_time_are_in_order(name):
    for row in rows(name):
        assert float(row["min_s"]) <= float(row["median_s"]) <= float(row["max_s"]), row


def weight_bits(fmt):
    scales = {"g128": 16 / 128, "mxfp4": 8 / 32, "nvfp4": 8 / 16}
    width = {"w2": 2, "w3": 3, "w4": 4, "w8": 8, "mx": 4, "nv": 4, "bf": 16}[fmt[:2]]
    return width + next((bits for part, bits in scales.items() if part in fmt), 0)


def test_no_fused_product_is_faster_than_its_bytes_or_its_operations():
    for row in rows("gemm_fused"):
        n, k, m = (int(row[c]) for c in "NKM")
        peak = PEAK["8" if "fp8" in row["fmt"] or "int8" in row["fmt"] else "16"]
        assert float(row["min_s"]) > floor_s(n * k * weight_bits(row["fmt"]) / 8, 2.0 * m * n * k, peak), row


def test_fused_products_err_as_their_formats_do():
    limits = {"bf16": 0, "w8": 0.04, "w4": 0.11, "mx": 0.125, "nv": 0.1, "w3": 0.24, "w2": 0.7}
    for row in rows("gemm_fused"):
        most = next(limit for start, limit in limits.items() if row["fmt"].startswith(start))
        assert most / 5 <= float(row["rel_err"]) <= most, row


def test_fused_products_cover_what_they_were_recorded_for():
    found = {(row["layer"], row["fmt"], int(row["M"])) for row in rows("gemm_fused")}
    layers = {layer for layer, _, _ in found}
    assert len(layers) == 7
    for layer, fmt in itertools.product(layers, ("w4a16_g128_zp", "w8a16_ch", "w2a16_g128", "bf16_cublas")):
        assert {2**i for i in range(14)} <= {m for one, two, m in found if (one, two) == (layer, fmt)}
    for layer, fmt in itertools.product(layers, {fmt for _, fmt, _ in found}):
        assert {192, 512, 2048, 8192} <= {m for one, two, m in found if (one, two) == (layer, fmt)}


def test_no_operator_is_faster_than_its_bytes():
    for name in ("operators", "sampling"):
        for row in rows(name):
            nbytes = int(row["bytes"])
            if nbytes > L2:
                assert float(row["min_s"]) > floor_s(nbytes), row


def test_no_decode_attention_is_faster_than_its_cache_and_every_output_was_right():
    for row in rows("attention_decode"):
        size = {"bf16": 2, "fp8": 1}[row["kv_dtype"]]
        nbytes = 2 * int(row["batch"]) * int(row["seq"]) * int(row["kv_heads"]) * int(row["head_dim"]) * size
        if nbytes > L2:
            assert float(row["min_s"]) > floor_s(nbytes), row
        if row["kernel"] != "sdpa_default":  # outputs are averages of N(0, 1) values, at most about 0.2, in BF16
            assert 0 < float(row["max_error"]) < 2e-3, row


def test_power_lies_between_idle_and_the_limit_of_the_board():
    found = rows("power")
    idle = max(float(row["mean_w"]) for row in found if row["kernel"] == "idle")
    for row in found:
        assert int(row["samples"]) >= 10 * float(row["seconds"]), row
        if row["kernel"] != "idle":
            assert idle < float(row["mean_w"]) < 1.02 * 700, row
            assert float(row["call_s"]) > 0, row
            # two instruments: the counter of energy, and the mean of momentary readings
            assert float(row["sampled_w"]) == pytest.approx(float(row["mean_w"]), rel=0.04), row


def test_splits_of_k_are_whole_and_nvjet_splits_follow_one_rule():
    step = {"bf16": 64, "fp16": 64, "tf32": 32, "fp8": 128, "fp8_row": 128}
    split = 0
    for row in rows("gemm_split"):
        if row["fmt"] == "int8":
            assert row["parts"] == ""
            assert row["kernel"]
            continue
        k, parts, bounds = int(row["K"]), int(row["parts"]), [int(b) for b in row["bounds"].split()]
        assert bounds[0] == 0
        assert bounds[-1] == k
        assert len(bounds) == parts + 1
        lengths = [b - a for a, b in itertools.pairwise(bounds)]
        assert min(lengths) > 0
        assert (row["order"] != "") == (1 < parts <= 32), row
        if row["kernel"].startswith("nvjet"):
            assert (parts > 1) == ("splitK" in row["kernel"]), row
            unit = step[row["fmt"]]
            whole = math.ceil(math.ceil(k / unit) / parts) * unit
            assert lengths[:-1] == [whole] * (parts - 1), row
            assert lengths[-1] <= whole, row
            if parts > 1:
                split += 1
                assert row["order"] in ("two", "forward"), row
                assert row["partials"] == "float32", row
    assert split > 400


def test_held_out_splits_share_no_shape_with_the_others():
    found = {
        kind: {(r["fmt"], r["N"], r["K"], r["M"]) for r in rows("gemm_split") if r["held_out"] == kind} for kind in "01"
    }
    assert len(found["0"]) >= 2000
    assert len(found["1"]) >= 500
    assert not found["0"] & found["1"]
