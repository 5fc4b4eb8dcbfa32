"""Quantised tensors: values, sizes, slices, files, refusals."""

import dataclasses

import numpy as np
import pytest

from qsim.errors import QsimError
from qsim.formats import decode, encode, get_format
from qsim.scheme import QuantizedTensor, Scheme, TensorScheme, get_scheme, quantize
from qsim.scheme.bits import bits_of, pack_bits, unpack_bits

INTEGER = [
    "w4a16-g128",
    "w4a16-g128-sym",
    "w3a16-g64",
    "w2a16-g32",
    "w8a16-channel",
    "w8a8-tensor",
    "w8a8",
    "w4a8",
    "w5a16-g128",
]


def weights(shape=(48, 256), seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) * 0.02).astype(np.float32)


@pytest.mark.parametrize("name", INTEGER)
@pytest.mark.parametrize("shape", [(48, 256), (5, 200), (1, 129)])
def test_error_is_at_most_half_a_step(name, shape):
    scheme = get_scheme(name)
    scheme = scheme.replace(weight=dataclasses.replace(scheme.weight, ragged=True))
    w = weights(shape)
    q = quantize(w, scheme)
    assert q.shape == shape
    assert q.nbytes == scheme.weight.nbytes(shape)
    k = shape[1] if scheme.weight.group_size is None else scheme.weight.group_size
    step = np.repeat(np.broadcast_to(q.scales, (shape[0], q.scales.shape[-1])), k, axis=1)[:, : shape[1]]
    # half a step, the zero point's rounding, the last code of GPTQ's symmetric range, a float16 scale's rounding
    assert (np.abs(q.dequantize() - w) <= step * (1.0 + 2.0 ** (scheme.weight.bits - 11))).all()


def test_dequantize_by_hand():
    scheme = Scheme(weight=TensorScheme(format="uint4", granularity="group(2)", symmetric=False))
    q = QuantizedTensor(
        codes=np.array([[0, 15, 7, 8]], dtype=np.uint8),
        scales=np.array([[0.5, 2.0]], dtype=np.float32),
        zeros=np.array([[3, 8]], dtype=np.uint8),
        scheme=scheme,
    )
    np.testing.assert_array_equal(q.dequantize(), [[-1.5, 6.0, -2.0, 0.0]])
    moved = dataclasses.replace(q, group_index=np.array([1, 0, 0, 1], dtype=np.int32))
    np.testing.assert_array_equal(moved.dequantize(), [[-16.0, 6.0, 2.0, 0.0]])
    signed = QuantizedTensor(
        codes=np.array([[0, 15, 7, 8]], dtype=np.uint8),
        scales=np.array([0.5], dtype=np.float32),
        scheme=Scheme(weight=TensorScheme(format="int4", granularity="tensor")),
    )
    np.testing.assert_array_equal(signed.integers, [[0, -1, 7, -8]])
    np.testing.assert_array_equal(signed.dequantize(), [[0, -0.5, 3.5, -4]])


@pytest.mark.parametrize("name", INTEGER)
def test_rows_are_slices_of_everything(name):
    q = quantize(weights(), name, input_scale=0.5, name="layer")
    part = q[16:32]
    assert part.shape == (16, 256)
    np.testing.assert_array_equal(part.dequantize(), q.dequantize()[16:32])
    assert part.input_scale == 0.5
    assert q[:] == q
    with pytest.raises(TypeError, match="sliced by rows"):
        q[3]
    with pytest.raises(ValueError, match="step 1"):
        q[::2]


def test_a_slice_does_not_cut_a_block():
    q = quantize(weights((96, 64)), Scheme(weight=TensorScheme(format="int8", granularity="block(32,32)")))
    np.testing.assert_array_equal(q[32:96].dequantize(), q.dequantize()[32:96])
    with pytest.raises(ValueError, match="block of 32 rows: got rows 16:96"):
        q[16:]


