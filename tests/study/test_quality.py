"""The quality half says what `qsim.models` measures, of what a device executes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from qsim.models import evaluate, with_scheme
from qsim.models.evaluation import Reference
from qsim.scheme import QuantizedTensor
from qsim.study import StudySpec
from qsim.study import quality as q
from qsim.study.method import Method, parse_method
from qsim.study.run import Run


@pytest.fixture(scope="module")
def subject(spec: StudySpec) -> q.Subject:
    return q.subject(spec)


def test_losses_are_paired_differences_of_evaluate(spec: StudySpec, subject: q.Subject, run: Run) -> None:
    base = q.in_sixteen_bit(subject.model)
    mine = q.in_sixteen_bit(with_scheme(subject.model, "w4a16-g128"))
    found = evaluate(mine, subject.text, window=64, max_bytes=1024, reference=base)
    row = next(r for r in run.result.quality if r.method == "rtn:w4a16-g128")
    assert (row.loss, row.loss_se) == (found.bits_per_byte_delta, found.bits_per_byte_delta_se)
    assert (row.kl, row.top1_agreement, row.bytes_scored) == (found.kl, found.top1_agreement, found.bytes)
    assert row.loss_se < row.bits_per_byte_se


def test_sixteen_bit_is_the_reference(run: Run) -> None:
    first = run.result.quality[0]
    assert (first.method, first.loss, first.loss_se, first.model_bits) == ("none:bf16", 0.0, 0.0, 16.0)
    assert first.kl == pytest.approx(0.0, abs=1e-12)
    assert run.result.measured.base_bits_per_byte == first.bits_per_byte


def test_weights_only_keeps_the_codes_and_leaves_activations(subject: q.Subject) -> None:
    full = with_scheme(subject.model, "fp8-rowwise")
    bare = q.weights_only(full)
    for name in full.linears():
        one, two = full.tensors[f"{name}.weight"], bare.tensors[f"{name}.weight"]
        assert isinstance(one, QuantizedTensor)
        assert isinstance(two, QuantizedTensor)
        assert np.array_equal(one.codes, two.codes)
        assert two.scheme.activation.format.name == "bfloat16"
    tokens = subject.model.tokenizer.encode("abcdefgh" * 4)  # type: ignore[union-attr]
    assert not np.array_equal(full.logits(tokens), bare.logits(tokens))


def test_variants_are_what_devices_execute(spec: StudySpec, run: Run) -> None:
    found = {(r.method, r.variant) for r in run.result.quality}
    assert ("fp8:fp8-rowwise", "weights") in found  # the A100 has no FP8
    assert ("rtn:mxfp4", "weights") in found
    assert ("gptq:w4a16-g128", "weights") not in found
    needed = {(m.name, r.executed) for m in spec.methods for r in run.result.speed if r.scheme == m.scheme}
    assert needed <= found


def test_exact_rows_are_the_emulators_bits(spec: StudySpec, subject: q.Subject, run: Run) -> None:
    row = next(r for r in run.result.exact if r.method == "fp8:fp8-rowwise" and r.device == "h100-sxm")
    assert (row.instruction, row.status) == ("hopper.wgmma.f32.e4m3", "established")
    fast = q.in_sixteen_bit(with_scheme(subject.model, "fp8-rowwise"))
    settings = {n: {"engine": "exact", "instruction": "hopper.wgmma.f32.e4m3"} for n in fast.linears()}
    settings["lm_head"] = {"engine": "exact", "instruction": "hopper.wgmma.f32.bf16", "activation": "bfloat16"}
    exact = fast.replace(linear_settings=settings)
    found = evaluate(exact, subject.text, window=64, max_bytes=64, reference=Reference(fast))
    assert row.bits_per_byte == found.bits_per_byte
    assert (row.difference, row.kl) == (found.bits_per_byte_delta, found.kl)
    assert row.kl > 0


def test_each_device_has_its_own_instruction(run: Run) -> None:
    of = {(r.device, r.method): r for r in run.result.exact}
    assert of["a100-sxm-80gb", "fp8:fp8-rowwise"].instruction == "ampere.mma.f32.bf16"  # weights only
    assert of["asic", "fp8:fp8-rowwise"].status == "given"
    assert "F=16" in of["asic", "fp8:fp8-rowwise"].parameters
    assert of["h100-sxm", "none:bf16"].instruction == "hopper.wgmma.f32.bf16"
    assert {r.bits_per_byte for r in run.result.exact if r.method == "fp8:fp8-rowwise"} != {
        of["h100-sxm", "fp8:fp8-rowwise"].bits_per_byte
    }


def test_one_method_of_each_kind_goes_through_the_emulator(spec: StudySpec) -> None:
    assert [m.name for m in q.exact_methods(StudySpec())] == [
        "none:bf16", "gptq:w4a16-g128", "smoothquant:w8a8-channel-token", "fp8:fp8-rowwise",
    ]  # fmt: skip
    few = replace(spec, methods=(Method(algorithm="none", scheme="bf16"), Method(algorithm="rtn", scheme="mxfp4")))
    assert [m.name for m in q.exact_methods(few)] == ["none:bf16"]


def test_bits_count_scales_and_zero_points(run: Run) -> None:
    bits = {r.method: r.model_bits for r in run.result.quality}
    assert bits["rtn:w4a16-g128"] == pytest.approx(4.15625)
    assert bits["rtn:mxfp4"] == pytest.approx(4.25)
    assert 8 < bits["fp8:fp8-rowwise"] < 8.3


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "holds no text"), (b" \n", "holds no text"), (b"caf\xe9", "is not UTF-8 text: byte 3 is 0xe9")],
)
def test_a_text_that_cannot_be_used_is_refused(spec: StudySpec, tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says):
        q.subject(replace(spec, quality=replace(spec.quality, text=str(path))))


def test_a_calibration_text_shorter_than_a_window_is_refused(spec: StudySpec, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("short", encoding="utf-8")
    wanted = replace(spec, quality=replace(spec.quality, calibration=str(path)))
    with pytest.raises(ValueError, match="window"):
        q.calibration(q.subject(wanted), wanted)


@pytest.mark.parametrize(
    ("method", "loss", "se", "bytes_", "settled"),
    [
        ("fp8:fp8-rowwise", 0.001, 0.001, 1024, True),
        ("fp8:fp8-rowwise", 0.001, 0.001, 512, False),  # too little text yet
        ("fp8:fp8-rowwise", 0.001, 0.004, 1024, False),  # may still lose too much
        ("rtn:w4a16-g128", 0.001, 0.001, 1024, False),  # four bits are compared with each other on all of the text
        ("rtn:mxfp4", 0.9, 0.001, 1024, False),
        ("rtn:w3a16-g128", 0.9, 0.001, 1024, True),
        ("rtn:w3a16-g128", 0.011, 0.001, 1024, False),
        ("none:bf16", 0.0, 0.0, 1024, False),  # what all others are held against
    ],
)
def test_a_method_is_scored_no_further_once_its_side_of_the_limit_is_sure(
    spec: StudySpec, method: str, loss: float, se: float, bytes_: int, settled: bool
) -> None:
    asked = replace(spec, quality=replace(spec.quality, max_loss=0.01, least_bytes=1024, window=64))
    so_far = SimpleNamespace(bytes=bytes_, bits_per_byte_delta=loss, bits_per_byte_delta_se=se)
    assert q.is_settled(asked, Method(**parse_method(method)), so_far) is settled
    never = replace(asked, quality=replace(asked.quality, least_bytes=0))
    assert q.is_settled(never, Method(**parse_method(method)), so_far) is False


def test_the_shipped_study_scores_128_kib_of_text_that_training_never_saw() -> None:
    from qsim.models import tiny_text

    quality = StudySpec().quality
    assert quality.max_bytes >= 128 * 1024
    assert len(tiny_text("test").encode()) >= quality.max_bytes
    assert (quality.text, quality.window) == ("", 512)
