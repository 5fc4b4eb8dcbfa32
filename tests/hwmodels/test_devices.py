"""Devices: peaks as units x clock x rate, dense only, every number with a source, overrides and their errors."""

from __future__ import annotations

import dataclasses

import pytest

from hwmodels.device.build import check_key
from hwmodels.device.load import device_names, get_device

REQUIRED = (
    "a100-sxm-40gb", "a100-sxm-80gb", "a100-pcie-80gb", "h100-sxm", "h100-pcie", "h100-nvl", "h200", "l40s", "l40",
    "l4", "rtx-4090", "rtx-6000-ada", "b200", "mi300x", "gaudi2", "gaudi3", "tpu-v5e", "tpu-v6e", "sn40l-like",
    "groq-like", "asic",
)  # fmt: skip


def test_the_promised_devices_are_there() -> None:
    assert set(REQUIRED) <= set(device_names())


@pytest.mark.parametrize("name", device_names())
def test_peaks_are_units_times_clock_times_rate(name: str) -> None:
    device = get_device(name)
    for peak in device.compute.peaks:
        if peak.flop_per_clock_per_unit is not None and peak.clock_hz is not None and device.compute.units is not None:
            product = device.compute.units * peak.clock_hz * peak.flop_per_clock_per_unit
            assert product == pytest.approx(peak.flop_per_s, rel=0.015), peak.input


@pytest.mark.parametrize("name", device_names())
def test_every_number_has_a_source(name: str) -> None:
    table = get_device(name).table
    for label, peak in table["compute"]["peaks"].items():
        assert peak["source"], label
    for part in ("memory", "on_chip", "far", "link", "power"):
        for key, value in table.get(part, {}).items():
            if not isinstance(value, str):
                assert table["sources"].get(f"{part}.{key}"), f"{part}.{key}"
    for key in ("units", "vector_tflops"):
        if key in table["compute"]:
            assert table["sources"].get(f"compute.{key}"), key


def test_peaks_are_dense() -> None:
    for name, fmt, tflops in (
        ("h100-sxm", "float8_e4m3fn", 1979), ("l40s", "float8_e4m3fn", 733), ("l4", "float8_e4m3fn", 242.5),
        ("rtx-4090", "bfloat16", 165.2), ("rtx-4090", "float8_e4m3fn", 330.3), ("a100", "bfloat16", 312),
    ):  # fmt: skip
        peak = get_device(name).peak_flop_per_s(fmt)
        assert peak is not None
        assert peak / 1e12 == pytest.approx(tflops, rel=1e-3)
    half = get_device("rtx-4090").peak_flop_per_s("float16", "float16")
    assert half == pytest.approx(330.3e12)


def test_what_is_absent_is_none() -> None:
    assert get_device("a100").peak_flop_per_s("float8_e4m3fn") is None
    assert get_device("h100").peak_flop_per_s("int4") is None
    assert get_device("sn40l").peak_flop_per_s("float8_e4m3fn") is None


def test_gpus_name_the_instruction_behind_each_peak() -> None:
    assert get_device("h100").instructions["float8_e4m3fn"] == "hopper.wgmma.f32.e4m3"
    assert get_device("l40s").instructions["float8_e4m3fn"] == "ada.mma.f32.e4m3"
    assert get_device("a100").instructions["int8"] == "ampere.mma.s32.s8"
    for name in ("a100", "h100", "h200", "l40s", "l4", "rtx-4090", "b200"):
        device = get_device(name)
        assert all(p.instruction for p in device.compute.peaks)


def test_a_device_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_device("h100").name = "x"  # type: ignore[misc]


def test_overrides_change_one_field_and_are_recorded() -> None:
    base = get_device("h100")
    wide = get_device("h100", ["memory.bandwidth_gbytes_per_s=6000"])
    assert wide.memory.bandwidth_bytes_per_s == 6000e9
    assert wide.compute == base.compute
    assert wide.overrides == {"memory.bandwidth_gbytes_per_s": 6000}
    assert get_device("h100", {"compute.peaks.bfloat16.dense_tflops": 500}).peak_flop_per_s("bfloat16") == 500e12


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["memory.bandwidth_gbytes_per_s=3.35e12"], "another unit"),
        (["memory.bandwidth_gbytes_per_s=-1"], "positive"),
        (["memory.bandwidth_gbytes_per_s=0"], "positive"),
        (["memory.bandwith=3"], "memory.bandwidth_gbytes_per_s"),
        (["memory.bandwidth_gbytes_per_s"], "key=value"),
        (["power.board_w=lots"], "number"),
    ],
)
def test_bad_overrides_name_file_key_and_value(overrides: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        get_device("h100", overrides)
    if says != "key=value":
        assert "h100-sxm.toml" in str(error.value)


def test_a_device_file_of_the_user(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "mine.toml"
    path.write_text(
        'title = "Mine"\nkind = "asic"\n[compute.peaks.bfloat16]\ndense_tflops = 100\n'
        "[memory]\ncapacity_gbytes = 32\nbandwidth_gbytes_per_s = 1000\n"
    )
    assert get_device(path).peak_flop_per_s("bfloat16") == 1e14
    path.write_text('title = "Mine"\nkind = "asic"\n[compute.peaks.bfloat16]\ndense_tflops = 100\n[memory]\n')
    with pytest.raises(ValueError, match=r"mine.toml: memory.capacity_gbytes is missing"):
        get_device(path)
    path.write_text("title = ")
    with pytest.raises(ValueError, match="not TOML"):
        get_device(path)


def test_unknown_devices_list_the_nearest() -> None:
    with pytest.raises(ValueError, match="h100-sxm"):
        get_device("h100-smx")
    check_key("memory.capacity_gbytes", "x")
