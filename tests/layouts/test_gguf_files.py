"""GGUF files: models through them and back, and what other people's files may hold."""

from __future__ import annotations

import math
import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsim.checkpoints import convert, write
from qsim.errors import QsimError
from qsim.layouts.gguf import file as container
from qsim.layouts.gguf.file import Planned, open_gguf, write_gguf
from qsim.layouts.gguf.tensors import to_blocks
from qsim.layouts.gguf.types import TYPES, get_type
from qsim.methods import quantize_model
from qsim.models import load, tiny_text
from qsim.models.gguf import in_order, paired, rope_factors
from qsim.models.rope import RopeScaling
from qsim.scheme import QuantizedTensor, quantize

from ..checkpoints.tiny import assert_same, quantized, tiny

QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rope_scaling": None}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 64, "attention_bias": False}
MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 32}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip
FAMILIES = {
    "llama": {},
    "llama, tied": {"tie_word_embeddings": True},
    "llama, biased": {"attention_bias": True},
    "llama 3.1": {"rope_scaling": LLAMA3, "rope_theta": 500000.0, "max_position_embeddings": 131072},
    "llama, linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama, yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    "qwen2": QWEN2,
    "qwen3": QWEN3,
}


def changed(model, **changes):
    """The file's config beside the model's own, without what a file does not say."""
    return {k: v for k, v in vars(model.config).items() if k not in ("dtype", "extra", *changes)}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_comes_back_from_its_file_bit_for_bit(name, tmp_path):
    model = tiny(**FAMILIES[name])
    written = write(model, tmp_path / "a.gguf", "gguf")
    back = load(tmp_path / "a.gguf")
    assert changed(back) == changed(model)
    assert_same(back, model)
    assert written.files == ("a.gguf",)
    assert written.layout == "gguf"
    assert written.total_bytes <= (tmp_path / "a.gguf").stat().st_size


@pytest.mark.parametrize("scheme", ["w4a16-g32-sym", "w5a16-g32-sym", "w8a16-g32-sym", "mxfp4-weight-only"])
def test_quantised_layers_stay_as_they_are(scheme, tmp_path):
    model = quantized(scheme)
    write(model, tmp_path / "a.gguf", "gguf")
    back = load(tmp_path / "a.gguf")
    assert_same(back, model)
    convert(tmp_path / "a.gguf", tmp_path / "folder", "compressed-tensors")
    convert(tmp_path / "folder", tmp_path / "b.gguf", "gguf")
    assert_same(load(tmp_path / "b.gguf"), model)
    assert open_gguf(tmp_path / "b.gguf").tensors["blk.1.attn_k.weight"].type.scheme == scheme


@pytest.mark.parametrize("kind", ["q4_k", "q6_k", "q4_1"])
def test_a_model_of_a_scheme_is_the_file_of_the_type(kind, tmp_path):
    """One implementation of superblocks: `quantize_model` by the scheme, and writing by rounding."""
    model = tiny(hidden_size=256, head_dim=64)
    found = quantize_model(model, "rtn", kind).model
    write(found, tmp_path / "a.gguf", "gguf", tensor_type=kind)
    write(model, tmp_path / "b.gguf", "gguf", tensor_type=kind)
    first, second = (open_gguf(tmp_path / name).tensors for name in ("a.gguf", "b.gguf"))
    assert first.keys() == second.keys()
    for name, one in first.items():  # in another order
        assert one.type is second[name].type, name
        assert (one.raw() == second[name].raw()).all(), name
    back = load(tmp_path / "a.gguf")
    assert_same(back, load(tmp_path / "b.gguf"))
    assert back.tensors["model.layers.1.mlp.down_proj.weight"] == found.tensors["model.layers.1.mlp.down_proj.weight"]


@pytest.mark.parametrize("kind", ["q8_0", "q5_0", "q4_0", "q6_k", "q4_k", "mxfp4", "bf16", "f16", "f32"])
def test_any_model_is_rounded_to_a_type(kind, tmp_path):
    model = tiny(hidden_size=256, head_dim=64)
    write(model, tmp_path / "a.gguf", "gguf", tensor_type=kind)
    file, back = open_gguf(tmp_path / "a.gguf"), load(tmp_path / "a.gguf")
    for name, one in file.tensors.items():
        assert one.type.name == (kind if name.endswith("weight") and "norm" not in name else "f32"), name
    for name, tensor in model.tensors.items():
        got = back.tensors[name]
        got = got.dequantize() if isinstance(got, QuantizedTensor) else got
        exact = tensor.ndim == 1
        expected = tensor if exact else get_type(kind).dequantize(get_type(kind).quantize(tensor)).reshape(tensor.shape)
        np.testing.assert_array_equal(got, expected, err_msg=name)


