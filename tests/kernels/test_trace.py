"""One element of a fused kernel step by step, and what `qsim mma --pipeline` prints of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

import qsim
from qsim.cli import main
from qsim.kernels import linear, list_pipelines, pack
from qsim.kernels.trace import example_scheme, trace

F32 = np.float32


@pytest.mark.parametrize("name", list_pipelines().names)
def test_the_steps_end_where_the_kernel_ends(name):
    t = trace(name, k=256, seed=2)
    assert t.row.fits(example_scheme(t.row))
    rng = np.random.default_rng(2)
    q = qsim.quantize(rng.standard_normal((128, 256)).astype(F32), t.scheme)
    x = rng.standard_normal((1, 256)).astype(F32)
    want = linear(np.repeat(x, t.row.fewest_tokens, 0), pack(q), exact=True, kernel=t.row)[0, 0]
    assert t.result == want
    assert t.steps[-1].value == want
    assert t.parts[-1].label.endswith(("255", f"part {len(t.parts)}"))
    value = F32(t.parts[-1].after)
    for step in t.steps:  # each step follows from the one before
        assert step.value == (value * F32(step.by) if step.by is not None else qsim.cast(value, "bfloat16"))
        value = F32(step.value)
    if t.row.promotion == "ffma":
        register = F32(0)
        for part in t.parts:
            register = F32(np.float64(part.sum) * part.scale + np.float64(register))
            assert part.after == register
    for product in t.products:
        if t.row.operand == "fold":
            moved = product.code - (product.zero or 0)
            if t.scheme.weight.is_integer:
                assert product.b == qsim.cast(F32(moved * product.scale), "bfloat16")
        if t.row.operand == "subnormal":
            assert product.b == product.code * 2.0**-9


def run(*arguments, columns="80"):
    result = CliRunner().invoke(main, ["mma", *arguments], env={"COLUMNS": columns})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("name", ["humming.w4a16", "humming.w4a8_fp8", "tinygemm.w4a16", "humming.w8a16"])
def test_the_walk_is_told_within_80_columns(name):
    text = run("--pipeline", name)
    assert max(map(len, text.splitlines())) <= 80
    for part in (name, "1  Operands", "2  Sums", "3  Epilogue", "Result", "Exact"):
        assert part in text
    assert json.loads(run("--pipeline", name, "--json"))["result"] == trace(name).result


def test_the_kernels_are_listed_and_other_words_beside_them_refused():
    assert max(map(len, run("--pipeline").splitlines())) <= 80
    assert [row["pipeline"] for row in json.loads(run("--pipeline", "--json"))] == list(list_pipelines().names)
    result = CliRunner().invoke(main, ["mma", "hopper.wgmma.f32.bf16", "--pipeline", "humming.w4a16"])
    assert "--pipeline has its own example" in str(result.exception) + result.output
    result = CliRunner().invoke(main, ["mma", "--pipeline", "humming.w5a16"])
    assert "unknown pipeline 'humming.w5a16'" in str(result.exception) + result.output


def test_an_example_of_ragged_length_is_refused():
    with pytest.raises(qsim.QsimError, match="must be a multiple of 128: got 200"):
        trace("humming.w4a16", k=200)
