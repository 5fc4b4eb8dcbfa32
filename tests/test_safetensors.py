"""The safetensors reader against the safetensors library, and against files that break their promises."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save, save_file

from qsim.errors import QsimError
from qsim.safetensors import Entry, Stored, TensorFiles, integers, open_file, open_folder, write_file

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1.5, -2], dtype=np.float16),
    "c": np.array(7, dtype=np.int64),
    "d": np.zeros((0, 4), dtype=np.float32),
    "e": np.array([True, False]),
    "f": np.array([[255]], dtype=np.uint8),
    "g": np.array([1e300], dtype=np.float64),
}


def build(header: dict | str, data: bytes = b"") -> bytes:
    text = header if isinstance(header, str) else json.dumps(header)
    return struct.pack("<Q", len(text)) + text.encode() + data


def tensor(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_reads_what_the_library_wrote(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(ARRAYS, path, metadata={"format": "pt"})
    files = open_file(path)
    assert isinstance(files, TensorFiles)
    assert set(files) == set(ARRAYS)
    assert files.metadata == {"format": "pt"}
    assert files.nbytes == sum(a.nbytes for a in ARRAYS.values())
    for name, array in ARRAYS.items():
        got = files[name].bits()
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)
    np.testing.assert_array_equal(files["b"].float32(), [1.5, -2])
    assert files["b"].float32().dtype == np.float32
    with pytest.raises(ValueError, match="tensor c is I64, where a float is needed"):
        files["c"].float32()
    with pytest.raises(KeyError, match="has no tensor z"):
        files["z"]


@pytest.mark.parametrize(
    ("dtype", "kind"), [("BF16", "bfloat16"), ("F8_E4M3", "float8_e4m3fn"), ("F8_E5M2", "float8_e5m2"),
                        ("F8_E8M0", "float8_e8m0fnu")],
)  # fmt: skip
def test_floats_without_a_numpy_type(tmp_path, dtype, kind):
    """Every code, against ml_dtypes."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    codes = np.arange(1 << 16, dtype=np.uint16) if dtype == "BF16" else np.arange(256, dtype=np.uint8)
    path = tmp_path / "x.safetensors"
    path.write_bytes(build({"w": tensor(dtype, codes.shape, (0, codes.nbytes))}, codes.tobytes()))
    entry = open_file(path)["w"]
    np.testing.assert_array_equal(entry.bits(), codes)
    with np.errstate(invalid="ignore"):
        want = codes.view(getattr(ml_dtypes, kind)).astype(np.float32)
    got = entry.float32()
    np.testing.assert_array_equal(got, want)
    if dtype == "BF16":
        np.testing.assert_array_equal(got.view(np.uint32) >> 16, codes)  # NaN payloads and signs of zeros, too


DEEP = "[" * 100_000 + "]" * 100_000
MANY = "{" + ",".join(f'"w{i % 100_000}": 1' for i in range(200_000)) + "}"

