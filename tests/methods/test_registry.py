"""Methods are declared once: what the guide says makes one, everywhere; what is no method is refused."""

from __future__ import annotations

import dataclasses
import inspect
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from qsim import methods
from qsim.errors import QsimError
from qsim.methods import METHODS, Options, get_method, option
from qsim.methods.registry import ENTRY_POINTS, Registry

from ..guides import install

ROOT = Path(__file__).parents[2]

# what a user does with the method of the guide, each line of it through a public door
USE = """
import json, sys
from pathlib import Path
import numpy as np
import qsim
from click.testing import CliRunner
from qsim.cli import main
from qsim.methods import read_records
from qsim.study import StudySpec
from qsim.study.looks import marks
from qsim.study.quality import Subject, quantised
from qsim.study.method import Method, methods_for
from qsim.study.spec import check
from qsim.study.study_file import spec_of
from tests.models.small import CONFIGS, random_tensors, write_folder
from qsim.models import ModelConfig, load

place = Path(sys.argv[1])
assert list(qsim.list_methods()) == ["rtn", "gptq", "awq", "smoothquant", "fp8", "cut"]
config = {**CONFIGS["llama"], "vocab_size": 256}
write_folder(place / "model", config, random_tensors(ModelConfig.from_dict(config)))
model = load(place / "model")
result = qsim.quantize_model(model, "cut", "w4a16-g32", keep=0.5)
name = next(iter(model.linears()))
largest = [np.abs(m.linears()[name].weight if m is model else m.tensors[f"{name}.weight"].dequantize()).max()
           for m in (model, result.model)]
assert largest[1] < 0.6 * largest[0], largest
assert result.settings["keep"] == 0.5

def run(*args):
    return CliRunner().invoke(main, [str(a) for a in args], prog_name="qsim", env={"COLUMNS": "100"})

said = run("quantize", "--help").output
assert "|fp8|cut]" in said and "Options of Cut:" in said and "--keep SHARE" in said, said
base = ("quantize", place / "model", "--scheme", "w4a16-g32", "--out", place / "out")
for more, sentence in (
    (("--method", "rtn", "--keep", "0.5"), "--keep is an option of cut, not of rtn; rtn has --scale-rule, --mse"),
    (("--method", "cut", "--mse"), "--mse is an option of rtn and gptq and fp8, not of cut; cut has --keep"),
    (("--method", "cut", "--keep", "half"), "--keep must be a number: got 'half'"),
    (("--method", "cut", "--keep", "2"), "keep must be above 0 and at most 1: got 2.0"),
):
    done = run(*base, *more)
    assert done.exit_code == 2 and done.stderr.strip() == "qsim: " + sentence, done.stderr
done = run(*base, "--method", "cut", "--keep", "0.5")
assert done.exit_code == 0, done.stderr
assert {r.method for r in read_records(place / "out")} == {"cut"}
assert (load(place / "out").logits([1, 2]) == result.model.logits([1, 2])).all()

asked = check(spec_of({"methods": [{"algorithm": "cut", "scheme": "w4a16-g32", "options": {"keep": 0.5}}]}))
method = asked.methods[1]
assert method.title == "Cut W4A16 g32 keep=0.5" and marks(asked.methods)[method.name].marker == "X"
assert [m.algorithm for m in methods_for("w4a16-g32")] == ["rtn", "gptq", "awq", "cut"]
subject = Subject(model=model, text=b"a", calibration=b"a", text_name="", calibration_name="")
assert (quantised(subject, method, asked)[0].logits([1, 2]) == result.model.logits([1, 2])).all()
for wrong, sentence in (
    ("cut:fp8-tensor", "method cut:fp8-tensor: cut rounds weights to integers: got float8_e4m3fn"),
    ("cutt:w4a16-g32", "study: methods.0.algorithm: unknown method 'cutt': the nearest is cut"),
):
    try:
        check(spec_of({"methods": [wrong]}))
    except qsim.QsimError as error:
        assert str(error) == sentence, error
    else:
        raise AssertionError(wrong)
"""


