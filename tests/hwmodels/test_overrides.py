"""A changed field of a device counts everywhere as if its file held the new value, in every combination."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import pytest

import hwmodels
from hwmodels.breakeven import compute_bound_from
from hwmodels.device.load import overrides_by_device
from qsim.cli import main
from qsim.errors import QsimError

BANDWIDTH, PEAK = "memory.bandwidth_gbytes_per_s", "compute.peaks.bfloat16.dense_tflops"
TEXT = """
title = "Chip"
kind = "{kind}"
[compute]
units = 100
[compute.peaks.bfloat16]
dense_tflops = {peak}
[compute.peaks.int8]
dense_tflops = 800
[memory]
capacity_gbytes = 64
bandwidth_gbytes_per_s = {bandwidth}
[link]
bandwidth_gbytes_per_s_per_direction = 100
latency_us = 1.0
"""


def chip(folder: Path, *, peak: float = 400, bandwidth: float = 2000, kind: str = "gpu", name: str = "chip") -> str:
    path = folder / f"{name}.toml"
    path.write_text(TEXT.format(peak=peak, bandwidth=bandwidth, kind=kind))
    return str(path)


def run(*args: str, code: int = 0) -> click.testing.Result:
    result = click.testing.CliRunner().invoke(main, list(args), prog_name="qsim", env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result


def rows(*args: str) -> list[dict[str, Any]]:
    return list(json.loads(run(*args, "--json").stdout))


def test_overrides_add_up_and_equal_the_edited_file(tmp_path: Path) -> None:
    edited = hwmodels.get_device(chip(tmp_path, peak=50, bandwidth=6000))
    given = {PEAK: 50, BANDWIDTH: 6000}
    start = hwmodels.get_device(chip(tmp_path))
    for first, second in itertools.permutations(given.items()):
        changed = hwmodels.get_device(hwmodels.get_device(start, dict([first])), dict([second]))
        assert dataclasses.replace(changed, overrides=edited.overrides) == edited
        assert changed.overrides == given
        assert changed.table == edited.table
    assert start.memory.bandwidth_bytes_per_s == 2000e9
    shipped = hwmodels.get_device(hwmodels.get_device("asic", {BANDWIDTH: 6000}), {"memory.capacity_gbytes": 100})
    assert (shipped.memory.bandwidth_bytes_per_s, shipped.memory.capacity_bytes) == (6000e9, 100e9)


def test_the_table_of_a_device_cannot_be_written() -> None:
    with pytest.raises(TypeError):
        hwmodels.get_device("asic").table["memory"]["capacity_gbytes"] = 1


def test_a_renamed_device_keeps_its_changes_and_its_name() -> None:
    named = dataclasses.replace(hwmodels.get_device("asic", {BANDWIDTH: 6000}), name="mine")
    again = hwmodels.get_device(named, {PEAK: 50})
    assert (again.name, again.memory.bandwidth_bytes_per_s) == ("mine", 6000e9)


def test_a_device_that_is_not_what_its_table_says_is_not_overridden() -> None:
    device = hwmodels.get_device("asic")
    slow = dataclasses.replace(device, memory=dataclasses.replace(device.memory, bandwidth_bytes_per_s=1e12))
    with pytest.raises(QsimError, match="its memory is not what its table says"):
        hwmodels.get_device(slow, {PEAK: 50})
    with pytest.raises(QsimError, match="it has no table"):
        hwmodels.get_device(dataclasses.replace(device, table={}), {PEAK: 50})


CHANGES: dict[str, Callable[[str, dict[str, float]], Any]] = {
    "predict": lambda d, o: float(hwmodels.predict(d, "llama-3-8b", "bf16", "prefill", overrides=o).time_s),
    "request": lambda d, o: hwmodels.predict_request(d, "llama-3.2-1b", overrides=o).latency_s,
    "throughput": lambda d, o: hwmodels.throughput(d, "llama-3.2-1b", overrides=o).output_tokens_per_s,
    "sweep": lambda d, o: list(hwmodels.sweep(d, "llama-3-8b", batch=[1, 8], overrides=o).time_s),
    "fields": lambda d, o: list(
        hwmodels.sweep(d, "llama-3-8b", phase="prefill", overrides=o, fields={BANDWIDTH: [1000, 3000]}).time_s
    ),
    "tornado": lambda d, o: hwmodels.tornado(d, "llama-3-8b", phase="prefill", overrides=o).to_dict(),
    "break-even": lambda d, o: compute_bound_from(d, "llama-3-8b", overrides=o),
    "break-even of a peak": lambda d, o: compute_bound_from(
        d, "llama-3-8b", field="compute.peaks.int8.dense_tflops", scheme="w8a8", overrides=o, low=1, high=900
    ),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("kind", ["gpu", "asic"])
def test_an_override_gives_what_the_edited_file_gives(tmp_path: Path, what: str, kind: str) -> None:
    call = CHANGES[what]
    base, edited = chip(tmp_path, kind=kind), chip(tmp_path, peak=37, kind=kind, name="edited")
    value = call(base, {PEAK: 37})
    assert value == call(edited, {})
    assert value == call(hwmodels.get_device(base, {PEAK: 37}), {})  # type: ignore[arg-type]
    assert value != call(base, {}) or what == "break-even of a peak"  # the linear layers run at the INT8 peak


def test_a_field_that_is_overridden_is_not_moved_too(tmp_path: Path) -> None:
    for call in (
        lambda: hwmodels.sweep("asic", "llama-3-8b", overrides={BANDWIDTH: 1000}, fields={BANDWIDTH: [2000]}),
        lambda: compute_bound_from("asic", "llama-3-8b", overrides={BANDWIDTH: 1000}),
    ):
        with pytest.raises(QsimError, match="both overridden and moved"):
            call()
    with pytest.raises(QsimError, match="overridden twice"):
        hwmodels.get_device("asic", [f"{BANDWIDTH}=1", f"{BANDWIDTH}=2"])


def test_a_tornado_moves_every_field_of_a_file_of_ones_own(tmp_path: Path) -> None:
    mine = set(hwmodels.tornado(chip(tmp_path), "llama-3-8b").field)
    assert mine == {BANDWIDTH, "compute.peaks.dense_tflops", "memory.capacity_gbytes", "context", "batch",
                    "link.bandwidth_gbytes_per_s_per_direction", "link.latency_us"}  # fmt: skip
    wide = hwmodels.tornado(chip(tmp_path), "llama-3-8b", overrides={BANDWIDTH: 6000}).set_index("field")
    low, high = (
        float(hwmodels.predict(chip(tmp_path), "llama-3-8b", overrides={BANDWIDTH: b}).time_s) for b in (4800, 7200)
    )
    assert (wide.low[BANDWIDTH], wide.high[BANDWIDTH]) == (low, high)


# --- the command line: each pair of --set, --field, --tornado and a file of one's own --------------------------------


def test_set_and_field_together_equal_the_edited_file(tmp_path: Path) -> None:
    for base, edited in (
        (chip(tmp_path), chip(tmp_path, peak=50, name="edited")),
        ("asic", None),
    ):
        args = ("--phase", "prefill", "--batch", "1", "--field", f"{BANDWIDTH}=1500,4000")
        found = rows("sweep", "llama-3-8b", "--device", base, "--set", f"{PEAK}=50", *args)
        for row in found:
            one = hwmodels.predict(base, "llama-3-8b", phase="prefill", overrides={PEAK: 50, BANDWIDTH: row[BANDWIDTH]})
            assert row["time_s"] == pytest.approx(float(one.time_s), rel=1e-12)
        if edited is not None:
            same = rows("sweep", "llama-3-8b", "--device", edited, *args)
            assert [r["time_s"] for r in found] == [r["time_s"] for r in same]


def test_set_and_tornado_together_equal_the_edited_file(tmp_path: Path) -> None:
    args = ("--phase", "prefill", "--batch", "1", "--tornado")
    base, edited = chip(tmp_path), chip(tmp_path, peak=50, name="edited")
    found = rows("sweep", "llama-3-8b", "--device", base, "--set", f"{PEAK}=50", *args)
    same = rows("sweep", "llama-3-8b", "--device", edited, *args)
    drop = lambda table: [{k: v for k, v in r.items() if k != "device"} for r in table]  # noqa: E731
    assert drop(found) == drop(same)
    assert {r["field"] for r in rows("sweep", "llama-3-8b", "--device", "asic", *args)} > {r["field"] for r in same}


def test_field_and_tornado_together_are_a_tornado_for_each_value(tmp_path: Path) -> None:
    base = chip(tmp_path)
    args = ("--phase", "prefill", "--batch", "1", "--tornado")
    found = rows("sweep", "llama-3-8b", "--device", base, *args, "--field", f"{PEAK}=50,400")
    for peak in (50, 400):
        one = rows("sweep", "llama-3-8b", "--device", chip(tmp_path, peak=peak, name=f"p{peak}"), *args)
        mine = [r for r in found if r[PEAK] == peak]
        assert [(r["field"], r["low"], r["high"]) for r in mine] == [(r["field"], r["low"], r["high"]) for r in one]


def test_all_three_together(tmp_path: Path) -> None:
    found = rows("sweep", "llama-3-8b", "--device", chip(tmp_path), "--batch", "2", "--tornado", "--set", f"{PEAK}=50",
                 "--field", f"{BANDWIDTH}=1000,3000")  # fmt: skip
    for bandwidth in (1000, 3000):
        edited = chip(tmp_path, peak=50, bandwidth=bandwidth, name=f"b{bandwidth}")
        assert {r["base"] for r in found if r[BANDWIDTH] == bandwidth} == {
            float(hwmodels.predict(edited, "llama-3-8b", batch=2).time_s)
        }


@pytest.mark.parametrize("verb", ["predict", "roofline", "devices", "sweep"])
def test_set_reaches_every_verb(tmp_path: Path, verb: str) -> None:
    base, edited = chip(tmp_path), chip(tmp_path, bandwidth=6000, name="edited")
    args = () if verb == "devices" else ("llama-3-8b",)
    where = (lambda d: (d,)) if verb == "devices" else (lambda d: ("--device", d))
    drop = lambda text: text.replace("edited", "chip")  # noqa: E731
    changed = run(verb, *args, *where(base), "--set", f"{BANDWIDTH}=6000", "--csv").stdout
    assert changed == drop(run(verb, *args, *where(edited), "--csv").stdout)
    assert changed != run(verb, *args, *where(base), "--csv").stdout


@pytest.mark.parametrize("verb", ["roofline", "sweep", "devices"])
def test_one_of_several_devices_can_be_set_alone(tmp_path: Path, verb: str) -> None:
    mine = chip(tmp_path)
    names = ("h200", mine, "a100")
    given = names if verb == "devices" else ("llama-3-8b", *itertools.chain(*(("--device", n) for n in names)))
    of = lambda text, name: [line for line in text.splitlines() if name in line]  # noqa: E731
    plain = run(verb, *given, "--csv")
    for prefix, label in (("h200", "h200"), (mine, "chip"), ("chip", "chip"), ("a100-sxm-80gb", "a100-sxm-80gb")):
        one = run(verb, *given, "--csv", "--set", f"{prefix}:{BANDWIDTH}=1234")
        changed = {n for n in ("h200", "chip", "a100-sxm-80gb") if of(one.stdout, n) != of(plain.stdout, n)}
        assert changed == {label}
        assert "changes all" not in one.stderr
    every = run(verb, *given, "--csv", "--set", f"{BANDWIDTH}=1234")
    assert f"--set {BANDWIDTH} changes all 3 devices" in every.stderr
    assert all(of(every.stdout, n) != of(plain.stdout, n) for n in ("h200", "chip", "a100-sxm-80gb"))


def test_what_one_device_is_given_goes_before_what_all_are_given() -> None:
    mine, shared = overrides_by_device(["h200", "h100"], [f"{BANDWIDTH}=1", f"h100:{BANDWIDTH}=2"])
    assert mine == [{BANDWIDTH: 1}, {BANDWIDTH: 2}]
    assert shared == [BANDWIDTH]
    with pytest.raises(QsimError, match="changes l40s, which is not among the devices: h200, h100"):
        overrides_by_device(["h200", "h100"], [f"l40s:{BANDWIDTH}=1"])


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("sweep", "llama-3-8b", "--field", f"{BANDWIDTH}=1000", "--field", f"{BANDWIDTH}=2000"), "given twice"),
        (("sweep", "llama-3-8b", "--field", f"{BANDWIDTH}=fast"), "must be a number"),
        (("sweep", "llama-3-8b", "--set", f"{BANDWIDTH}=1", "--set", f"{BANDWIDTH}=2"), "overridden twice"),
        (("predict", "llama-3-8b", "--set", f"l4:{BANDWIDTH}=1"), "not among the devices"),
        (("sweep", "llama-3-8b", "--tornado", "--batch", "1,2"), "one batch"),
        (("sweep", "llama-3-8b", "--tornado", "--pareto"), "two tables"),
    ],
)
def test_a_slip_is_one_sentence(args: tuple[str, ...], says: str) -> None:
    assert says in run(*args, code=2).output
