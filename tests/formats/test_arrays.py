"""What comes in and what is refused: shapes, types, layouts, wrong arguments."""

from __future__ import annotations

import multiprocessing
import threading

import numba
import numpy as np
import pytest

import qsim
from qsim._native import threads as _threads


@pytest.mark.parametrize("name", ["e4m3", "float16", "int4", "nf4", "tf32"])
def test_shapes_and_layouts(name):
    x = np.random.default_rng(0).standard_normal((7, 9, 5)).astype(np.float32)
    flat = qsim.encode(x, name)
    assert flat.shape == x.shape
    for view in (x[::2, ::-1], x.T, x[:, :, :1], x[3], np.asfortranarray(x)):
        assert np.array_equal(qsim.decode(qsim.encode(view, name), name), qsim.cast(view, name))
        assert np.array_equal(qsim.encode(view, name), qsim.encode(view.copy(), name))
    scalar = qsim.encode(0.25, name)
    assert scalar.shape == ()
    assert qsim.decode(scalar, name).shape == ()
    assert qsim.cast(np.float32(0.25), name).dtype == np.float32
    for empty in (np.zeros((0,)), np.zeros((3, 0, 2), np.float32), []):
        assert qsim.encode(empty, name).shape == np.shape(empty)
        assert qsim.decode(qsim.encode(empty, name), name).shape == np.shape(empty)
    assert qsim.decode([], name).shape == (0,)
    big_endian = x.astype(">f4")
    assert np.array_equal(qsim.encode(big_endian, name), flat)
    assert np.array_equal(qsim.encode(x.tolist(), name), qsim.encode(x.astype(np.float64), name))


def test_result_types():
    x = np.ones(3)
    for name, code in (("e4m3", np.uint8), ("int4", np.uint8), ("bfloat16", np.uint16), ("tf32", np.uint32)):
        assert qsim.encode(x, name).dtype == code
    assert qsim.cast(x, "e4m3").dtype == np.float64
    assert qsim.cast(x.astype(np.float32), "e4m3").dtype == np.float32
    assert qsim.cast(x.astype(np.float16), "e4m3").dtype == np.float32
    assert qsim.cast(x.astype(np.int8), "e4m3").dtype == np.float32
    assert qsim.cast(x, "e4m3", dtype=np.float32).dtype == np.float32


def test_nothing_changes_the_input_and_out_is_used():
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    kept = x.copy()
    x.setflags(write=False)
    codes, values = np.empty(1000, np.uint8), np.empty(1000, np.float32)
    assert qsim.encode(x, "e4m3", out=codes) is codes
    assert qsim.decode(codes, "e4m3", out=values) is values
    assert np.array_equal(values, qsim.cast(x, "e4m3"))
    assert np.array_equal(x, kept)


@pytest.mark.parametrize("size", [_threads.CHUNK - 1, _threads.CHUNK + 1, 3 * _threads.CHUNK + 17])
def test_threads_do_not_change_the_result(size):
    x = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    random = np.random.default_rng(1).integers(0, 1 << 32, size, dtype=np.uint32)
    was = numba.get_num_threads()
    results = []
    try:
        for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
            numba.set_num_threads(threads)
            results.append(
                [
                    qsim.encode(x, "e4m3"),
                    qsim.cast(x, "int8"),
                    qsim.encode(x, "fp4", rounding="stochastic", rng=random),
                    qsim.encode(x, "fp4", rounding="stochastic", rng=np.random.default_rng(5)),
                ]
            )
    finally:
        numba.set_num_threads(was)
    for one, two in zip(*results, strict=True):
        assert np.array_equal(one, two)


def test_many_python_threads_at_once():
    x = np.random.default_rng(0).standard_normal(2 * _threads.CHUNK).astype(np.float32)
    want = qsim.encode(x, "e5m2")
    wrong = []

    def work():
        for _ in range(3):
            if not np.array_equal(qsim.encode(x, "e5m2"), want):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def _encode_in_child(queue):
    queue.put(int(qsim.encode(np.ones(3 * _threads.CHUNK, np.float32), "e4m3").sum()))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_does_not_hang():
    qsim.encode(np.ones(3 * _threads.CHUNK, np.float32), "e4m3")  # the parent's threads exist
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_encode_in_child, args=(queue,))
    child.start()
    assert queue.get(timeout=60) == 3 * _threads.CHUNK * 0x38
    child.join(60)


def test_errors_in_one_piece_reach_the_caller():
    x = np.zeros(4 * _threads.CHUNK, np.float32)
    x[-1] = np.nan
    with pytest.raises(ValueError, match=f"1 NaN value .* at index {x.size - 1}"):
        qsim.encode(x, "int8")
    with pytest.raises(RuntimeError, match="piece"):
        _threads.for_chunks(100, lambda a, b: (_ for _ in ()).throw(RuntimeError("piece")), chunk=10)