def test_the_method_of_the_guide_works_from_an_installed_package_through_every_door(tmp_path: Path) -> None:
    install(tmp_path, "How to add a quantisation method", ENTRY_POINTS)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path)], cwd=ROOT, env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_package_whose_method_cannot_be_loaded_is_named_and_the_others_work(tmp_path: Path, monkeypatch) -> None:
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\nlost = no_such_module_at_all:METHOD\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(UserWarning, match="the method lost of broken-package cannot be loaded: No module named"):
        assert list(Registry()) == list(METHODS)


RTN = get_method("rtn")


class Plain(Options):
    width: int = option(3, "not a dataclass")


@dataclass(frozen=True, kw_only=True)
class Bare(Options):
    width: int = 3


@dataclass(frozen=True, kw_only=True)
class Valued(Options):
    mse: float = option(2.4, "a value where others have none")


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ("rtn", "a method must be a qsim.methods.Method: got str"),
        (dataclasses.replace(RTN, name="My Method"), "must be lower-case letters"),
        (dataclasses.replace(RTN, name="none"), "must be lower-case letters"),
        (dataclasses.replace(RTN, title="Another"), "two methods are called 'rtn'"),
        (dataclasses.replace(RTN, name="mine", options=dict), "options must be a subclass of qsim.methods.Options"),
        (dataclasses.replace(RTN, name="mine", options=Plain), "Plain must be a frozen, keyword-only dataclass"),
        (dataclasses.replace(RTN, name="mine", options=Bare), "`name: type = option\\(...\\)`: width is not"),
        (dataclasses.replace(RTN, name="mine", options=Valued), "--mse and that of fp8|--mse and that of rtn"),
    ],
    ids=lambda v: "" if isinstance(v, str) else "method",
)
def test_what_is_no_method_is_refused_in_one_sentence(method: object, sentence: str) -> None:
    with pytest.raises(QsimError, match=sentence):
        Registry().register(method)  # type: ignore[arg-type]


def test_a_registered_method_is_found_and_made_again_takes_its_own_place() -> None:
    known = Registry()
    first = dataclasses.replace(RTN, name="mine", order=100, recipe=lambda scheme, options: None)
    assert known.register(first) is known.register(first) is known["mine"]
    second = dataclasses.replace(first, title="Second", recipe=lambda scheme, options: None)
    assert known.register(second) is known["mine"]
    assert list(known) == [*METHODS, "mine"]


@pytest.mark.parametrize("name", list(METHODS))
def test_options_have_the_defaults_of_the_function_of_one_layer(name: str) -> None:
    parameters = inspect.signature(getattr(methods, name)).parameters
    shared = {n: o for n, o in METHODS[name].options.declared().items() if n in parameters}
    assert len(shared) >= 3
    for option_name, declared in shared.items():
        if option_name != "correction":  # of a layer it is the matrix, of a model whether to find one
            assert parameters[option_name].default == declared.default, option_name


@pytest.mark.parametrize(
    ("method", "options", "sentence"),
    [
        ("gptq", {"percdamp": "much"}, "percdamp must be a number: got 'much'"),
        ("gptq", {"static_groups": 1}, "static_groups must be True or False: got 1"),
        ("gptq", {"block_size": 12.5}, "block_size must be an integer: got 12.5"),
        ("gptq", {"act_order": "on"}, "act_order must be True or False or 'group_aware': got 'on'"),
        ("rtn", {"scale_rule": 3}, "scale_rule must be a text or None: got 3"),
        ("awq", {"formula": "trio"}, "formula must be 'awq' or 'duo': got 'trio'"),
        ("smoothquant", {"alpha": True}, "alpha must be a number or None: got True"),
        ("fp8", {"ragged": None}, "ragged must be True or False: got None"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_before_any_work(method: str, options: dict, sentence: str) -> None:
    with pytest.raises(QsimError) as caught:
        get_method(method).make(None, options)
    assert str(caught.value) == sentence
