"""Tokenizers in GGUF's metadata: what they become, and that they give the same ids."""

from __future__ import annotations

import json

import pytest

from qsim.errors import QsimError
from qsim.fields import Fields
from qsim.models.gguf_tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    PATTERNS,
    UNKNOWN,
    UNUSED,
    USER,
    tokenizer_metadata,
    tokenizer_of,
)
from qsim.models.tokenizer import ByteTokenizer, byte_vocabulary

K = "tokenizer.ggml."
TEXTS = [
    "Hello world",
    "  two spaces, 1234 numbers",
    "naïve café über 日本",
    "it's\nlines\n\n",
    "<s> special <|x|> and more",
    "",
]


def read(**keys):
    return tokenizer_of(Fields({K + key: value for key, value in keys.items()}, "a.gguf"))


def sentencepiece():
    """A vocabulary as Llama 2 has it: special tokens, 256 bytes, and pieces by rank."""
    pieces = [
        "▁",
        "e",
        "l",
        "o",
        "h",
        "w",
        "r",
        "d",
        "t",
        "s",
        "▁w",
        "ld",
        "or",
        "▁wor",
        "▁world",
        "he",
        "llo",
        "ll",
        "hello",
    ]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces, "<|x|>"]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(pieces), USER]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))] + [0.0]
    return {"model": "llama", "tokens": tokens, "token_type": types, "scores": scores, "bos_token_id": 1}


def byte_level(pre="qwen2", extra=()):
    base = list(byte_vocabulary())
    space = next(c for c, i in byte_vocabulary().items() if i == 32)
    merges = ["h e", "l l", "he ll", "hell o", f"{space} w", f"{space}w o", "1 2", "12 3"]
    tokens = [*base, *(m.replace(" ", "") for m in merges), "<|x|>", *extra]
    types = [*[NORMAL] * (len(base) + len(merges)), CONTROL, *[UNUSED] * len(extra)]
    return {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": types, "merges": merges}


def test_bytes_need_no_library():
    found, why = read(model="gpt2", tokens=list(byte_vocabulary()), merges=[])
    assert isinstance(found, ByteTokenizer)
    assert why is None
    keys, why = tokenizer_metadata(ByteTokenizer(), 256)
    assert why is None
    assert isinstance(tokenizer_of(Fields(keys, "a.gguf"))[0], ByteTokenizer)


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({}, "the file has no tokenizer: give token ids"),
        ({"model": "bert", "tokens": ["a"]}, "of kind 'bert', which is not read here"),
        (byte_level(pre="unheard"), "splits texts as 'unheard', which is not read here"),
    ],
)
def test_a_tokenizer_that_is_not_read_is_said(keys, why):
    found, said = read(**keys)
    assert found is None
    assert why in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token_type": [1, 2]}, "token_type must have .* entries: got 2"),
        ({"scores": [0.5]}, "scores must have .* entries: got 1"),
        ({"tokens": 7}, "tokens must be a list of texts"),
        ({"tokens": ["a"] * 279}, "tokens has 'a' twice"),
        ({"tokens": [*sentencepiece()["tokens"][:-2], "x" * 600, "y"]}, "a piece of 600 characters: up to 512"),
    ],
)
def test_a_vocabulary_that_contradicts_itself_is_refused(change, words):
    with pytest.raises(QsimError, match=words):
        read(**{**sentencepiece(), **change})


def test_a_file_without_the_library_is_read_for_token_ids(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found, why = read(**byte_level())
    assert found is None
    assert "needs the library tokenizers: pip install 'qsim[hf]'" in why


@pytest.mark.oracle
@pytest.mark.parametrize("pre", PATTERNS)
def test_byte_level_texts_come_back_and_are_split_by_the_pattern(pre):
    pytest.importorskip("tokenizers")
    found, why = read(**byte_level(pre))
    assert why is None
    for text in TEXTS:
        assert found.decode(found.encode(text)) == text.replace("<|x|>", "")
    tokens = byte_level()["tokens"]
    assert [tokens[i] for i in found.encode("hello wo")] == ["hello", "Ġwo"]
    whole = pre in ("llama-bpe", "llama3")  # three digits at a time
    digits = ["123"] if whole or pre in ("gpt-2", "olmo") else ["1", "2", "3"]
    assert [tokens[i] for i in found.encode("123")] == digits


@pytest.mark.oracle
def test_sentencepiece_texts_come_back_with_bytes_for_what_is_no_piece():
    pytest.importorskip("tokenizers")
    found, why = read(**sentencepiece())
    assert why is None
    tokens = sentencepiece()["tokens"]
    assert [tokens[i] for i in found.encode("hello world")] == ["<s>", "▁", "hello", "▁world"]
    assert [tokens[i] for i in found.encode("é")][1:] == ["▁", "<0xC3>", "<0xA9>"]
    for text in TEXTS[:4]:
        assert found.decode(found.encode(text)) == text
    bare, _ = read(**sentencepiece(), add_bos_token=False, add_space_prefix=False, add_eos_token=True, eos_token_id=2)
    assert [tokens[i] for i in bare.encode("hello")] == ["hello", "</s>"]


@pytest.mark.oracle
@pytest.mark.parametrize("keys", [byte_level(), byte_level("llama-bpe"), byte_level("smollm"), sentencepiece()],
                         ids=["qwen2", "llama-bpe", "smollm", "llama"])  # fmt: skip
def test_a_tokenizer_is_written_and_gives_the_same_ids(keys):
    pytest.importorskip("tokenizers")
    first, _ = read(**keys)
    found, why = tokenizer_metadata(first, len(keys["tokens"]) + 3)
    assert why is None
    if "bos_token_id" in keys:
        found[K + "bos_token_id"] = keys["bos_token_id"]
    assert found[K + "tokens"][-1].startswith("[PAD")
    assert found[K + "token_type"][: len(keys["tokens"])] == keys["token_type"]
    second, why = tokenizer_of(Fields(json.loads(json.dumps(found)), "b.gguf"))
    assert why is None
    for text in TEXTS:
        assert second.encode(text).tolist() == first.encode(text).tolist(), text


def test_a_tokenizer_that_gguf_does_not_have_is_left_out_and_said():
    assert "no tokenizer" in tokenizer_metadata(None, 10)[1]

    class Own(ByteTokenizer):
        pass

    assert tokenizer_metadata(Own(), 256)[1] is None
    assert "left out" in tokenizer_metadata(object(), 256)[1]