def test_equality_is_of_content():
    a, b = quantize(weights(), "w4a16-g128"), quantize(weights(), "w4a16-g128")
    assert a == b
    assert a != quantize(weights(seed=1), "w4a16-g128")
    assert a != quantize(weights(), "w4a16-g128-sym")
    assert a != dataclasses.replace(a, input_scale=1.0)
    assert a != 3


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
@pytest.mark.parametrize("name", INTEGER)
def test_files_round_trip(tmp_path, name, suffix):
    q = quantize(weights(), name, input_scale=0.25, name="model.layers.0.mlp.up_proj")
    path = tmp_path / f"q.{suffix}"
    q.save(path)
    back = QuantizedTensor.load(path)
    assert back == q
    assert back.name == q.name
    # the file holds the packed codes: its header apart it is as large as what crosses the bus
    assert path.stat().st_size < q.nbytes + 4096
    with pytest.raises(ValueError, match="safetensors or .npz"):
        q.save(tmp_path / "q.pt")


@pytest.mark.parametrize("bits", range(1, 9))
def test_bit_streams(bits):
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (7, 13)).astype(np.uint8)
    stream = pack_bits(codes, bits)
    assert stream.size == -(-codes.size * bits // 8)
    value = int.from_bytes(stream.tobytes(), "little")
    assert [(value >> (bits * i)) & ((1 << bits) - 1) for i in range(codes.size)] == codes.reshape(-1).tolist()
    np.testing.assert_array_equal(unpack_bits(stream, bits, codes.shape), codes)


def test_bad_weights_name_the_row():
    w = weights()
    w[17, 3] = np.nan
    w[20, 1] = np.inf
    with pytest.raises(ValueError, match=r"2 values in 2 rows are not, the first is nan in row 17 \(layer q_proj\)"):
        quantize(w, "w4a16-g128", name="q_proj")
    with pytest.raises(ValueError, match="group_size must divide K: got group_size=96, K=256 .layer q_proj"):
        quantize(weights(), "w4a16-g96", name="q_proj")
    with pytest.raises(ValueError, match="real floating-point"):
        quantize(np.ones((2, 128), dtype=np.int8), "w4a16-g128")
    with pytest.raises(ValueError, match="nothing to quantise"):
        quantize(weights(), "bf16")
    with pytest.raises(ValueError, match="cannot quantise an empty tensor"):
        quantize(np.ones((0, 128), dtype=np.float32), "w4a16-g128")
    big, small = weights(), weights()
    big[2, 0] = 1e6
    small[1] *= 1e-8
    with pytest.raises(ValueError, match=r"positive float16 numbers: row 2 needs 66666.67, which becomes inf"):
        quantize(big, "w4a16-g128")
    with pytest.raises(ValueError, match=r"row 1 needs .* becomes 0.0"):
        quantize(small, "w4a16-g128")


def test_parts_of_the_wrong_shape_are_refused():
    q = quantize(weights(), "w4a16-g128")
    with pytest.raises(ValueError, match=r"scales of shape \(48, 2\)"):
        dataclasses.replace(q, scales=q.scales[:, :1])
    with pytest.raises(ValueError, match="float32"):
        dataclasses.replace(q, scales=q.scales.astype(np.float64))
    with pytest.raises(ValueError, match="have 4 bits: got 16"):
        dataclasses.replace(q, codes=np.full((48, 256), 16, dtype=np.uint8))
    with pytest.raises(ValueError, match="must be uint8: got int8"):
        dataclasses.replace(q, codes=q.codes.view(np.int8))
    with pytest.raises(ValueError, match="exactly when"):
        dataclasses.replace(q, zeros=None)


def test_inputs_of_other_types():
    w = weights()
    assert quantize(w.astype(np.float64), "w4a16-g128") == quantize(w, "w4a16-g128")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    b = w.astype(ml_dtypes.bfloat16)
    assert quantize(b, "w4a16-g128") == quantize(b.astype(np.float32), "w4a16-g128")
    assert quantize(w.T.copy().T, "w4a16-g128") == quantize(w, "w4a16-g128")


@pytest.mark.parametrize("name", ["w4a16-g128", "w8a8", "fp8", "mxfp4", "nvfp4", "nf4-g64"])
def test_numpy_takes_a_quantised_tensor_for_its_values(name):
    w = np.random.default_rng(0).standard_normal((8, 128)).astype(np.float32)
    q = quantize(w, name)
    values = np.asarray(q)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, q.dequantize())
    assert np.asarray(q, dtype=np.float64).dtype == np.float64
    np.testing.assert_array_equal(np.array(q, dtype=np.float16), q.dequantize().astype(np.float16))
    np.testing.assert_array_equal(np.array(q, copy=True), values)
    np.testing.assert_array_equal(w - np.asarray(q), w - values)
    assert np.abs(np.subtract(w, q)).max() < 1
    with pytest.raises(ValueError, match="no array to share without a copy"):
        q.__array__(copy=False)


