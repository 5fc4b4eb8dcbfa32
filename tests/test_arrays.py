"""What is no array of real numbers is refused with a sentence, wherever arrays come in."""

import ml_dtypes
import numpy as np
import pytest

from qsim import formats, kernels
from qsim.analysis import error
from qsim.arrays import as_plain_array, real_array, whole_array
from qsim.errors import QsimError
from qsim.methods import awq, fp8, gptq, keep_channels, rtn, smoothquant
from qsim.models import evaluate
from qsim.scheme import QuantizedTensor, quantize
from tests.models.small import random_model

F32 = np.float32
SHAPE = (64, 128)
W = np.random.default_rng(0).standard_normal(SHAPE).astype(F32)
X = np.random.default_rng(1).standard_normal((3, 128)).astype(F32)
H = np.eye(128)
PEAKS = np.ones(128, F32)
PACKED = {name: kernels.pack(quantize(W, name)) for name in ("w4a16-g128", "w8a8", "fp8", "mxfp8", "nf4-g64")}


def masked(like):
    mask = np.zeros(like.shape, bool)
    mask.reshape(-1)[-1] = True
    return np.ma.masked_array(like, mask)


BAD = {
    "texts": lambda like: like.astype(str),
    "bytes": lambda like: like.astype("S8"),
    "dates": lambda like: np.zeros(like.shape, "datetime64[s]"),
    "time spans": lambda like: np.zeros(like.shape, "timedelta64[ns]"),
    "complex numbers": lambda like: like.astype(np.complex64),
    "objects": lambda like: like.astype(object),
    "booleans": lambda like: like > 0,
    "records": lambda like: np.zeros(like.shape, [("a", "f4")]),
    "masked elements": masked,
    "a list with a masked array": lambda like: [
        *like[:-1],
        masked(like[-1:])[0] if like.ndim == 1 else masked(like[-1]),
    ],
    "lists of unequal lengths": lambda like: [[1.0, 2.0], [3.0]],
    "nothing": lambda like: None,
}
ENTRIES = {
    **{f"linear {name}": (lambda bad, p=packed: kernels.linear(bad, p), X) for name, packed in PACKED.items()},
    "linear rounded": (lambda bad: kernels.linear(bad, PACKED["w4a16-g128"], activation="bfloat16"), X),
    "linear exact": (lambda bad: kernels.linear(bad, PACKED["w8a8"], exact=True), X),
    "bias": (lambda bad: kernels.pack(quantize(W, "w8a8"), bias=[0.0] if bad is None else bad), W[:, 0]),
    "quantize": (lambda bad: quantize(bad, "w4a16-g128"), W),
    "quantize activations": (lambda bad: quantize(bad, "w8a8", part="activation"), X),
    "encode": (lambda bad: formats.encode(bad, "e4m3"), W),
    "cast": (lambda bad: formats.cast(bad, "e4m3"), W),
    "quantize_blocks": (lambda bad: formats.quantize_blocks(bad, "mxfp4"), W),
    "decode": (lambda bad: formats.decode(bad, "e4m3"), W),
    "pack bits": (lambda bad: formats.pack(bad, 4), W),
    "unpack bits": (lambda bad: formats.unpack(bad, 4), W),
    "rtn": (lambda bad: rtn(bad, "w4a16-g128"), W),
    "rtn hessian": (lambda bad: rtn(W, "w4a16-g128", hessian=[1] if bad is None else bad), H),
    "gptq": (lambda bad: gptq(bad, H, "w4a16-g128"), W),
    "gptq hessian": (lambda bad: gptq(W, bad, "w4a16-g128"), H),
    "gptq correction": (lambda bad: gptq(W, H, "w4a16-g128", correction=[1] if bad is None else bad), H),
    "awq mean_abs": (lambda bad: awq(W, "w4a16-g128", mean_abs=bad, hessian=H), PEAKS),
    "awq hessian": (lambda bad: awq(W, "w4a16-g128", mean_abs=PEAKS, hessian=bad), H),
    "smoothquant max_abs": (lambda bad: smoothquant(W, max_abs=bad), PEAKS),
    "smoothquant inputs": (lambda bad: smoothquant(W, max_abs=PEAKS, inputs=[1] if bad is None else bad), X),
    "fp8 max_abs": (lambda bad: fp8(W, "fp8-static", max_abs=["a"] if bad is None else bad), PEAKS),
    "fp8 inputs": (lambda bad: fp8(W, "fp8", inputs=[1] if bad is None else bad), X),
    "kept channels": (lambda bad: keep_channels(W, "w4a16-g128", bad), np.ones(3)),
    "max_abs_error": (lambda bad: error.max_abs_error(bad, W), W),
    "sqnr_db": (lambda bad: error.sqnr_db(W, bad), W),
    "error_against_magnitude": (lambda bad: error.error_against_magnitude(bad, W), W),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("entry", ENTRIES)
def test_what_is_no_array_of_real_numbers_is_refused_where_it_comes_in(entry, kind):
    call, like = ENTRIES[entry]
    bad = BAD[kind](np.asarray(like))
    with pytest.raises(QsimError) as refused:
        call(bad)
    assert "\n" not in str(refused.value)


def test_a_masked_array_without_masked_elements_is_its_data():
    free = np.ma.masked_array(W, np.zeros(SHAPE, bool))
    assert quantize(free, "w4a16-g128") == quantize(W, "w4a16-g128")
    np.testing.assert_array_equal(
        kernels.linear(np.ma.masked_array(X), PACKED["w8a8"]), kernels.linear(X, PACKED["w8a8"])
    )
    assert error.max_abs_error(free, W) == 0


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ">f4", ">f8"])
def test_every_real_float_type_is_taken_for_its_values(dtype):
    x = formats.cast(X, "e4m3").astype(dtype)
    want = formats.cast(X, "e4m3").astype(F32)
    assert real_array(x, "x", dtype=F32).tobytes() == want.tobytes()
    np.testing.assert_array_equal(kernels.linear(x, PACKED["w8a8"]), kernels.linear(want, PACKED["w8a8"]))
    w = np.resize(want, SHAPE)
    assert quantize(w.astype(dtype), "w4a16-g128") == quantize(w, "w4a16-g128")


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, ml_dtypes.int4])
def test_integers_are_taken_only_where_they_are_meant(dtype):
    ones = np.ones(SHAPE, dtype)
    assert real_array(ones, "x", integers=True, dtype=F32).sum() == ones.size
    assert error.max_abs_error(ones, np.ones(SHAPE)) == 0
    for call in (lambda: quantize(ones, "w4a16-g128"), lambda: kernels.linear(ones, PACKED["w4a16-g128"])):
        with pytest.raises(QsimError, match="must be real floating-point numbers: got u?int"):
            call()


