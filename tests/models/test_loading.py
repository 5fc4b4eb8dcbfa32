"""Folders: what loads, what is noted, and what is refused in one sentence."""

from __future__ import annotations

import json
import struct
import sys
import types

import numpy as np
import pytest
from safetensors.numpy import save_file

from qsim.errors import QsimError
from qsim.models import ModelConfig, load
from qsim.models.tokenizer import ByteTokenizer, byte_vocabulary

from .small import CONFIGS, random_model, random_tensors, write_folder

TOKENS = np.arange(20) % 96


def folder(tmp_path, kind="llama", shards=1, **changes):
    config = {**CONFIGS[kind], **changes}
    write_folder(tmp_path, config, random_tensors(ModelConfig.from_dict(config)), shards)
    return tmp_path


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("shards", [1, 3])
def test_folders_load_whole(tmp_path, kind, shards):
    model = load(folder(tmp_path, kind, shards))
    np.testing.assert_array_equal(model.logits(TOKENS), random_model(kind).logits(TOKENS))
    assert model.notes == ()
    assert model.tokenizer is None
    assert model.path == tmp_path


def test_bf16_fp16_and_fp8_tensors(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    config = ModelConfig.from_dict(CONFIGS["llama"])
    tensors = random_tensors(config)
    kinds = [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, np.float64]
    stored = {n: t.astype(kinds[i % len(kinds)]) for i, (n, t) in enumerate(sorted(tensors.items()))}
    names = {"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float16": "F16",
             "float32": "F32", "float64": "F64"}  # fmt: skip
    header, data = {}, b""
    for name, t in stored.items():
        header[name] = {"dtype": names[t.dtype.name], "shape": list(t.shape),
                        "data_offsets": [len(data), len(data) + t.nbytes]}  # fmt: skip
        data += t.tobytes()
    write_folder(tmp_path, CONFIGS["llama"], {})
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    model = load(tmp_path)
    for name, t in stored.items():
        np.testing.assert_array_equal(model.tensors[name], t.astype(np.float32))
        assert model.tensors[name].dtype == np.float32


def test_tied_heads(tmp_path):
    model = load(folder(tmp_path, "llama-tied"))
    assert "lm_head.weight" not in model.tensors
    assert model.lm_head.weight is model.tensors["model.embed_tokens.weight"]
    tensors = dict(random_tensors(model.config))
    embedding = tensors["model.embed_tokens.weight"]
    save_file({**tensors, "lm_head.weight": embedding}, tmp_path / "model.safetensors")
    same = load(tmp_path)
    assert "lm_head.weight" not in same.tensors
    assert same.notes == ()
    save_file({**tensors, "lm_head.weight": 2 * embedding}, tmp_path / "model.safetensors")
    other = load(tmp_path)
    assert "lm_head.weight differs" in other.notes[0]
    np.testing.assert_array_equal(other.logits(TOKENS), 2 * model.logits(TOKENS))


def test_unknown_keys_and_tensors_are_noted_once(tmp_path):
    folder(tmp_path, initializer_range=0.02, moon_phase="full", zeal=3)
    tensors = random_tensors(ModelConfig.from_dict(CONFIGS["llama"]))
    old = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32) for i in (0, 1)}
    save_file({**tensors, **old}, tmp_path / "model.safetensors")
    model = load(tmp_path)
    assert model.notes == (
        "unknown config keys were ignored: moon_phase, zeal",
        "tensors that the architecture does not have were not used: "
        "model.layers.0.self_attn.rotary_emb.inv_freq and 1 more",
    )
    assert model.config.to_dict()["moon_phase"] == "full"  # and written back
    save_file({**tensors, "model.layers.0.mlp.up_proj.weight_scale": np.ones(1, np.float32)},
              tmp_path / "model.safetensors")  # fmt: skip
    with pytest.raises(ValueError, match="up_proj.weight_scale belongs to a quantised checkpoint, but config.json has"):
        load(tmp_path)


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist: a model is `tiny`, a folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file: a model is"):
        load(tmp_path / "file")
    with pytest.raises(ValueError, match="is not a checkpoint: it has no config.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is not JSON"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="config.json is not a JSON object"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}))
    with pytest.raises(
        ValueError, match=r"config.json: supported architectures are .*OPTForCausalLM.*: got architectures"
    ):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["llama"]))
    with pytest.raises(ValueError, match="is not a checkpoint: it has no model.safetensors"):
        load(tmp_path)


