"""Layouts are declared once: what the guide says makes one, everywhere; what is no layout is refused."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qsim.errors import QsimError
from qsim.layouts import LAYOUTS, Layer, get_layout
from qsim.layouts.config import methods
from qsim.layouts.registry import ENTRY_POINTS, Registry
from qsim.scheme import get_scheme

from ..guides import install

ROOT = Path(__file__).parents[2]

# what a user does with the layout of the guide, each line of it through a public door
USE = """
import json, sys
from pathlib import Path
import qsim
from click.testing import CliRunner
from qsim.checkpoints import convert, layouts_for, read, reason, write
from qsim.cli import main
from qsim.layouts import from_config, to_config
from tests.checkpoints.tiny import assert_same, quantized
from tests.models.small import CONFIGS, random_tensors, write_folder
from qsim.models import ModelConfig

place = Path(sys.argv[1])
assert list(qsim.list_layouts())[-1] == "bytewise" and "one to a byte" in str(qsim.list_layouts())
assert layouts_for("w8a16-g32-sym")[-1] == "bytewise"
assert reason("w8a16-channel", "bytewise") == "bytewise holds symmetric integers: got uint8"

model = quantized("w8a16-g32-sym")
written = write(model, place / "one", "bytewise")
config = json.loads((place / "one" / "config.json").read_text())["quantization_config"]
assert config["quant_method"] == written.layout == "bytewise", config
back = qsim.load(place / "one")
assert_same(back, model)
assert back.notes == () and "bytewise" in back.provenance, back.notes
convert(place / "one", place / "two", "compressed-tensors")
convert(place / "two", place / "three", "bytewise")
assert_same(read(place / "three"), model)
qt = model.tensors["model.layers.0.mlp.up_proj.weight"]
assert from_config(config).weight == qt.scheme.weight
assert to_config(qsim.get_scheme("int8"), "bytewise")["quant_method"] == "bytewise"

def run(*args):
    return CliRunner().invoke(main, [str(a) for a in args], prog_name="qsim", env={"COLUMNS": "100"})

assert "fp8, gguf, bytewise; auto:" in " ".join(run("quantize", "--help").output.split())
assert "bytewise" in run("schemes", "w8a16-g32-sym").output
small = {**CONFIGS["llama"], "vocab_size": 256}
write_folder(place / "model", small, random_tensors(ModelConfig.from_dict(small)))
base = ("quantize", place / "model", "--method", "rtn", "--layout", "bytewise", "--out", place / "out", "--scheme")
done = run(*base, "w4a16-g32")
assert done.exit_code == 2 and "bytewise holds symmetric integers: got uint4; use layout 'c" in done.stderr, done.stderr
done = run(*base, "w4a16-g32-sym")
assert done.exit_code == 0, done.stderr
assert "bytewise" in qsim.load(place / "out").provenance
"""


def test_the_layout_of_the_guide_works_from_an_installed_package_through_every_door(tmp_path: Path) -> None:
    install(tmp_path, "How to add a checkpoint layout", ENTRY_POINTS)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path)], cwd=ROOT, env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


AWQ = get_layout("awq")


@pytest.mark.parametrize(
    ("layout", "sentence"),
    [
        ("awq", "a layout must be a qsim.layouts.Layout: got str"),
        (dataclasses.replace(AWQ, name="My Layout"), "the name of a layout must be lower-case letters"),
        (dataclasses.replace(AWQ, name="auto"), "not `auto`, which is the first that holds a model: got 'auto'"),
        (dataclasses.replace(AWQ, says="another"), "two layouts are called 'awq': give the one that is added another"),
        (dataclasses.replace(AWQ, name="mine", plan=None), "layout mine: plan must be given, since it has a quant_m"),
        (dataclasses.replace(AWQ, name="mine", marks=()), "layout mine: marks must be given"),
        (dataclasses.replace(AWQ, name="mine", parts=("qweight",)), "parts must name every tensor of a layer: scales"),
    ],
    ids=lambda v: "" if isinstance(v, str) else "layout",
)
def test_what_is_no_layout_is_refused_in_one_sentence(layout: object, sentence: str) -> None:
    with pytest.raises(QsimError, match=sentence):
        Registry().register(layout)  # type: ignore[arg-type]


def test_a_registered_layout_is_found_after_those_of_the_package_and_can_be_made_again() -> None:
    known = Registry()
    first = dataclasses.replace(AWQ, name="mine", order=100, refuses=lambda layer: None)
    assert known.register(first) is known.register(first) is known["mine"]
    second = dataclasses.replace(first, says="second", refuses=lambda layer: None)
    assert known.register(second) is known["mine"]
    assert list(known) == [*LAYOUTS, "mine"]


@pytest.mark.parametrize("name", [name for name in LAYOUTS if LAYOUTS[name].quant_method is not None])
def test_a_layer_that_is_known_better_is_refused_no_less(name: str) -> None:
    """What a scheme is refused for, a layer with its shape is refused for in the same words."""
    refuses = LAYOUTS[name].refuses
    for scheme in map(get_scheme, ("w4a16-g128", "w8a8", "fp8-tensor", "fp8-block128", "mxfp4", "w3a16-g64-sym")):
        why = refuses(Layer(scheme=scheme))
        if why is not None:
            assert refuses(Layer(scheme=scheme, shape=(96, 128), act_order=True, name="x")) == why
        else:
            assert refuses(Layer(scheme=scheme, shape=(96, 128), name="x")) is None


def test_every_method_of_a_config_belongs_to_one_layout_that_reads_it() -> None:
    assert methods() == ("compressed-tensors", "gptq", "awq", "fp8")
