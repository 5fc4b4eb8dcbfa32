"""The question: values, names, files, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

import hwmodels
import qsim
from qsim.errors import QsimError
from qsim.study import Case, DeviceSpec, Quality, StudySpec, read_spec
from qsim.study.method import Method, default_algorithm, methods_for, parse_method
from qsim.study.spec import Accumulator, check
from qsim.study.study_file import spec_of, to_table, to_toml


def test_a_study_file_gives_the_study_back(tmp_path: Path) -> None:
    spec = check(
        StudySpec(
            title="mine",
            methods=(Method(algorithm="gptq", scheme="w4a16-g64", options={"act_order": True}),),
            quality=Quality(max_loss=0.05, seed=3),
        )
    )
    path = tmp_path / "study.toml"
    path.write_text(to_toml(spec), encoding="utf-8")
    assert read_spec(path) == spec
    assert spec_of(to_table(spec)) == spec


def test_what_a_file_leaves_out_has_its_default(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text('methods = ["w4a16-g128", "gptq:w4a16-g128"]\n[speed]\ndevices = ["l40s"]\n', encoding="utf-8")
    spec = check(read_spec(path))
    assert [m.name for m in spec.methods] == ["none:bf16", "rtn:w4a16-g128", "gptq:w4a16-g128"]
    assert spec.quality == Quality()
    assert [d.title for d in spec.speed.devices] == ["l40s"]


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("text", encoding="utf-8")
    (tmp_path / "s.toml").write_text('[quality]\ntext = "t.txt"\n', encoding="utf-8")
    assert read_spec(tmp_path / "s.toml").quality.text == str(tmp_path / "t.txt")


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"qualty": {}}, "s.toml: qualty: unknown key 'qualty': the nearest is quality"),
        ({"quality": {"max_byte": 1}}, "s.toml: quality.max_byte: unknown key 'max_byte': the nearest are max_bytes"),
        ({"quality": {"window": 3}}, "s.toml: quality: window must be at least 16: got 3"),
        ({"quality": {"max_loss": 0}}, "max_loss must be positive: got 0"),
        ({"quality": {"window": "x"}}, "s.toml: quality.window: Input should be a valid integer"),
        ({"methods": []}, "a study must have methods and cases: got 0"),
        ({"methods": ["magic:w4a16-g128"]}, "unknown method 'magic'"),
        ({"cases": [{"name": "a", "phase": "prefill", "measure": "tpot"}]},
         "case a: a prefill is measured in ttft or tokens_per_s: got tpot"),
        ({"cases": [{"name": "a", "batch": 0}]}, "case a: batch 0 (the most that fits) belongs to phase request"),
        ({"speed": {"devices": []}}, "at least one model, one device"),
        ({"speed": {"devices": [{"nam": "x"}]}}, "s.toml: speed.devices.0.name: Field required"),
        ({"methods": ["rtn:w4a17"]}, "unknown scheme 'w4a17'"),
        ({"methods": ["awq:fp8"]}, "method awq:fp8: awq is for integer weights with 16-bit activations"),
        ({"methods": ["smoothquant:w4a16-g128"]}, "smoothquant is for integer weights and activations"),
        ({"methods": ["gptq:mxfp4"]}, "method gptq:mxfp4: GPTQ rounds weights to integer codes"),
        ({"methods": ["none:fp8-tensor"]}, "none leaves weights in 16 bit"),
        ({"methods": ["rtn:fp8-tensor", "rtn:fp8-tensor"]}, "two methods are called 'rtn:fp8-tensor'"),
        ({"speed": {"devices": ["h1000"]}}, "unknown device 'h1000'"),
        ({"speed": {"models": ["llama-9"]}}, "unknown model 'llama-9'"),
        ({"speed": {"profile": "egear"}}, "unknown execution profile 'egear'"),
        ({"speed": {"devices": [{"name": "asic", "set": {"memory.bandwith": 1}}]}}, "unknown key 'memory.bandwith'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_that_names_key_and_value(table: dict, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        check(spec_of(table, "s.toml"))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_no_file_can_have_is_kept_as_a_name(tmp_path: Path) -> None:
    """`Path.exists` raises for a name that is too long for the system."""
    path = tmp_path / "study.toml"
    path.write_text(f'[quality]\nmodel = "{"x" * 5000}"\n', encoding="utf-8")
    assert read_spec(path).quality.model == "x" * 5000
    with pytest.raises(QsimError, match="does not exist"):
        qsim.load("x" * 5000)
    for read in (hwmodels.get_architecture, hwmodels.get_device):
        for name in ("x" * 5000, "x" * 5000 + ".toml", "x" * 5000 + ".json"):
            with pytest.raises(QsimError) as error:
                read(name)
            assert len(str(error.value)) < 800


def test_values_are_checked_where_they_are_made() -> None:
    with pytest.raises(ValueError, match="fraction_bits must be at least 1: got 0"):
        Accumulator(fraction_bits=0)
    with pytest.raises(ValueError, match="case a: context must be at least 1: got 0"):
        Case(name="a", context=0)
    with pytest.raises(ValueError, match="a study must have methods"):
        StudySpec(methods=())


def test_schemes_are_studied_by_every_method_that_fits() -> None:
    names = {s: [m.algorithm for m in methods_for(s)] for s in ("w4a16-g64", "w8a8-tensor", "fp8", "nvfp4", "bf16")}
    assert names == {
        "w4a16-g64": ["rtn", "gptq", "awq"], "w8a8-tensor": ["rtn", "smoothquant"], "fp8": ["fp8"], "nvfp4": ["rtn"],
        "bf16": ["none"],
    }  # fmt: skip
    for scheme in names:
        check(StudySpec(methods=methods_for(scheme)))
        assert parse_method(scheme)["algorithm"] == default_algorithm(scheme) == names[scheme][0]


def test_quick_is_the_same_question_on_less_text() -> None:
    spec = StudySpec()
    quick = spec.quick()
    assert quick.quality.max_bytes < spec.quality.max_bytes
    assert (quick.methods, quick.cases, quick.speed) == (spec.methods, spec.cases, spec.speed)
    few = Quality(max_bytes=100, window=64, exact_bytes=0, outlier_bytes=0, calibration_tokens=64, search_grid=1)
    small = StudySpec(quality=few)
    assert small.quick() == small


def test_titles_say_what_was_changed() -> None:
    assert DeviceSpec(name="asic", set={"memory.bandwidth_gbytes_per_s": 8000}).title == (
        "asic (bandwidth_gbytes_per_s=8000)"
    )
    assert DeviceSpec(name="dir/mine.toml").title == "mine"
    assert Method(algorithm="gptq", scheme="w4a16-g64", options={"act_order": True}).title == "GPTQ W4A16 g64 act_order"
    assert Method(algorithm="rtn", scheme="mxfp4").title == "MXFP4"