BAD_VALUES = [
    (np.array(["1"]), "dtype <U1"),
    (np.array([1j]), "dtype complex128"),
    (np.array([object()]), "dtype object"),
    (np.array([True]), "dtype bool"),
    (np.array(["2020-01-01"], "M8[D]"), "dtype datetime64"),
    (np.ones(2, np.longdouble), "dtype"),
    (np.ma.masked_array([1.0, 2.0], [False, True]), "masked elements"),
]


@pytest.mark.parametrize(("x", "rule"), BAD_VALUES, ids=[str(i) for i in range(len(BAD_VALUES))])
def test_arrays_that_are_not_numbers(x, rule):
    for call in (qsim.encode, qsim.cast):
        with pytest.raises(ValueError, match=rule):
            call(x, "e4m3")


@pytest.mark.parametrize(
    ("kwargs", "rule"),
    [
        ({"rounding": "nearest"}, "unknown rounding 'nearest': choose one of nearest_even, nearest_away"),
        ({"overflow": "clip"}, "unknown overflow 'clip': choose one of saturate"),
        ({"nan": "ignore"}, "unknown nan policy 'ignore'"),
        ({"rounding": "stochastic"}, "needs rng: a numpy Generator or unsigned random bits; got NoneType"),
        ({"rounding": "stochastic", "rng": np.zeros(3, np.int64)}, "got an array of int64"),
        ({"rounding": "stochastic", "rng": np.zeros(4, np.uint32)}, r"need the shape of the values: got \(4,\)"),
        (
            {"rounding": "stochastic", "rng": np.full(3, 16, np.uint32), "random_bits": 4},
            r"below 2\^4 \(random_bits\): got 16",
        ),
        ({"rounding": "stochastic", "rng": np.zeros(3, np.uint32), "random_bits": 33}, "1 to 32: got 33"),
        ({"rng": np.random.default_rng(0)}, "rng is for rounding='stochastic'"),
        ({"via": "e9m9"}, "unknown format 'e9m9'"),
        ({"out": np.empty(3, np.uint16)}, r"C-contiguous uint8 array of shape \(3,\): got uint16 \(3,\)"),
        ({"out": np.empty((3, 2), np.uint8)[:, 0]}, "C-contiguous"),
        ({"out": np.empty(4, np.uint8)}, r"got uint8 \(4,\)"),
    ],
)
def test_wrong_arguments(kwargs, rule):
    with pytest.raises(ValueError, match=rule):
        qsim.encode(np.ones(3), "e4m3", **kwargs)


def test_read_only_out():
    out = np.empty(3, np.uint8)
    out.setflags(write=False)
    with pytest.raises(ValueError, match="read-only"):
        qsim.encode(np.ones(3), "e4m3", out=out)


def test_refused_values_are_counted_and_located():
    x = np.array([[1.0, np.nan, 9.0], [np.inf, -99.0, np.nan]])
    message = r"of 6 values, 2 NaN values .*float4_e2m1fn has no NaN.* and 3 values outside -6.0 to 6.0"
    with pytest.raises(ValueError, match=message + r".*the first is nan at index \(0, 1\)"):
        qsim.encode(x, "fp4", overflow="nonsaturating")
    with pytest.raises(ValueError, match="nan='error' forbids it"):
        qsim.encode(x, "e4m3", nan="error")
    assert qsim.encode(x, "e4m3").tolist() == [[0x38, 0x7F, 0x51], [0x7E, 0xEC, 0x7F]]


@pytest.mark.parametrize(
    ("codes", "fmt", "rule"),
    [
        (
            np.array([3, 16, 255], np.uint8),
            "fp4",
            "2 of 3 codes are outside float4_e2m1fn.* the first is 0x10 at index 1",
        ),
        (
            np.array([[0, 256]]),
            "e4m3",
            r"1 of 2 codes are outside float8_e4m3fn.* the first is 0x100 at index \(0, 1\)",
        ),
        (np.array([-1]), "e4m3", "the first is -1 at index 0"),
        (np.array([-9]), "int4", r"-9 at index 0 is outside int4 \(-8 to 7\)"),
        (np.array([1.0]), "e4m3", "integer codes of float8_e4m3fn: got an array of dtype float64"),
        (np.array([1], np.uint32), "tf32", "above 13 zero ones"),
        (np.array([1 << 40]), "tf32", "outside tf32"),
    ],
)
def test_codes_outside_the_format(codes, fmt, rule):
    with pytest.raises(ValueError, match=rule):
        qsim.decode(codes, fmt)


def test_signed_arrays_of_integer_codes():
    assert qsim.decode(np.array([-8, -1, 7], np.int8), "int4").tolist() == [-8, -1, 7]
    assert qsim.decode(np.array([-128, 127], np.int8), "int8").tolist() == [-128, 127]


def test_decode_needs_a_format():
    with pytest.raises(ValueError, match="decode needs a format"):
        qsim.decode(np.array([1], np.uint8))
    with pytest.raises(ValueError, match="gives float32 or float64: got dtype=float16"):
        qsim.decode(np.array([1], np.uint8), "e4m3", dtype=np.float16)