BROKEN = {
    "nested": (build('{"w": ' + DEEP + "}"), "the header of .* is nested too deeply"),
    "nested less": (build('{"w": ' + DEEP[99_800:100_200] + "}"), "the header of .* is nested too deeply"),
    "many twice": (build(MANY), "has the key 'w0' twice in one object"),
    "digits": (build('{"w": {"dtype": "F32", "shape": [' + "9" * 5000 + '], "data_offsets": [0, 8]}}'), "is not JSON"),
    "many axes": (build({"w": tensor(shape=[1] * 1000)}, bytes(8)), "shape must have at most 16 numbers"),
    "a huge axis": (build({"w": tensor(shape=(0, 10**400), offsets=(0, 0))}), "shape must have at most 16 numbers up"),
    "an empty shape": (
        build({"w": tensor(shape=(0, 1 << 40, 1 << 40), offsets=(0, 0))}),
        "beyond what an",
    ),
    "huge offsets": (
        build({"w": tensor(offsets=(10**400, 10**400 + 8))}, bytes(8)),
        "data_offsets must have at most 2",
    ),
    "one offset": (build({"w": tensor(offsets=(8,))}, bytes(8)), "data_offsets must be two numbers"),
    "a list as dtype": (build({"w": tensor(dtype=["F32"])}, bytes(8)), "tensor w must have one of the dtypes"),
    "metadata of a number": (build({"__metadata__": 1}), "__metadata__ maps names to strings"),
    "empty": (b"", "not a whole safetensors file: its header should be . bytes, the file has 0"),
    "short": (b"\x01\x00", "not a whole safetensors file"),
    "header beyond the file": (struct.pack("<Q", 1000) + b"{}", "its header should be 1000 bytes, the file has 10"),
    "not JSON": (build("{nope"), "the header of .* is not JSON"),
    "not UTF-8": (struct.pack("<Q", 2) + b"\xff\xfe", "the header of .* is not UTF-8 text: byte 0 is 0xff"),
    "a list": (build("[]"), "the header of .* must be a JSON object: got list"),
    "metadata": (build({"__metadata__": {"a": 1}}), "__metadata__ maps names to strings"),
    "no shape": (build({"w": {"dtype": "F32"}}), "tensor w needs dtype, shape and data_offsets"),
    "dtype": (build({"w": tensor("F7")}, bytes(8)), "tensor w must have one of the dtypes F64, .*: got 'F7'"),
    "negative": (build({"w": tensor(shape=(-2,))}, bytes(8)), "tensor w: shape must be a list of whole numbers"),
    "three offsets": (build({"w": tensor(offsets=(0, 4, 8))}, bytes(8)), "data_offsets must have at most 2 numbers"),
    "size": (build({"w": tensor(shape=(3,))}, bytes(8)), r"tensor w of F32 \(3,\) has 12 bytes: the header gives 8"),
    "truncated": (build({"w": tensor()}, bytes(7)), "is truncated: tensor w ends at byte"),
    "longer": (build({"w": tensor()}, bytes(9)), "has 1 bytes after its last tensor, w"),
    "hole": (build({"v": tensor(), "w": tensor(offsets=(12, 20))}, bytes(20)), "tensor w leaves a hole after v"),
    "overlap": (build({"v": tensor(), "w": tensor(offsets=(4, 12))}, bytes(12)), "tensor w overlaps v"),
    "twice": (build('{"w": 1, "w": 2}'), "has the key 'w' twice in one object"),
    "true as a size": (build({"w": tensor(shape=(True, 2))}, bytes(8)), "shape must be a list of whole numbers"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_files_are_refused_in_one_sentence(tmp_path, what):
    data, message = BROKEN[what]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        open_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    if what not in ("dtype", "an empty shape"):
        with pytest.raises((SafetensorError, ValueError)):
            deserialize(data)


def test_a_header_beyond_the_limit_is_not_parsed(tmp_path):
    """99 MB of header would take a gigabyte: the length is refused before a byte of it is read."""
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 99_000_000))
        file.truncate(99_000_008)  # sparse: takes no room
    with pytest.raises(QsimError, match="has a header of 99000000 bytes: at most 16777216 are read"):
        open_file(path)


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    """Opening a pipe would wait for ever."""
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(QsimError, match="is not a regular file"):
        open_file(tmp_path / "model.safetensors")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_never_accepts_what_the_library_refuses(tmp_path, data):
    """Whole files with a few bytes changed, removed or added."""
    raw = bytearray(save({"a": ARRAYS["a"], "b": ARRAYS["b"]}))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        kind = data.draw(st.sampled_from(["set", "cut", "add"]))
        if kind == "set":
            raw[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del raw[at : at + data.draw(st.integers(1, 4))]
        else:
            raw[at:at] = bytes([data.draw(st.integers(0, 255))])
        if not raw:
            break
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(raw))
    try:
        ours = {name: (e.dtype, e.shape, e.bits().tobytes()) for name, e in open_file(path).items()}
    except ValueError:
        return
    theirs = {name: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for name, t in deserialize(bytes(raw))}
    assert ours == theirs


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(ARRAYS, path)
    entry = open_file(path)["a"]
    path.write_bytes(path.read_bytes()[: entry.offset + 4])
    with pytest.raises(ValueError, match="tensor a ends early: 1 of 6 elements"):
        entry.bits()
    assert isinstance(entry, Entry)