def test_rows_that_do_not_divide_take_a_type_that_they_divide_into_and_it_is_said(tmp_path):
    written = write(tiny(), tmp_path / "a.gguf", "gguf", tensor_type="q4_k")
    file = open_gguf(tmp_path / "a.gguf")
    assert file.tensors["blk.0.attn_q.weight"].type.name == "q5_0"
    assert file.tensors["blk.0.ffn_down.weight"].type.name == "q4_k"
    assert any("rows that are no multiple of 256 are stored in q5_0" in note for note in written.notes)


def test_the_embedded_model_keeps_its_tokenizer_and_what_it_says(tmp_path):
    model = load("tiny")
    written = write(model, tmp_path / "folder", "gguf", tensor_type="q8_0")
    assert "model.gguf" in written.files
    back = load(tmp_path / "folder")
    text = tiny_text("test")[:200]
    np.testing.assert_array_equal(back.tokenizer.encode(text), model.tokenizer.encode(text))
    ids = model.tokenizer.encode(text)
    assert (back.logits(ids).argmax(-1) == model.logits(ids).argmax(-1)).mean() > 0.95
    assert back.notes == ()


def test_rows_of_a_rotation_are_stored_pair_by_pair():
    """llama.cpp turns neighbours: row 2 i of a head is Hugging Face's row i, row 2 i + 1 its row i + half."""
    rows = np.arange(16)[:, None]
    np.testing.assert_array_equal(paired(rows, 2)[:, 0], [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15])
    weight = tiny().tensors["model.layers.0.self_attn.q_proj.weight"]
    for one, heads in ((rows, 2), (weight, 4)):
        np.testing.assert_array_equal(in_order(paired(one, heads), paired(np.arange(len(one)), heads)), one)


def test_the_factors_of_llama_3_are_those_of_llama_cpp_s_converter():
    """`convert_hf_to_gguf.py`, its loop word for word, in double precision."""
    factors = []
    for i in range(64):
        wavelength = 2 * math.pi * 500000.0 ** (2 * i / 128)
        smooth = (8192 / wavelength - 1) / (4 - 1)
        between = 1 / ((1 - smooth) / 8 + smooth) if smooth else 8
        factors.append(1.0 if wavelength < 8192 / 4 else 8.0 if wavelength > 8192 / 1 else between)
    found = rope_factors(500000.0, 128, RopeScaling.from_dict(LLAMA3))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, factors, rtol=2**-20)  # quotients of float32 numbers, each a few units off