@pytest.mark.parametrize("big", [1e39, -1e300])
def test_finite_values_beyond_float32_are_refused_and_not_made_inf(big):
    w, x = W.astype(np.float64), X.astype(np.float64)
    w[5, 7] = x[1, 4] = big
    told = "must be within float32's range, .*: 1 of .* are not, the first is .* at index "
    for call in (
        lambda: quantize(w, "w4a16-g128"), lambda: quantize(w, "mxfp4"), lambda: rtn(w, "fp8"),
        lambda: gptq(w, H, "w4a16-g128"), lambda: awq(w, "w4a16-g128", mean_abs=PEAKS, hessian=H),
        *(lambda packed=packed: kernels.linear(x, packed) for packed in PACKED.values()),
        lambda: kernels.pack(quantize(W, "w8a8"), bias=w[:, 7]),
    ):  # fmt: skip
        with pytest.raises(QsimError, match=told):
            call()


def test_a_text_to_evaluate_is_text_or_token_ids():
    model = random_model()
    ids = np.random.default_rng(0).integers(0, 96, 40)
    want = evaluate(model, ids, window=16).nll
    assert evaluate(model, ids.tolist(), window=16).nll == want  # a list of ids is not a list of bytes
    assert evaluate(model, ids.astype(np.uint8), window=16).nll == want
    for bad, told in (
        (masked(ids), "masked elements"), (ids.astype(float), "whole numbers"), (ids.astype(str), "whole numbers"),
        (ids.reshape(2, 20), "shape .2, 20."), (None, "got NoneType"), (3.5, "got float"), ([[1, 2], [3]], "token ids"),
    ):  # fmt: skip
        with pytest.raises(QsimError, match=told):
            evaluate(model, bad, window=16)


def test_parts_of_a_quantised_tensor_are_arrays_without_a_mask():
    q = quantize(W, "w4a16-g128")
    for part in ("codes", "scales", "zeros"):
        value = getattr(q, part)
        for bad in (value.tolist(), masked(value)):
            given = {"codes": q.codes, "scales": q.scales, "zeros": q.zeros, "scheme": q.scheme, part: bad}
            with pytest.raises(QsimError, match=f"{part} must be a NumPy array without a mask"):
                QuantizedTensor(**given)


def test_plain_and_whole_arrays():
    assert whole_array([], "x").dtype == np.int64
    assert whole_array([1, 2], "x").tolist() == [1, 2]
    with pytest.raises(QsimError, match="x must be whole numbers: got texts"):
        whole_array(["a"], "x")
    with pytest.raises(QsimError, match="x must be whole numbers: got float64"):
        whole_array([1.5], "x")
    assert as_plain_array(np.zeros(2, ">f8"), "x").dtype.isnative