def folder_of(tmp_path: Path, places: dict[str, str] | None = None) -> Path:
    save_file({"a": ARRAYS["a"]}, tmp_path / "m-1.safetensors")
    save_file({"b": ARRAYS["b"]}, tmp_path / "m-2.safetensors")
    index = {"weight_map": places or {"a": "m-1.safetensors", "b": "m-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def test_shards(tmp_path):
    files = open_folder(folder_of(tmp_path))
    assert set(files) == {"a", "b"}
    assert files["b"].path.name == "m-2.safetensors"


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"a": "m-1.safetensors", "b": "m-3.safetensors"}, "m-3.safetensors is missing: .* places tensor b in it"),
        ({"a": "m-1.safetensors", "b": "m-1.safetensors"}, "m-1.safetensors lacks tensor b"),
        ({"a": "m-1.safetensors", "c": "m-2.safetensors"}, "m-2.safetensors lacks tensor c"),
        ({"a": "../m-1.safetensors"}, "shards must be files of the same folder"),
        ({"a": 3}, "is not an index"),
        *(({"a": name}, "shards must be files of the same folder") for name in ("", ".", "..", "a\\b", "a/b", "a\0b")),
        ({"a": "m-1.safetensors", "b": "config.json"}, "config.json is missing"),
    ],
)
def test_indexes_that_are_wrong(tmp_path, places, message):
    folder_of(tmp_path, places)
    with pytest.raises(ValueError, match=message):
        open_folder(tmp_path)


def test_an_index_that_is_no_json_or_nested_or_huge(tmp_path):
    folder_of(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    broken = {"{": "is not JSON", "[]": "is not an index", '{"weight_map": []}': "is not an index",
              '{"a": ' + DEEP + "}": "is nested too deeply", '{"a": 1, "a": 2}': "the key 'a' twice"}  # fmt: skip
    for text, words in broken.items():
        index.write_text(text)
        with pytest.raises(QsimError, match=words) as caught:
            open_folder(tmp_path)
        assert str(index) in str(caught.value)


def test_shards_may_be_links(tmp_path):
    """As in the cache of Hugging Face, where a snapshot holds links to blobs."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    folder_of(tmp_path / "blobs")
    for i, path in enumerate(sorted((tmp_path / "blobs").iterdir())):
        path.rename(tmp_path / "blobs" / f"{i}")
        (tmp_path / "snapshot" / path.name).symlink_to(f"../blobs/{i}")
    files = open_folder(tmp_path / "snapshot")
    np.testing.assert_array_equal(files["a"].bits(), ARRAYS["a"])
    (tmp_path / "snapshot" / "m-1.safetensors").unlink()
    (tmp_path / "snapshot" / "m-1.safetensors").symlink_to("m-1.safetensors")  # a circle
    with pytest.raises(QsimError, match="m-1.safetensors is missing"):
        open_folder(tmp_path / "snapshot")


def test_empty_tensors_are_written_and_read(tmp_path):
    tensors = {"none": Stored(dtype="F32", bits=np.zeros((0, 4), np.float32)), "one": integers(np.array(3), "I64"),
               "rows": integers(np.zeros((3, 0)), "I32")}  # fmt: skip
    write_file(tmp_path / "x.safetensors", tensors)
    for name, entry in open_file(tmp_path / "x.safetensors").items():
        assert entry.shape == tensors[name].shape
        np.testing.assert_array_equal(entry.bits(), tensors[name].bits)


def test_a_tensor_in_two_shards(tmp_path):
    folder_of(tmp_path)
    save_file({"a": ARRAYS["a"], "b": ARRAYS["b"]}, tmp_path / "m-2.safetensors")
    with pytest.raises(ValueError, match="m-2.safetensors: tensor a is also in m-1.safetensors"):
        open_folder(tmp_path)


def test_folders_that_are_no_checkpoints(tmp_path):
    with pytest.raises(ValueError, match="is not a checkpoint: it has no model.safetensors"):
        open_folder(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    with pytest.raises(ValueError, match="only pytorch_model.bin: pickles are never read"):
        open_folder(tmp_path)
    with pytest.raises(ValueError, match="is a pickle, which is never read"):
        open_file(tmp_path / "pytorch_model.bin")
    for name in ("x", "y"):
        save_file(ARRAYS, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match="has 2 safetensors files but neither"):
        open_folder(tmp_path)
    (tmp_path / "y.safetensors").unlink()
    assert set(open_folder(tmp_path)) == set(ARRAYS)
    with pytest.raises(OSError, match="nowhere"):
        open_file(tmp_path / "nowhere.safetensors")