def test_a_sliding_window_that_the_file_cannot_say_is_said(tmp_path):
    written = write(tiny(**MISTRAL), tmp_path / "a.gguf", "gguf")
    assert any("the sliding window of 32 was left out" in note for note in written.notes)
    assert load(tmp_path / "a.gguf").config.architecture == "llama"


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (lambda: quantized("w4a16-g128"), {}, "layer model.layers.0.self_attn.q_proj: gguf holds .*got uint4.*use"),
        (lambda: quantized("w8a16-g32-sym"), {"tensor_type": "q4_k"}, "quantised already, as q8_0: give dequan"),
        (tiny, {"tensor_type": "q4_k_m"}, "unknown GGUF type to write 'q4_k_m'"),
        (tiny, {"tensor_type": "q4_0", "dtype": "float16"}, "tensor_type and dtype are one choice"),
        (lambda: tiny(hidden_act="gelu"), {}, "have hidden_act='silu': got 'gelu'"),
    ],
)  # fmt: skip
def test_what_a_file_cannot_hold_is_refused_before_anything_is_written(model, options, words, tmp_path):
    with pytest.raises(QsimError, match=words):
        write(model(), tmp_path / "a.gguf", "gguf", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_quantised_model_is_rounded_again_when_that_is_asked_for(tmp_path):
    model = quantized("w4a16-g128")
    write(model, tmp_path / "a.gguf", "gguf", dequantize=True, tensor_type="q8_0")
    assert open_gguf(tmp_path / "a.gguf").tensors["blk.0.attn_q.weight"].type.name == "q8_0"
    with pytest.raises(QsimError, match="tensor_type='q8_0' belongs to layout 'gguf': got 'plain'"):
        write(tiny(), tmp_path / "b", "plain", tensor_type="q8_0")


def test_files_are_replaced_only_when_asked_and_only_gguf(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_text("my notes")
    with pytest.raises(QsimError, match="is there and no GGUF file: it is not replaced"):
        write(tiny(), path, "gguf", overwrite=True)
    path.unlink()
    write(tiny(), path, "gguf")
    with pytest.raises(QsimError, match="exists: choose another name, or overwrite=True"):
        write(tiny(), path, "gguf")
    write(tiny(seed=1), path, "gguf", overwrite=True)
    assert_same(load(path), tiny(seed=1))
    with pytest.raises(QsimError, match="source"):
        write(load(path), path, "gguf", overwrite=True)


def test_a_folder_with_two_files_is_refused_and_a_gguf_that_is_none_named(tmp_path):
    for name in ("a", "b"):
        write(tiny(), tmp_path / f"{name}.gguf", "gguf")
    with pytest.raises(QsimError, match="has 2 GGUF files: give one of them"):
        load(tmp_path)
    (tmp_path / "c.gguf").write_bytes(b"PK\3\4")
    with pytest.raises(QsimError, match="c.gguf is not a GGUF file: it does not begin with GGUF"):
        load(tmp_path / "c.gguf")


# --- other people's files -------------------------------------------------------------------------------------


def planned(name, values, kind="f32"):
    return Planned(name=name, shape=values.shape, type=get_type(kind), blocks=lambda: get_type(kind).quantize(values))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    write(tiny(num_hidden_layers=1), path, "gguf")
    return path.read_bytes()


def opened(path, metadata=None, tensors=()):
    write_gguf(path, metadata or {}, list(tensors))
    return open_gguf(path)


def test_every_kind_of_value_comes_back(tmp_path):
    values = {"a": 7, "b": 0.5, "c": "text \u2581", "d": True, "e": ["x", ""], "f": [1, -2], "g": [0.5, 2.0],
              "h": [True, False], "i": []}  # fmt: skip
    assert opened(tmp_path / "a.gguf", values).metadata == values
    ints = ((0, "<B", 200), (1, "<b", -3), (2, "<H", 60000), (3, "<h", -9), (4, "<I", 1 << 31), (5, "<i", -5),
            (10, "<Q", 1 << 60), (11, "<q", -(1 << 60)), (12, "<d", 1e300))  # fmt: skip
    head = b"GGUF" + struct.pack("<IQQ", 2, 0, len(ints))
    for i, (kind, form, value) in enumerate(ints):
        head += struct.pack("<Q", 1) + bytes([97 + i]) + struct.pack("<I", kind) + struct.pack(form, value)
    (tmp_path / "b.gguf").write_bytes(head)
    assert list(open_gguf(tmp_path / "b.gguf").metadata.values()) == [value for _, _, value in ints]


def test_a_file_that_ends_anywhere_is_refused_in_a_sentence(whole, tmp_path):
    path = tmp_path / "cut.gguf"
    rng = np.random.default_rng(0)
    size = len(whole)
    for at in {*range(60), *rng.integers(60, size, 60).tolist(), size - 1}:
        path.write_bytes(whole[:at])
        with pytest.raises(QsimError, match="cut.gguf") as caught:
            load(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b[:4] + struct.pack(">I", 3) + b[8:], "big-endian GGUF file: only little-endian files are read"),
        (lambda b: b[:4] + struct.pack("<I", 1) + b[8:], "GGUF version 1: versions 2 and 3 are read"),
        (lambda b: b[:8] + struct.pack("<Q", 1 << 62) + b[16:], "says that it has 4611686018427387904 tensors: at"),
        (lambda b: b[:16] + struct.pack("<Q", 1 << 40) + b[24:], "says that it has 1099511627776 keys: at most 65536"),
        (lambda b: b[:24] + struct.pack("<Q", 1 << 50) + b[32:], "a key has 1125899906842624 bytes: at most 65536"),
        (lambda b: b.replace(b"block_count\4\0\0\0\1", b"block_count\4\0\0\0\0"), "block_count must be from 1"),
        (lambda b: b.replace(b"llama.block_count", b"llama.block_coun_"), "llama.block_count is missing"),
        (lambda b: b.replace(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0mamba"), "must be one that the decoder runs"),
        (lambda b: b.replace(b"blk.0.attn_q.weight", b"blk.0.attn_k.weight"), "has tensor 'blk.0.attn_k.weight' twice"),
        (lambda b: b.replace(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight"), "has no tensor blk.0.attn_q.weight"),
    ],
)  # fmt: skip
def test_what_a_file_says_is_checked(change, words, whole, tmp_path):
    data = change(whole)
    assert data != whole
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(QsimError, match=words):
        load(tmp_path / "a.gguf")


def entry(name, shape, kind, offset):
    raw = name.encode()
    head = struct.pack("<Q", len(raw)) + raw + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return head + struct.pack("<IQ", kind, offset)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([entry("a", (32,), 99, 0)], "tensor a has type 99, which is not a GGUF type known here"),
        ([entry("a", (33,), 8, 0)], r"tensor a of shape \(33,\) does not divide into blocks of 32 \(q8_0\)"),
        ([entry("a", (0,), 0, 0)], "does not divide"),
        ([entry("a", (1 << 62, 1 << 62), 0, 0)], "the file is truncated"),
        ([entry("a", (1,) * 5, 0, 0)], "tensor a must have 1 to 4 axes: got 5"),
        ([entry("a", (32,), 0, 5)], "the offset of tensor a must be a multiple of 32: got 5"),
        ([entry("a", (32,), 0, 0), entry("b", (32,), 0, 64)], "tensors a and b overlap"),
        ([entry("a", (32,), 0, 1 << 40)], "tensor a ends at byte .*, beyond the file's"),
    ],
)
def test_a_table_of_tensors_that_cannot_be_is_refused(entries, words, tmp_path):
    head = b"GGUF" + struct.pack("<IQQ", 3, len(entries), 0) + b"".join(entries)
    (tmp_path / "a.gguf").write_bytes(head + bytes(512))
    with pytest.raises(QsimError, match=words):
        open_gguf(tmp_path / "a.gguf")


def test_a_key_that_comes_twice_is_refused(tmp_path):
    one = struct.pack("<Q", 1) + b"a" + struct.pack("<II", 4, 7)
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + one + one)
    with pytest.raises(QsimError, match="has the key 'a' twice"):
        open_gguf(tmp_path / "a.gguf")


def test_long_headers_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "_HEADER", 200)
    with pytest.raises(QsimError, match="a header of more than 200 bytes at key b: that much is read"):
        opened(tmp_path / "a.gguf", {"a": "x" * 50, "b": "x" * 150})
    monkeypatch.setattr(container, "_HEADER", 1 << 20)
    monkeypatch.setattr(container, "_ENTRIES", 10)
    with pytest.raises(QsimError, match="key b has 6 entries: lists of 10 in all are read"):
        opened(tmp_path / "b.gguf", {"a": [1] * 6, "b": ["x"] * 6})


