"""GPTQ: the fast solver against the slow one, options, corner cases, bad input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.methods import gptq, linalg, reference, rtn
from qsim.methods.scales import ScaleFinder, Scales
from qsim.scheme import QuantizedTensor, Scheme, TensorScheme, get_rule, get_scheme

from .anchors import SMALL, layer, make, output_error, scheme

F32 = np.float32


def problem(rows: int, columns: int, tokens: int = 512, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    w, x = make(rows, columns, tokens, seed)
    return w, (x.T @ x / F32(tokens)).astype(F32)


def same_codes(fast: QuantizedTensor, slow: reference.Solution) -> float:
    """Share of equal codes; scales found on the way differ in their last bit."""
    return float(np.isclose(fast.dequantize(), slow.weight, rtol=1e-4, atol=1e-7).mean())


@pytest.mark.parametrize(("bits", "group"), [(4, 128), (3, 32), (2, None), (8, 128)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"symmetric": True},
        {"mse": True},
        {"act_order": True},
        {"act_order": True, "static_groups": True},
        {"static_groups": True, "symmetric": True},
        {"block_size": 64},
        {"block_size": 512, "act_order": True},
    ],
    ids=lambda o: "-".join(o) or "plain",
)
def test_twins(bits, group, options):
    """640 columns: the fast factor is the reversed one, and 512 of its columns are carried on at once."""
    w, h = problem(70, 640)
    options = dict(options)
    symmetric = options.pop("symmetric", False)
    slow = reference.gptq(w, h, bits, group_size=group, symmetric=symmetric, **options)
    fast, record = gptq(w, h, scheme(bits, group, symmetric), **options)
    index = np.arange(640) // (group or 640) if fast.group_index is None else fast.group_index
    np.testing.assert_array_equal(index, slow.group_of)
    got, want = output_error(w, fast, h), np.einsum("nk,nk->", (w - slow.weight) @ h.astype(float), w - slow.weight)
    assert got == pytest.approx(want, rel=1e-2)  # a few rounding flips; they cascade
    assert same_codes(fast, slow) > 0.97
    assert record.loss == pytest.approx(slow.loss, rel=1e-2)
    assert record.damp == pytest.approx(slow.damp, rel=1e-6)
    if group is None or options.get("static_groups"):
        np.testing.assert_array_equal(fast.scales, slow.scales)


def test_first_block_is_the_reference_bit_for_bit():
    """Before any product of matrices there is nothing that a BLAS could sum differently."""
    w, h = problem(33, 128)
    slow = reference.gptq(w, h, 4, group_size=32)
    fast, _ = gptq(w, h, scheme(4, 32))
    np.testing.assert_array_equal(fast.dequantize(), slow.weight)
    np.testing.assert_array_equal(fast.scales, slow.scales)
    np.testing.assert_array_equal(fast.zeros, slow.zeros)


@pytest.mark.parametrize("act_order", [False, True])
def test_gptaq_twins(act_order):
    w, x = make(48, 384, 1024, seed=3)
    near = x + F32(0.05) * np.random.default_rng(0).standard_normal(x.shape).astype(F32) * np.abs(x).mean(axis=0)
    h = near.T @ near / F32(len(x))
    c = (x - near).T @ near / F32(len(x))
    for strength in (0.25, 1.0):
        slow = reference.gptq(w, h, 4, group_size=128, act_order=act_order, correction=c, correction_strength=strength)
        fast, record = gptq(w, h, scheme(4, 128), act_order, correction=c, correction_strength=strength)
        want, got = (np.linalg.norm(x @ (w - q).T) for q in (slow.weight, fast.dequantize()))
        assert got == pytest.approx(want, rel=1e-2)
        assert same_codes(fast, slow) > 0.98
        assert record.settings["correction_strength"] == strength
    plain, _ = gptq(w, h, scheme(4, 128), act_order)
    assert (plain.dequantize() != fast.dequantize()).any()


def test_gptaq_meets_the_outputs_of_the_original_model():
    """What the correction is for: the layer's inputs moved, its outputs should be those of the inputs that were."""
    w, x = make(64, 256, 4096, seed=5)
    moved = np.where(np.arange(256) % 3, x, F32(0.8) * x)
    h, c = moved.T @ moved / F32(4096), (x - moved).T @ moved / F32(4096)
    target = x @ w.T
    errors = []
    for correction in (None, c):
        q, _ = gptq(w, h, scheme(8, 128), correction=correction, correction_strength=1.0)
        errors.append(np.linalg.norm(moved @ q.dequantize().T - target))
    assert errors[1] < 0.9 * errors[0]


