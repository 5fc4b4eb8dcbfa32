"""The teaching side: records that add up, what `qsim mma` prints, figures and examples that run."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from qsim.cli import main
from qsim.plots.accumulator import ErrorCurve, accumulation_error_figure, standstill_figure, width_error_figure
from qsim.plots.style import save
from qsim.tensorcore import explain_dot, list_instructions, matmul_floats
from qsim.tensorcore.explain import EXAMPLES

ROOT = Path(__file__).resolve().parents[2]


def run(*args, columns=100):
    return CliRunner().invoke(main, ["mma", *args], prog_name="qsim", env={"COLUMNS": str(columns)})


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.parametrize(
    "name",
    [
        "hopper.wgmma.f32.e4m3",
        "hopper.wgmma.f16.e4m3",
        "ampere.mma.f32.bf16",
        "hopper.mma.f32.e4m3",
        "blackwell.tcgen05.f32.mxfp8_e4m3",
        "blackwell.tcgen05.f32.nvfp4",
        "cdna3.mfma.f32.bf16",
        "hopper.mma.s32.s8",
        "ampere.mma.f64.f64",
    ],
)
def test_the_story_is_the_models(name, example):
    """Kept and lost parts add up to each term, terms to the sum, and the result is what matmul gives."""
    e = EXAMPLES[example]
    found = explain_dot(name, e.a, e.b, e.c, fill=e.fill)
    for step in found.steps:
        assert all(t.kept + t.lost == t.value for t in step.terms)
        assert sum((t.kept for t in step.terms), Fraction(0)) == step.sum
        assert (
            len(step.terms) + step.zeros == (found.instruction.products // 16 if "nvfp4" in name else len(step.k)) + 1
        )
    c = np.array([[found.c]]).astype(
        {"f16": np.float16, "s32": np.int32, "f64": np.float64}.get(found.instruction.output, np.float32)
    )
    expected = matmul_floats(np.array([found.a]), np.array([found.b]), instruction=name, c=c)
    assert found.result == expected[0, 0]


def test_every_instruction_can_be_explained():
    for name in list_instructions():
        assert explain_dot(name, [1, 2], [3, 4], 5).result == 16


def test_bad_explanations():
    with pytest.raises(ValueError, match="same number of values, at least one: got 1 and 2"):
        explain_dot("hopper.wgmma.f32.e4m3", [1], [1, 2])
    with pytest.raises(ValueError, match="at least one: got 0 and 0"):
        explain_dot("hopper.wgmma.f32.e4m3", [], [])


ONE = """\
d = a · b + c by hopper.wgmma.f32.e4m3  (L=32, F=13, e0=-133, rz_e8m13)
  A large pair cancels, and what lies F bits below it has gone with it.

One step  k = 0..31: largest exponent Emax = 6, unit 2^-7

 term               product            value     E   units             lost
────────────────────────────────────────────────────────────────────────────
 k=0                  8 · 8               64     6    8192
 k=1            0.375 · 0.5           0.1875    -3      24
 k=2                 -8 · 8              -64     6   -8192
 k=3    0.0625 · 0.01953125   0.001220703125   -10       0   0.001220703125
 k=4      -0.01953125 · 0.5     -0.009765625    -7      -1     -0.001953125

  and 28 zero terms
  sum of the units  23 · 2^-7 = 0.1796875  →  0.1796875 (exact)

  Result  0.1796875  (0x3e380000)
  Exact   0.178955078125  (error +0.000732422)
"""


def test_one_dot_product_in_full():
    assert run("hopper.wgmma.f32.e4m3").output == ONE


def test_own_numbers_as_json():
    (record,) = json.loads(run("hopper.wgmma.f32.e4m3", "-a", "1, -0.3", "-b", "2 8", "-c", "-1", "--json").output)
    assert record["a"][:2] == [1.0, -0.3125]
    assert record["result"] == 2 - 2.5 - 1
    assert record["steps"][0]["terms"][-1]["term"] == "c"
    assert record["changed"] == ["a[1] = -0.3 becomes -0.3125"]


def test_several_instructions_and_the_list():
    out = run("hopper.wgmma.f32.e4m3", "hopper.mma.f32.e4m3", "--csv").output.splitlines()
    assert out[0] == "instruction,result,bits,exact,error"
    assert len(out) == 3
    table = run("hopper.wgmma.f32.e4m3", "hopper.mma.f32.e4m3").output
    assert "exact" in table
    assert "+0.0007324" in table
    listed = run("--list", "hopper.wgmma", "--csv").output.splitlines()
    assert listed[1] == "hopper.wgmma.f32.f16,truncated,16,25,-133,rz_f32,16,m64nNk16,established"
    assert len(run().output.splitlines()) > 250


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("example", EXAMPLES)
def test_the_story_fits_the_terminal(columns, example):
    for name in ("hopper.wgmma.f32.e4m3", "hopper.mma.f32.e4m3", "ampere.mma.f32.bf16"):
        result = run(name, "--example", example, columns=columns)
        assert result.exit_code == 0
        assert all(len(line) <= columns and line == line.rstrip() for line in result.output.splitlines()), result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hopper.mma.s32.s4"], "hopper.mma has no s32.s4"),
        (["ampere.mma.f32.bf16", "-a", "1"], "-a and -b belong together"),
        (["ampere.mma.f32.bf16", "--example", "nothing"], "no example 'nothing': there are swallow"),
        (["ampere.mma.f32.bf16", "-a", "1", "-b", "1", "-c", "1 2"], "-c takes one number: got 2"),
        (["ampere.mma.f32.bf16", "-a", "x", "-b", "1"], "'x' is not a number"),
        (["--list", "pascal"], "unknown instruction 'pascal'"),
    ],
)
def test_mistakes_get_a_sentence(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_figures(tmp_path):
    x = np.array([32, 64, 128])
    curves = [ErrorCurve(label=n, x=x, error=np.array([0.0, 1e-4, 1e-3])) for n in ("one", "two")]
    figures = {
        "error": accumulation_error_figure({"a": curves, "b": curves}, title="errors"),
        "standstill": standstill_figure(x, {"chain": np.minimum(2.0 * x, 64)}, exact=2.0 * x),
        "width": width_error_figure(curves, {"FP8": 64}, title="width"),
    }
    for name, figure in figures.items():
        for axis in figure.axes:
            assert axis.get_xlabel()
        assert save(figure, tmp_path / f"{name}.svg").stat().st_size > 5000
    with pytest.raises(ValueError, match="at least one panel"):
        accumulation_error_figure({})


@pytest.mark.parametrize(
    "command",
    [["examples/probe_cuda.py", "--emulate", "--quick", "--kinds", "e4m3_slow", "s8"], ["examples/tensorcore_bits.py"]],
)
def test_examples_run(command, tmp_path):
    more = ["--json", str(tmp_path / "probe.json")] if "--emulate" in command else []
    result = subprocess.run(
        [sys.executable, str(ROOT / command[0]), *command[1:], *more], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    if more:
        report = json.loads((tmp_path / "probe.json").read_text())
        assert report["total"] == {"mismatches": 0, "outputs": report["total"]["outputs"]}
        assert report["probes"]["e4m3_slow"]["promote_every"] == 128
        assert not any("error" in part for part in report["probes"].values())
