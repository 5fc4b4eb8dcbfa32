"""A decoder block as eager PyTorch runs it: every activation has the bits that an H200 recorded."""

import numpy as np
import pytest

from qsim.errors import QsimError
from qsim.models import load, run_eager
from tests.golden.test_recordings import load as recordings
from tests.golden.test_recordings import script

layers = script("fused_layers")


@pytest.fixture(scope="module")
def tiny():
    return load("tiny")


@pytest.mark.parametrize("label", ["bf16", "fp8", "w4a16"])
def test_every_activation_of_a_block_has_the_recorded_bits(label, tiny):
    _, notes = recordings("block")
    run = run_eager(layers.variant(tiny, label), layers.tokens(), kernel=layers.KERNELS[label], blocks=1)
    mine = {name.removeprefix("0."): layers.sha256(value) for name, value in run.activations.items()}
    assert mine == notes["block"]["sha256"][label]
    assert run.logits is None


@pytest.mark.parametrize("label", ["bf16", "fp8", "w4a16"])
def test_every_activation_of_all_blocks_and_the_logits_have_the_recorded_bits(label, tiny):
    arrays, notes = recordings("model")
    run = run_eager(layers.variant(tiny, label), layers.tokens(), kernel=layers.KERNELS[label])
    mine = {name: layers.sha256(value) for name, value in run.activations.items()}
    assert mine == notes["model"]["sha256"][label]
    assert len(mine) > 8 * 26
    np.testing.assert_array_equal(run.logits[:16], arrays[f"model.{label}.logits"])


def recorded(label="bf16"):
    prefix = f"block.{label}."
    return {key.replace(prefix, "0."): value for key, value in recordings("block")[0].items() if key.startswith(prefix)}


@pytest.mark.parametrize("name", ["0.norm1.rsqrt.f32", "0.scores", "0.silu", "0.down"])
def test_the_operator_that_differs_is_named(name, tiny):
    """One bit of one activation is changed: it is the first that differs, though later ones read it as it is."""
    given = recorded()
    assert run_eager(tiny, layers.tokens(), blocks=1, recorded=given).first_difference is None
    given[name] = given[name].copy()
    given[name].reshape(-1)[3] ^= 1
    run = run_eager(tiny, layers.tokens(), blocks=1, recorded=given)
    assert run.first_difference == name
    row = next(row for row in run.compared.rows if row[0] == name)
    assert row == (name, given[name].size, 1)


def test_an_operator_starts_from_recorded_inputs(tiny):
    """A recorded input from elsewhere: what reads it follows it, and only what was recorded of that differs."""
    other = np.roll(recorded()["0.up"], 1, axis=0)
    run = run_eager(tiny, layers.tokens(), blocks=1, recorded={"0.up": other, "0.down": recorded()["0.down"]})
    assert {row[0]: row[2] > 0 for row in run.compared.rows} == {"0.up": True, "0.down": True}
    from qsim.kernels import eager

    np.testing.assert_array_equal(run.activations["0.act"], eager.multiply(run.activations["0.silu"], other))


def test_logits_of_all_blocks_lie_around_those_of_the_float32_model(tiny):
    """BF16 keeps 8 bits: after 8 blocks the logits, of size 10, differ by some 2^-6 of it at most."""
    ids = layers.tokens()
    run = run_eager(tiny, ids)
    mine = (run.logits.astype(np.uint32) << 16).view(np.float32)
    exact = tiny.logits(ids)
    assert np.abs(mine - exact).max() < 2.0**-5 * np.abs(exact).max()
    assert list(run.activations)[-1] == "logits"
    again = run_eager(tiny, ids, attention="math")
    assert (again.logits != run.logits).any()  # float32 attention is another kernel


def refuse(words, model, ids=None, **more):
    with pytest.raises(QsimError, match=words):
        run_eager(model, layers.tokens() if ids is None else ids, **more)


def test_what_is_not_known_is_refused(tiny):
    refuse("one sequence", tiny, np.zeros((2, 3), np.int64))
    refuse("whole numbers", tiny, np.zeros(3))
    refuse("0 to 255", tiny, np.array([1, 256]))
    refuse("1 to 8", tiny, blocks=9)
    refuse("eager or math", tiny, attention="flash")
    refuse("no activation of this run", tiny, blocks=1, recorded={"0.nrm1": np.zeros(3, np.uint16)})
    refuse("must be uint16", tiny, blocks=1, recorded={"0.norm1": np.zeros((3, 384), np.uint16)})
    refuse("kernel must name", layers.variant(tiny, "w4a16"), blocks=1)
    refuse("does not run", layers.variant(tiny, "w4a16"), blocks=1, kernel="deepgemm")
    from qsim.models import with_scheme

    refuse("scaled_mm.fp8_tensor takes", with_scheme(tiny, "fp8-tensor"), blocks=1, kernel="scaled_mm")
    name = "model.layers.0.mlp.up_proj.weight"
    odd = tiny.replace(tensors={name: tiny.tensors[name] * np.float32(1.001)})
    refuse("up_proj.weight has others", odd, blocks=1)
    windows = tiny.replace(config=_with(tiny.config, sliding_windows=(16,) * 8))
    refuse("sliding windows", windows)


def _with(config, **values):
    import dataclasses

    return dataclasses.replace(config, **values)