def test_tensors_that_are_missing_misshapen_or_not_finite(tmp_path):
    folder(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = random_tensors(ModelConfig.from_dict(CONFIGS["llama"]))
    name = "model.layers.1.mlp.gate_proj.weight"
    save_file({n: t for n, t in tensors.items() if n != name}, path)
    with pytest.raises(ValueError, match=r"model.safetensors has no tensor .*gate_proj.weight, \(96, 64\) by config"):
        load(tmp_path)
    save_file({**tensors, name: np.ascontiguousarray(tensors[name].T)}, path)
    with pytest.raises(ValueError, match=r"gate_proj.weight is \(96, 64\) by config.json: got \(64, 96\)"):
        load(tmp_path)
    save_file({**tensors, name: tensors[name].astype(np.int32)}, path)
    with pytest.raises(ValueError, match="gate_proj.weight is I32, where a float is needed"):
        load(tmp_path)
    broken = tensors[name].copy()
    broken[5, 5:7] = np.inf
    save_file({**tensors, name: broken}, path)
    with pytest.raises(ValueError, match="gate_proj.weight has 2 values that are NaN or Inf"):
        load(tmp_path)
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="model.safetensors is truncated: tensor"):
        load(tmp_path)


# --- tokenizers -------------------------------------------------------------------------------------------


def byte_tokenizer_json(**model) -> dict:
    bytelevel = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "pre_tokenizer": bytelevel,
        "decoder": bytelevel,
        "model": {"type": "BPE", "vocab": byte_vocabulary(), "merges": [], **model},
    }


TEXTS = ["def f(x):\n\treturn 'ä' + \"€\"  # 𝄞\n", "", "\x00\x7f", "  two  spaces "]


def test_a_byte_vocabulary_needs_no_library(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    folder(tmp_path, vocab_size=256)
    (tmp_path / "tokenizer.json").write_text(json.dumps(byte_tokenizer_json()))
    tokenizer = load(tmp_path).tokenizer
    assert isinstance(tokenizer, ByteTokenizer)
    for text in TEXTS:
        assert tokenizer.encode(text).tolist() == list(text.encode())
        assert tokenizer.decode(tokenizer.encode(text)) == text
        ids, sizes = tokenizer.spans(text)
        assert sizes.sum() == len(ids) == len(text.encode())
    assert tokenizer.decode([0xC3]) == "\ufffd"
    (tmp_path / "tokenizer.json").write_text(json.dumps(byte_tokenizer_json(merges=["a b"])))
    with pytest.raises(ValueError, match="read by the library tokenizers: pip install"):
        load(tmp_path)


@pytest.mark.oracle
def test_hugging_face_tokenizers(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    data = byte_tokenizer_json()
    vocab = {**byte_vocabulary(), "de": 256, "def": 257, "Ã¤": 258}
    data["model"] |= {"vocab": vocab, "merges": ["d e", "de f", "Ã ¤"]}
    data["added_tokens"] = [{"id": 259, "content": "<s>", "special": True, "single_word": False, "lstrip": False,
                             "rstrip": False, "normalized": False}]  # fmt: skip
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [259], "tokens": ["<s>"]}},
    }
    folder(tmp_path, vocab_size=260)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    tokenizer = load(tmp_path).tokenizer
    assert "260 tokens" in repr(tokenizer)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int64
        assert ids[0] == 259
        assert tokenizer.decode(ids) == text
        spans, sizes = tokenizer.spans(text)
        np.testing.assert_array_equal(spans, ids)
        assert sizes.min() >= 0
        assert sizes.sum() == len(text.encode())
    ids, sizes = tokenizer.spans("def ä€")
    assert ids.tolist()[:2] == [259, 257]
    assert sizes.tolist() == [0, 3, 1, 2, 3, 0, 0]  # the euro sign is three tokens: its bytes are counted once
    assert isinstance(tokenizers.__version__, str)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer.json is not a tokenizer"):
        load(tmp_path)


class PanicException(BaseException):
    """As pyo3 raises it: no Exception."""


@pytest.mark.parametrize("size", [1, 1 << 17])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ('{"model": ' + "[" * 5000 + "]" * 5000 + "}", "is nested too deeply"),
        ('{"model": 1, "model": 2}', "has the key 'model' twice"),
        ('{"model": []}', "is not a tokenizer that the library tokenizers can read"),
        ('{"model": {"vocab": 3}}', "is not a tokenizer that the library tokenizers can read"),
        ("[]", "is not a tokenizer that the library tokenizers can read"),
    ],
)
def test_tokenizers_that_are_broken(tmp_path, monkeypatch, text, words, size):
    """Whether they are looked at here or by the library, which may panic."""

    class Tokenizer:
        @staticmethod
        def from_str(text):
            raise PanicException("called `Option::unwrap()` on a `None` value")

    monkeypatch.setitem(sys.modules, "tokenizers", types.SimpleNamespace(Tokenizer=Tokenizer))
    folder(tmp_path, vocab_size=256)
    path = tmp_path / "tokenizer.json"
    path.write_text(text + " " * size)
    with pytest.raises(QsimError, match=words) as caught:
        load(tmp_path)
    assert str(path) in str(caught.value)


def test_a_tokenizer_that_is_too_large_is_not_read(tmp_path):
    folder(tmp_path)
    with open(tmp_path / "tokenizer.json", "wb") as file:
        file.truncate(1 << 33)  # sparse: takes no room
    with pytest.raises(QsimError, match="tokenizer.json has 8589934592 bytes: at most"):
        load(tmp_path)
