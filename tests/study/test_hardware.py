"""The speed half says what `hwmodels` says, of the device as the study changed it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import hwmodels
from hwmodels.serving import Workload
from hwmodels.workload.footprint import model_weight_bytes
from qsim.scheme import get_scheme
from qsim.study import Case, DeviceSpec, StudySpec, hardware
from qsim.study.run import Run


def test_every_step_is_a_prediction_of_hwmodels(run: Run) -> None:
    cases = {c.name: c for c in run.result.spec.cases}
    checked = 0
    for row in run.result.speed:
        case = cases[row.case]
        if case.phase == "request":
            continue
        p = hwmodels.predict(row.device, row.model, row.scheme, case.phase, case.batch, case.context,
                             tensor_parallel=row.devices)  # fmt: skip
        assert (row.time_s, row.low_s, row.high_s) == (float(p.time_s), float(p.low_s), float(p.high_s))
        assert (row.fits, row.fidelity, row.kernel) == (bool(p.fits), p.fidelity, p.kernel)
        if case.measure == "tokens_per_s":
            assert row.value == pytest.approx(float(p.tokens_per_s), rel=1e-12)
            assert row.low < row.value < row.high
        checked += 1
    assert checked > 50


def test_requests_are_those_of_hwmodels(run: Run) -> None:
    row = next(r for r in run.result.speed if r.case == "offline" and r.fits)
    r = hwmodels.throughput(row.device, row.model, row.scheme, prompt=512, new_tokens=64, tensor_parallel=row.devices)
    assert (row.value, row.batch, row.time_s) == (r.output_tokens_per_s, r.running_batch, r.latency_s)
    assert row.low == pytest.approx(row.value * r.latency_s / r.high_s)


def test_served_cases_are_those_of_the_engine_with_prompts_among_the_steps(spec: StudySpec) -> None:
    """32 users are 32 in flight: prompts take time among the steps, so that the rate is below that of bare steps."""
    case = Case(name="s", phase="serve", batch=32, context=2048, new_tokens=256, measure="tokens_per_s")
    speed = replace(spec.speed, models=("llama-3-8b",), devices=(DeviceSpec(name="h200"), DeviceSpec(name="l4")))
    rows = list(hardware.speed_rows(replace(spec, speed=speed, cases=(case,))))
    load = Workload(concurrency=32, prompt=2048, output=256, start="steady")
    row = next(r for r in rows if r.device == "h200" and r.scheme == "bf16")
    s = hwmodels.serve("llama-3-8b", "h200", "bf16", workload=load, method="closed_form")
    assert (row.value, row.time_s, row.fidelity) == (s.output_tokens_per_s, s.tpot.mean, s.step.fidelity)
    assert row.low < row.value < row.high
    bare = hwmodels.predict("h200", "llama-3-8b", "bf16", "decode", 32, 2048 + 128)
    assert row.value < 0.7 * float(bare.tokens_per_s)
    large = replace(speed, models=("llama-3-70b",), devices=(DeviceSpec(name="l4"),))
    found = list(hardware.speed_rows(replace(spec, speed=large, cases=(case,))))
    assert not found[0].fits
    for measure in ("tpot", "ttft"):
        other = next(iter(hardware.speed_rows(replace(spec, speed=speed, cases=(replace(case, measure=measure),)))))
        assert other.value == (s.tpot if measure == "tpot" else s.ttft).mean


def test_devices_are_added_until_everything_fits(run: Run) -> None:
    mine = [r for r in run.result.speed if (r.model, r.device, r.case) == ("llama-3-70b", "h100-sxm", "chat")]
    fits = {count: {r.scheme: r.fits for r in mine if r.devices == count} for count in (1, 2)}
    assert not fits[1]["bf16"]
    assert fits[1]["w4a16-g128"]
    assert all(fits[2].values())
    assert max(r.devices for r in mine) == 2


def test_a_device_without_the_product_executes_weights_only() -> None:
    h100, a100 = hwmodels.get_device("h100-sxm"), hwmodels.get_device("a100-sxm-80gb")
    assert hardware.executed(h100, "fp8-tensor", "cuda_graph") == "full"
    assert hardware.executed(a100, "fp8-tensor", "cuda_graph") == "weights"
    assert hardware.executed(a100, "w8a8-channel-token", "cuda_graph") == "full"
    assert hardware.executed(h100, "mxfp4", "cuda_graph") == "weights"
    assert hardware.executed(a100, "w4a16-g128", "cuda_graph") == "full"


def test_weight_bits_are_the_schemes_own() -> None:
    arch = hwmodels.get_architecture("llama-3-8b")
    assert hardware.weight_bits(arch, "bf16") == pytest.approx(16)
    assert hardware.weight_bits(arch, "w4a16-g128") == pytest.approx(
        float(get_scheme("w4a16-g128").weight.bits_per_element((4096, 4096))), rel=1e-3
    )


def test_curves_are_speedups_and_flips_are_where_they_cross(spec: StudySpec, run: Run) -> None:
    curve = {(c.device, c.scheme, c.batch): c for c in run.result.curves}
    for (device, scheme, batch), c in curve.items():
        p, base = (hwmodels.predict(device, "llama-3-8b", s, "decode", batch, 2048) for s in (scheme, "bf16"))
        assert c.speedup == pytest.approx(float(hwmodels.speedup(p, base).value), rel=1e-12)
    for f in run.result.flips:
        if f.no_gain_from is None or f.scheme == "bf16":
            continue
        for batch, gains in ((f.no_gain_from, False), (f.no_gain_from - 1, True)):
            if batch < 1:
                continue
            p, base = (hwmodels.predict(f.device, f.model, s, "decode", batch, 2048) for s in (f.scheme, "bf16"))
            assert (float(p.time_s) < float(base.time_s)) is gains, (f, batch)
    assert any(f.no_gain_from for f in run.result.flips)


def test_a_changed_device_is_priced_as_changed_and_named_so(spec: StudySpec) -> None:
    fast = DeviceSpec(name="asic", set={"memory.bandwidth_gbytes_per_s": 8000}, label="fast")
    changed = replace(spec, speed=replace(spec.speed, models=("llama-3-8b",), devices=(DeviceSpec(name="asic"), fast)))
    rows = {(r.device, r.scheme, r.case): r for r in hardware.speed_rows(changed)}
    ratio = rows["asic", "bf16", "chat"].value / rows["fast", "bf16", "chat"].value
    assert 1.8 < ratio < 2.0


def test_capacity_is_the_footprint(run: Run) -> None:
    for c in run.result.capacity:
        arch = hwmodels.get_architecture(c.model)
        assert c.weights_gbytes == model_weight_bytes(arch, get_scheme(c.scheme)) / 1e9
        assert (c.largest_batch > 0) == (c.devices_needed == 1)


def test_rooflines_are_under_their_roofs(run: Run) -> None:
    roofs = {d: max(r.peak_flop_per_s for r in run.result.roofs if r.device == d) for d in ("h100-sxm", "asic")}
    bandwidth = {r.device: r.bandwidth_bytes_per_s for r in run.result.roofs}
    seen = 0
    for o in run.result.operators:
        if o.device in roofs and o.flop_per_byte > 0:
            limit = min(roofs[o.device], o.flop_per_byte * bandwidth[o.device])
            assert o.flop_per_s <= limit * 1.0001, o
            seen += 1
    assert seen > 20
    assert np.isfinite([o.flop_per_s for o in run.result.operators]).all()