def test_group_aware_order_keeps_groups_whole():
    w, h = problem(64, 512)
    q, record = gptq(w, h, scheme(4, 128), "group_aware")
    assert q.group_index is None
    plain, _ = gptq(w, h, scheme(4, 128))
    assert output_error(w, q, h) < output_error(w, plain, h)
    from qsim.methods.columns import plan_columns

    plan = plan_columns(np.diag(h), scheme(4, 128).weight, "group_aware", False)
    order, diagonal = plan.order, np.diag(h)
    np.testing.assert_array_equal(np.sort(order), np.arange(512))
    groups = order.reshape(4, 128) // 128
    assert (groups == groups[:, :1]).all()
    assert all((np.diff(diagonal[order.reshape(4, 128)], axis=1) <= 0).ravel())
    assert (np.diff(diagonal[order[::128]]) <= 0).all()
    assert [s.group for s in plan.segments] == groups[:, 0].tolist()
    assert record.settings["act_order"] == "group_aware"


def test_the_two_ways_to_the_inverse_factor():
    _, _, h = layer(*SMALL)
    n, dead = h.shape[0], np.zeros(h.shape[0], bool)
    order = np.random.default_rng(0).permutation(n)
    damp = 0.01 * float(np.diag(h).mean())
    exact = h[np.ix_(order, order)].astype(np.float64) + damp * np.eye(n)
    want = np.linalg.cholesky(np.linalg.inv(exact)).T
    for flip in (True, False):
        u, condition = linalg.inverse_factor(h, order, dead, damp, flip=flip)
        np.testing.assert_allclose(np.triu(u), want, atol=3e-6 * np.abs(want).max())
        assert condition == pytest.approx(np.linalg.cond(exact, 1), rel=0.5)  # LAPACK's is a lower bound
    assert linalg.inverse_factor(h, order, dead, -float(np.diag(h).max()), flip=True) is None
    assert linalg.inverse_factor(h, order, dead, -float(np.diag(h).max()), flip=False) is None


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 80), groups=st.integers(1, 5), size=st.sampled_from([8, 16, 24, 64]), bits=st.integers(2, 8),
    symmetric=st.booleans(), act_order=st.sampled_from([False, True, "group_aware"]), static=st.booleans(),
    block=st.sampled_from([1, 7, 32, 128]), seed=st.integers(0, 99),
)  # fmt: skip
def test_codes_are_in_the_format_and_the_loss_is_the_error(
    rows, groups, size, bits, symmetric, act_order, static, block, seed
):
    columns = groups * size
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((rows, columns)).astype(F32)
    x = rng.standard_normal((2 * columns, columns)).astype(F32) * np.exp(rng.standard_normal(columns)).astype(F32)
    h = x.T @ x
    q, record = gptq(w, h, scheme(bits, size, symmetric), act_order, static, 0.01, block)
    assert int(q.codes.max()) < 2**bits
    d = w.astype(np.float64) - q.dequantize()
    want = np.einsum("nk,nk->", d @ (h.astype(np.float64) + record.damp * np.eye(columns)), d)
    assert 2 * record.loss == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("size", [96, 200, 1000])