def test_values_that_are_not_finite_and_types_that_are_not_read_name_the_tensor(tmp_path):
    file = opened(tmp_path / "a.gguf", {}, [planned("t", np.array([[1, np.inf]], np.float32))])
    with pytest.raises(QsimError, match="a.gguf: tensor t has 1 values that are NaN or Inf"):
        file.tensors["t"].values()
    unread = next(one for one in TYPES.values() if one.name == "iq1_s")
    odd = Planned(name="u", shape=(1, 256), type=unread, blocks=lambda: np.zeros(unread.size, np.uint8))
    file = opened(tmp_path / "b.gguf", {}, [odd])
    with pytest.raises(QsimError, match="tensor u: GGUF type iq1_s is not read"):
        file.tensors["u"].values()
    model = quantized("w8a16-g32-sym")
    write(model, tmp_path / "c.gguf", "gguf")
    one = open_gguf(tmp_path / "c.gguf").tensors["blk.0.attn_q.weight"]
    data = bytearray((tmp_path / "c.gguf").read_bytes())
    data[one.offset : one.offset + 2] = b"\0\x7c"
    (tmp_path / "c.gguf").write_bytes(data)
    with pytest.raises(QsimError, match=r"tensor blk.0.attn_q.weight: 1 scales are NaN or Inf"):
        load(tmp_path / "c.gguf")


