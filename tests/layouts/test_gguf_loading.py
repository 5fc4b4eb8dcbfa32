"""What reading a GGUF file takes: tensors in pieces, a header as far as it goes, and a tokenizer when it is used."""

from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pytest

from qsim.errors import QsimError
from qsim.fields import Fields
from qsim.layouts.gguf import file as container
from qsim.layouts.gguf.file import Planned, open_gguf, write_gguf
from qsim.layouts.gguf.types import READ, TYPES
from qsim.models import gguf_tokenizer
from qsim.models import tokenizer as tokenizers_of_models
from qsim.models.gguf_tokenizer import tokenizer_of

from .test_gguf_tokenizers import K, byte_level, sentencepiece

BY_NAME = {one.name: one for one in TYPES.values()}


def stored(path, name, rows, columns, seed=0):
    """A file with one tensor `t` of small random blocks, and its bytes."""
    kind = BY_NAME[name]
    raw = np.random.default_rng(seed).integers(0, 60, (rows, columns // kind.values * kind.size), dtype=np.uint8)
    write_gguf(path, {}, [Planned(name="t", shape=(rows, columns), type=kind, blocks=lambda: raw)])
    return open_gguf(path).tensors["t"], raw


@pytest.mark.parametrize("name", READ)
def test_a_tensor_read_in_pieces_is_the_tensor_read_at_once(name, monkeypatch, tmp_path):
    monkeypatch.setattr(container, "PIECE", 512)
    one, raw = stored(tmp_path / "a.gguf", name, 7, 1024)
    with np.errstate(all="ignore"):
        whole = BY_NAME[name].dequantize(raw).reshape(7, 1024)
    np.testing.assert_array_equal(one.values().view(np.uint32), whole.view(np.uint32))
    np.testing.assert_array_equal(one.raw(), raw)


@pytest.mark.parametrize("name", ["q8_0", "q4_k", "q6_k", "f16"])
def test_no_second_copy_of_a_tensor_is_held(name, monkeypatch, tmp_path):
    """1.3 times its values: what the loader of a whole model may take."""
    monkeypatch.setattr(container, "PIECE", 1 << 13)
    one, _ = stored(tmp_path / "a.gguf", name, 512, 2048)
    one.values()  # modules that are loaded first are no part of it
    tracemalloc.start()
    try:
        values = one.values()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 1.3 * values.nbytes


def test_values_that_are_not_finite_are_counted_over_all_pieces_without_a_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(container, "PIECE", 256)
    rows = np.ones((8, 256), np.float32)
    rows[[1, 3, 6], 5] = np.inf, np.nan, -np.inf
    for name in ("f32", "q4_1"):  # of q4_1 an Inf times 0 is invalid, which NumPy would warn of
        one, _ = stored(tmp_path / f"{name}.gguf", name, 8, 256)
        data = bytearray(one.path.read_bytes())
        if name == "f32":
            data[one.offset : one.offset + one.nbytes] = rows.tobytes()
        else:
            data[one.offset : one.offset + 2] = b"\0\x7c"
            data[one.offset + 4] = 0
        one.path.write_bytes(data)
        with pytest.raises(QsimError, match="t has (3|32) values that are NaN or Inf"):
            one.values()  # a warning is an error in these tests


def test_a_file_that_became_shorter_after_it_was_opened_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(container, "PIECE", 256)
    one, _ = stored(tmp_path / "a.gguf", "q8_0", 8, 256)
    one.path.write_bytes(one.path.read_bytes()[: one.offset + 1000])
    for read in (one.values, one.raw):
        with pytest.raises(QsimError, match="tensor t ends after 1000 of its 2176 bytes"):
            read()


@pytest.mark.parametrize("first", [1, 7, 64, 1 << 16])
def test_a_header_is_read_no_further_than_it_goes(first, monkeypatch, tmp_path):
    values = {"a": [f"piece {i}" for i in range(200)], "b": "x" * 500, "c": [0.5] * 100, "d": 7}
    path = tmp_path / "a.gguf"
    kind = BY_NAME["f32"]
    big = np.ones((64, 4096), np.float32)
    write_gguf(path, values, [Planned(name="t", shape=big.shape, type=kind, blocks=lambda: big)])
    monkeypatch.setattr(container, "_FIRST", first)
    tracemalloc.start()
    try:
        found = open_gguf(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.metadata == values
    assert peak < big.nbytes / 2
    monkeypatch.setattr(container, "_HEADER", 1000)
    with pytest.raises(QsimError, match="a header of more than 1000 bytes at a text of key a: that much is read"):
        open_gguf(path)


@pytest.fixture
def library(monkeypatch):
    """A stand-in for the library `tokenizers`: the texts that it was given."""
    given = []

    class Native:
        def encode(self, text):
            return type("Encoding", (), {"ids": [len(text)]})()

        def get_vocab_size(self):
            return 3

    def native(text, path):
        given.append(text)
        return Native()

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(tokenizers_of_models, "_native", native)
    return given


@pytest.mark.parametrize("keys", [byte_level(), sentencepiece()], ids=["byte-level", "sentencepiece"])
def test_a_tokenizer_is_built_once_and_when_it_is_first_used(keys, library, monkeypatch):
    searched = []
    merges = gguf_tokenizer._merges
    monkeypatch.setattr(gguf_tokenizer, "_merges", lambda *given: searched.append(1) or merges(*given))
    found, why = tokenizer_of(Fields({K + key: value for key, value in keys.items()}, "a.gguf"))
    assert why is None
    assert "a.gguf, built at first use" in repr(found)
    found = pickle.loads(pickle.dumps(found))
    assert not searched
    assert not library
    for _ in range(2):
        assert found.encode("four").tolist() == [4]
    assert len(library) == 1
    assert len(searched) == (keys["model"] == "llama")
    assert '"type": "BPE"' in library[0]
    assert repr(found) == "HuggingFaceTokenizer(3 tokens)"


@pytest.mark.oracle
def test_a_vocabulary_that_the_library_refuses_is_refused_at_first_use():
    pytest.importorskip("tokenizers")
    keys = byte_level() | {"merges": ["h e", "not there"]}
    found, why = tokenizer_of(Fields({K + key: value for key, value in keys.items()}, "a.gguf"))
    assert why is None
    for _ in range(2):
        with pytest.raises(QsimError, match="a.gguf is not a tokenizer"):
            found.encode("hello")