def test_groups_that_do_not_divide(size):
    """Ragged: the last group is shorter, and groups lie across blocks and across what is carried on lazily."""
    w, h = problem(16, 1040)
    base = scheme(4, size)
    with pytest.raises(ValueError, match=f"group_size must divide K: got group_size={size}, K=1040"):
        gptq(w, h, base, name="a.b")
    ragged = Scheme(weight=TensorScheme(format="uint4", granularity=f"group({size})", symmetric=False, ragged=True))
    slow = reference.gptq(w, h, 4, group_size=size)
    fast, _ = gptq(w, h, ragged)
    assert fast.scales.shape == (16, -(-1040 // size))
    assert same_codes(fast, slow) > 0.97
    for order in (True, "group_aware"):
        q, record = gptq(w, h, ragged, order)
        assert record.output_error < record.rtn_output_error
        assert q.scales.shape == fast.scales.shape


@pytest.mark.parametrize("granularity", ["tensor", "block(32,64)"])
@pytest.mark.parametrize("act_order", [False, True])
def test_other_granularities(granularity, act_order):
    w, h = problem(64, 256)
    how = Scheme(weight=TensorScheme(format="uint8", granularity=granularity, symmetric=False))
    q, record = gptq(w, h, how, act_order)
    plain, _ = rtn(w, how, scale_rule="gptq")
    np.testing.assert_array_equal(q.scales, plain.scales)  # found beforehand
    assert output_error(w, q, h) < output_error(w, plain, h)
    d = w.astype(np.float64) - q.dequantize()
    assert 2 * record.loss == pytest.approx(output_error(w, q, h) + record.damp * np.square(d).sum(), rel=1e-4)


def test_stored_scales_are_made_up_for():
    w, h = problem(64, 512)
    how = scheme(8, 128, scale_format="float16")  # at 8 bits the rounding of a float16 scale is what is left
    inside, _ = gptq(w, h, how)
    after, record = gptq(w, h, how, stored_scales=False)
    assert record.settings["stored_scales"] is False
    assert output_error(w, inside, h) < output_error(w, after, h)
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(inside.scales, inside.scales.astype(np.float16).astype(F32))
    exact, _ = gptq(w, h, scheme(8, 128))
    np.testing.assert_array_equal(after.codes, exact.codes)  # the original: solve in float32, round scales at the end


def test_dead_columns():
    w, h = problem(32, 256)
    h[:, 10] = h[10] = h[:, 200] = h[200] = 0
    for options in ({}, {"act_order": True}, {"act_order": True, "static_groups": True}):
        q, record = gptq(w, h, scheme(4, 64), **options)
        assert record.dead_columns == 2
        assert not q.dequantize()[:, [10, 200]].any()
        slow = reference.gptq(w, h, 4, group_size=64, **options)
        assert same_codes(q, slow) > 0.98


def test_a_layer_that_saw_no_token_is_rounded_to_nearest():
    w, _ = problem(32, 256)
    q, record = gptq(w, np.zeros((256, 256), F32), scheme(4, 128), tokens=0, name="experts.3.w1")
    plain, _ = rtn(w, scheme(4, 128), scale_rule="gptq")
    np.testing.assert_array_equal(q.codes, plain.codes)
    assert (record.fallback, record.method, record.dead_columns) == ("rtn", "gptq", 256)
    assert "no calibration token reached this layer" in record.notes


def test_the_damping_ladder():
    w, h = problem(32, 256)
    shifted = h - F32(0.05 * np.diag(h).mean()) * np.eye(256, dtype=F32)  # smallest eigenvalues go negative
    np.fill_diagonal(shifted, np.maximum(np.diag(shifted), F32(1e-3)))
    q, record = gptq(w, shifted, scheme(4, 128))
    assert 0.01 < record.damp_percent <= 0.16
    assert any(f"used {record.damp_percent:g}" in note for note in record.notes)
    assert not record.fallback
    indefinite = h.copy()
    indefinite[0, 1] = indefinite[1, 0] = 10 * np.diag(h).max()
    q, record = gptq(w, indefinite, scheme(4, 128))
    assert record.fallback == "rtn"
    assert record.damp is None
    assert "not positive definite, even with percdamp 1" in record.notes[-1]
    np.testing.assert_array_equal(q.codes, rtn(w, scheme(4, 128), scale_rule="gptq")[0].codes)


def test_a_singular_hessian_is_damped_and_said():
    w, x = make(32, 256, 40, seed=2)
    h = x.T @ x
    _, record = gptq(w, h, scheme(4, 128), tokens=40)
    assert record.notes == ("40 tokens for 256 columns: the Hessian is not of full rank",)
    assert record.damp_percent == 0.01
    assert record.error_ratio < 1
    _, record = gptq(w, h, scheme(4, 128), percdamp=0.0, tokens=40)
    assert record.damp_percent > 0 or record.condition > 1e5


def test_groups_of_zeros():
    w, h = problem(8, 256)
    w[3, :128] = 0
    w[5] = 0
    q, record = gptq(w, h, scheme(4, 128))
    assert record.zero_groups == 3
    assert not q.dequantize()[5].any()
    assert np.isfinite(q.dequantize()).all()


def test_bad_input():
    w, h = problem(16, 128)
    good = scheme(4, 128)
    cases = [
        ((w, h, "fp8"), {}, r"GPTQ rounds weights to integer codes: got float8_e4m3fn \(layer x\)"),
        ((w, h, "mxfp4"), {}, "GPTQ rounds weights to integer codes: got mxfp4"),
        ((w, h, "bf16"), {}, "GPTQ rounds weights to integer codes: got bfloat16"),
        ((w, h[:64], good), {}, r"Hessian of a weight with 128 columns is \(128, 128\): got \(64, 128\) \(layer x\)"),
        ((w.astype(int), h, good), {}, "real floating-point numbers: got int64"),
        ((w[0], h, good), {}, r"a matrix \(N, K\)"),
        ((w, h, good), {"percdamp": -0.1}, "percdamp is a fraction of the mean diagonal"),
        ((w, h, good), {"block_size": 0}, "block_size must be at least 1"),
        ((w, h, good), {"act_order": "group"}, "act_order must be True or False or 'group_aware': got 'group'"),
        ((w, h, good), {"scale_rule": "amax"}, "scale rule 'amax' is not defined for uint4"),
        ((w, h, good), {"correction": h[:4]}, r"correction has the Hessian's shape"),
    ]  # fmt: skip
    for arguments, options, message in cases:
        with pytest.raises(ValueError, match=message):
            gptq(*arguments, **options, name="x")
    mixed = Scheme(
        weight=TensorScheme(format="int4", granularity="group(128)"),
        activation=TensorScheme(format="float8_e4m3fn", granularity="token", dynamic=True),
        compute="bfloat16",
    )
    with pytest.raises(ValueError, match="multiplied by 16-bit floats or by integers: got float8_e4m3fn activations"):
        gptq(w, h, mixed)
    for where, what, message in (
        (w, np.nan, r"weights must be finite: 1 values in 1 rows .* row 2 \(layer x\)"),
        (h, np.inf, r"the Hessian must be finite: column 2 .*\(layer x\)"),
        (h, -1.0, r"the Hessian is a sum of squares: its diagonal is -1.0 in column 2"),
    ):
        kept, where[2, 2] = where[2, 2], what
        with pytest.raises(ValueError, match=message):
            gptq(w, h, good, name="x")
        where[2, 2] = kept
    h[0, 5] += h.max()
    with pytest.raises(ValueError, match="must be symmetric: row 0"):
        gptq(w, h, good)


def test_integer_activations_are_allowed():
    w, h = problem(16, 128)
    q, _ = gptq(w, h, get_scheme("w4a8-g128"))
    assert q.scheme.activation.format.name == "int8"


@pytest.mark.parametrize("name", ["w4a16-g128", "w4a16-g128-sym"])
def test_a_group_that_errors_move_to_nearly_nothing_gets_the_smallest_scale(name):
    how = get_scheme(name).weight
    x = np.random.default_rng(0).standard_normal((4, 128)).astype(np.float32)
    finder = ScaleFinder(how=how, rule=get_rule(None, how), norm=None, stored=True)
    plain, tiny = Scales(finder, (4, 128)), Scales(finder, (4, 128))
    plain.find_group(x, slice(0, 4), 0)
    moved = x.copy()
    moved[2] *= 1e-9  # its scale would be 0 in float16
    tiny.find_group(moved, slice(0, 4), 0)
    assert tiny.stored[2, 0] == 2.0**-24
    np.testing.assert_array_equal(np.delete(tiny.stored, 2), np.delete(plain.stored, 2))
    np.testing.assert_array_equal(np.delete(tiny.zeros, 2), np.delete(plain.zeros, 2))
    assert tiny.zeros[2, 0] in (7, 8)