def test_experts_windows_and_factors_that_are_not_read_are_refused(tmp_path):
    from qsim.layouts.gguf.file import write_gguf as put

    write(tiny(), tmp_path / "a.gguf", "gguf")
    file = open_gguf(tmp_path / "a.gguf")
    copies = [Planned(name=n, shape=t.shape, type=t.type, blocks=t.raw) for n, t in file.tensors.items()]
    for more, words in (({"llama.expert_count": 8}, "llama.expert_used_count is missing"),
                        ({"llama.attention.sliding_window": 8}, "sliding windows are not read here: got 8"),
                        ({"llama.rope.dimension_count": 16}, "must be the size of a head, 32: got 16")):  # fmt: skip
        put(tmp_path / "b.gguf", {**file.metadata, **more}, copies)
        with pytest.raises(QsimError, match=words):
            load(tmp_path / "b.gguf")
    factors = planned("rope_freqs.weight", np.linspace(1, 3, 16, dtype=np.float32))
    put(tmp_path / "b.gguf", file.metadata, [*copies, factors])
    with pytest.raises(QsimError, match="rope_freqs.weight holds other factors than those of Llama 3.1"):
        load(tmp_path / "b.gguf")
    put(
        tmp_path / "b.gguf",
        {**file.metadata, "llama.tomorrow": 1},
        [*copies, planned("x", np.ones((2, 2), np.float32))],
    )
    notes = load(tmp_path / "b.gguf").notes
    assert any("unknown keys of the file were ignored: llama.tomorrow" in note for note in notes)
    assert any("the architecture does not have were not used: x" in note for note in notes)


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_read_or_refused_in_one_sentence(whole, tmp_path, data):
    """Bytes that are changed in the header; the fuzz target of the same file looks at the sentences."""
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, 1600))
        width = data.draw(st.sampled_from([1, 4, 8]))
        raw[at : at + width] = data.draw(st.binary(min_size=width, max_size=width))
    path = tmp_path / "a.gguf"
    path.write_bytes(raw)
    with suppress(QsimError):
        load(path)


# --- the outside ----------------------------------------------------------------------------------------------


@pytest.mark.oracle
def test_the_gguf_package_reads_the_same_values_of_every_type():
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(0)
    for kind in TYPES.values():
        theirs = gguf.GGMLQuantizationType(kind.number)
        assert theirs.name.lower() == kind.name
        if kind.decode is None or kind.name == "f64":
            continue
        raw = rng.integers(0, 256, (256, kind.size), dtype=np.uint8)
        with np.errstate(all="ignore"):
            mine = kind.dequantize(raw)
            other = np.ascontiguousarray(gguf.quants.dequantize(raw, theirs), np.float32).reshape(-1)
        same = (mine.view(np.uint32) == other.view(np.uint32)) | (np.isnan(mine) & np.isnan(other))
        assert same.all(), (kind.name, int((~same).sum()))


@pytest.mark.oracle
def test_the_gguf_package_finds_the_values_of_our_schemes():
    gguf = pytest.importorskip("gguf")
    x = (np.random.default_rng(0).standard_normal((16, 1024)) * 0.05).astype(np.float32)
    for kind in TYPES.values():
        if kind.scheme is not None:
            q = quantize(x, kind.scheme)
            theirs = gguf.quants.dequantize(to_blocks(q), gguf.GGMLQuantizationType(kind.number))
            np.testing.assert_array_equal(np.asarray(theirs, np.float32).reshape(x.shape), q.dequantize(), kind.name)


@pytest.mark.oracle
def test_rounding_loses_no_more_than_the_gguf_package_does():
    gguf = pytest.importorskip("gguf")
    x = (np.random.default_rng(0).standard_normal((128, 1024)) * 0.05).astype(np.float32)
    x[3], x[5, :40] = 0, x[5, :40] * 100
    for name in ("q8_0", "q5_0", "q4_0", "mxfp4", "f16", "bf16"):
        kind = get_type(name)
        theirs = np.ascontiguousarray(gguf.quants.quantize(x, gguf.GGMLQuantizationType(kind.number))).view(np.uint8)
        lost = [float(np.square(kind.dequantize(raw).reshape(x.shape) - x, dtype=np.float64).mean())
                for raw in (kind.quantize(x), theirs)]  # fmt: skip
        assert lost[0] <= lost[1], name


@pytest.mark.oracle
@pytest.mark.parametrize("kind", [None, "q4_k", "q6_k", "mxfp4"])
def test_the_gguf_package_reads_our_files(kind, tmp_path):
    gguf = pytest.importorskip("gguf")
    model = load("tiny") if kind is None else tiny(hidden_size=256, head_dim=64)
    write(model, tmp_path / "a.gguf", "gguf", tensor_type=kind)
    theirs, mine = gguf.GGUFReader(tmp_path / "a.gguf"), open_gguf(tmp_path / "a.gguf")
    for key, value in mine.metadata.items():
        assert theirs.get_field(key).contents() == value or value == [], key
    assert {t.name for t in theirs.tensors} == set(mine.tensors)
    for one in theirs.tensors:
        values = gguf.quants.dequantize(one.data, one.tensor_type)
        np.testing.assert_array_equal(values.reshape(-1), mine.tensors[one.name].values().reshape(-1), err_msg=one.name)