def test_scales_have_one_set_of_bits_for_kernels_and_files():
    """A scale that its format does not have is refused where the tensor is made: nothing behind it rounds again."""
    for name in ("w4a16-g128", "fp8-block128", "mxfp4", "nvfp4"):
        q = quantize(weights(), name)
        fmt = q.tensor_scheme.scale_format
        assert q.scale_codes.dtype.itemsize * 8 == fmt.bits
        again = dataclasses.replace(q, name="other")
        assert again.scale_codes is q.scale_codes
        np.testing.assert_array_equal(decode(q.scale_codes, fmt).astype(np.float32), q.scales)
    q = quantize(weights(), "w4a16-g128", name="model.layers.0.mlp.up_proj")
    scales = q.scales.copy()
    scales[3, 0] *= np.float32(1 + 2**-20)
    for change in (q.with_scales, lambda given: dataclasses.replace(q, scales=given)):
        with pytest.raises(QsimError, match=r"a scale must be .* in row 3 is no float16 number \(layer model.layers.0"):
            change(scales)
    with pytest.raises(QsimError, match="must have scales or scale_codes"):
        QuantizedTensor(codes=q.codes, scheme=q.scheme, zeros=q.zeros)
    with pytest.raises(QsimError, match="scale_codes must be uint16 codes of the scale format: got float32"):
        dataclasses.replace(q, scale_codes=q.scales)


@pytest.mark.parametrize(
    "name", ["w4a16-g128", "w4a16-g128-sym", "w8a8", "fp8-block128", "mxfp4", "nvfp4", "q4_k", "q3_k", "q6_k", "q4_1"]
)
def test_codes_of_scales_reach_kernel_and_file_as_they_are(name, tmp_path, monkeypatch):
    """Once a tensor is made, nothing encodes a scale again: not packing, not saving, loading, slicing or stacking."""
    from qsim.kernels import pack

    q = quantize(weights((64, 256)), name)
    stored = q.scale_codes.copy()

    def no_more(*given):
        raise AssertionError("a scale is encoded again")

    monkeypatch.setattr(QuantizedTensor, "_scale_bits", no_more)
    q.save(tmp_path / "q.npz")
    back = QuantizedTensor.load(tmp_path / "q.npz")
    assert back == q
    np.testing.assert_array_equal(back.scale_codes, stored)
    np.testing.assert_array_equal(back.dequantize(), q.dequantize())
    if q.tensor_scheme.granularity.kind not in ("tensor", "block"):
        np.testing.assert_array_equal(q[16:32].scale_codes, stored[16:32])
        np.testing.assert_array_equal(q.take(np.array([5, 3])), q.dequantize()[[5, 3]])
    if not q.tensor_scheme.has_own_rule:  # others are multiplied with other scales, see `pack`
        assert set(np.unique(pack(q).scales)) <= {0, *np.unique(stored)}


def test_bits_of_binary16_are_the_codecs():
    """NumPy converts what is a finite number of the format; the codec would be compiled for it."""
    fmt = get_format("float16")
    every = np.arange(1 << 16, dtype=np.uint16)
    values = decode(every, fmt).astype(np.float32)
    finite = values[np.isfinite(values)]
    bits = bits_of(finite, fmt, "scale")
    assert bits.dtype == np.uint16
    np.testing.assert_array_equal(bits, encode(finite, fmt))
    np.testing.assert_array_equal(bits, every[np.isfinite(values)])
    np.testing.assert_array_equal(bits_of(np.float32([1, np.nan]), fmt, "scale"), encode(np.float32([1, np.nan]), fmt))
    for bad in (1e6, 1 + 2**-12, 1e-9, np.inf):
        with pytest.raises(QsimError, match="a scale must be a value of its format"):
            bits_of(np.float32([bad]), fmt, "scale")
