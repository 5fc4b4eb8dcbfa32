"""The files of the embedded model: whole, of the stated shape, and with texts that training has not seen."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import struct
import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from qsim.models import load, tiny_text
from qsim.models.loading import TINY

CONFIG = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
RECORD = json.loads((TINY / "training.json").read_text(encoding="utf-8"))
INDEX = json.loads((TINY / "model.safetensors.index.json").read_text(encoding="utf-8"))
ROWS = list(csv.DictReader((TINY / "corpus.csv").read_text(encoding="utf-8").splitlines()))
LIBRARY = Path(sysconfig.get_path("stdlib"))
TEXTS = ("calibration", "test")


def expected_shapes():
    hidden, ffn, head = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["head_dim"]
    queries, keys = CONFIG["num_attention_heads"] * head, CONFIG["num_key_value_heads"] * head
    shapes = {
        "model.embed_tokens.weight": (256, hidden),
        "lm_head.weight": (256, hidden),
        "model.norm.weight": (hidden,),
    }
    for i in range(CONFIG["num_hidden_layers"]):
        block = {
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "mlp.gate_proj": (ffn, hidden),
            "mlp.up_proj": (ffn, hidden),
            "mlp.down_proj": (hidden, ffn),
        }
        shapes.update({f"model.layers.{i}.{name}.weight": shape for name, shape in block.items()})
    return shapes


def shard_headers():
    """Tensor name to its safetensors entry, read by the file format's own rule and no library."""
    headers = {}
    for file in sorted(set(INDEX["weight_map"].values())):
        raw = (TINY / file).read_bytes()
        (size,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + size])
        header.pop("__metadata__")
        assert 8 + size + max(entry["data_offsets"][1] for entry in header.values()) == len(raw)
        headers.update({name: (file, entry) for name, entry in header.items()})
    return headers


def recorded(text, protocol, weights="bfloat16"):
    (row,) = [r for r in RECORD["results"] if (r["text"], r["protocol"], r["weights"]) == (text, protocol, weights)]
    return row["bits_per_byte"]


@pytest.mark.parametrize("name", RECORD["files"])
def test_file_is_the_one_that_training_wrote(name):
    assert hashlib.sha256((TINY / name).read_bytes()).hexdigest() == RECORD["files"][name]


def test_every_file_is_accounted_for():
    present = {path.name for path in TINY.iterdir()}
    made_later = {"training.json", "trials.json", "README.md", "learning_curve.svg", "LICENSE.python.txt"}
    assert present == set(RECORD["files"]) | made_later
    assert sum(path.stat().st_size for path in TINY.iterdir()) < 25_000_000


def test_tensors_are_bf16_of_the_configs_shapes_and_finite():
    headers = shard_headers()
    assert {name: tuple(entry["shape"]) for name, (_, entry) in headers.items()} == expected_shapes()
    assert {entry["dtype"] for _, entry in headers.values()} == {"BF16"}
    assert {name: file for name, (file, _) in headers.items()} == INDEX["weight_map"]
    parameters = sum(math.prod(shape) for shape in expected_shapes().values())
    assert parameters == RECORD["parameters"] == INDEX["metadata"]["total_size"] // 2
    assert 8e6 < parameters < 13e6
    for name, tensor in load("tiny").tensors.items():
        assert np.isfinite(tensor).all(), name
        assert tensor.std() > 0, name


def test_group_128_divides_every_linear():
    assert CONFIG["hidden_size"] % 128 == CONFIG["intermediate_size"] % 128 == 0
    assert CONFIG["num_attention_heads"] > CONFIG["num_key_value_heads"]
    assert CONFIG["max_position_embeddings"] >= 512


def test_manifest_is_the_recorded_corpus():
    assert hashlib.sha256((TINY / "corpus.csv").read_bytes()).hexdigest() == RECORD["corpus"]["sha256"]
    files = Counter(row["split"] for row in ROWS)
    assert files == {split: entry["files"] for split, entry in RECORD["corpus"]["splits"].items()}
    sizes = Counter()
    for row in ROWS:
        sizes[row["split"]] += 1 + int(row["bytes"])  # a separator each
    assert sizes == {split: entry["bytes"] for split, entry in RECORD["corpus"]["splits"].items()}


def test_no_file_is_in_two_splits_by_path_or_by_content():
    assert len({row["path"] for row in ROWS}) == len({row["sha256"] for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("which", TEXTS)
def test_texts_are_excerpts_of_files_of_their_own_split(which):
    text = (TINY / f"{which}.txt").read_bytes()
    entry = RECORD["corpus"]["texts"][which]
    assert tiny_text(which).encode() == text
    assert (len(text), hashlib.sha256(text).hexdigest()) == (entry["bytes"], entry["sha256"])
    empty, *documents = text.split(b"\0")
    assert empty == b""
    assert [len(document) for document in documents] == [excerpt["length"] for excerpt in entry["excerpts"]]
    of_split = {row["path"]: row for row in ROWS if row["split"] == which}
    assert [excerpt["path"] for excerpt in entry["excerpts"]] == list(of_split)
    for document, excerpt in zip(documents, entry["excerpts"], strict=True):
        row = of_split[excerpt["path"]]
        if excerpt["length"] == int(row["bytes"]):
            assert hashlib.sha256(document).hexdigest() == row["sha256"]
        else:
            assert document.endswith(b"\n")
    assert 0.98 < len(text) / {"calibration": 128 << 10, "test": 256 << 10}[which] <= 1


def line_blocks(text, lines=12):
    stripped = [line for line in map(bytes.strip, text.split(b"\n")) if line]
    return {hash(tuple(stripped[i : i + lines])) for i in range(len(stripped) - lines + 1)}


def test_training_files_share_no_block_of_lines_with_the_texts():
    """By whole lines, so without the n-gram code that made the split. Needs the library that training read."""
    try:
        files = [(row, (LIBRARY / row["path"]).read_bytes()) for row in ROWS]
    except FileNotFoundError as error:
        pytest.skip(f"this Python's standard library lacks {error.filename}")
    if any(hashlib.sha256(content).hexdigest() != row["sha256"] for row, content in files):
        pytest.skip(f"this Python's standard library is not that of CPython {RECORD['corpus']['python']}")
    held_out = set()
    for which in TEXTS:
        documents = (TINY / f"{which}.txt").read_bytes().split(b"\0")[1:]
        contents = {row["path"]: content for row, content in files if row["split"] == which}
        for document, content in zip(documents, contents.values(), strict=True):
            assert content.startswith(document)
            held_out |= line_blocks(document)
    assert len(held_out) > 5000
    trained = set().union(*(line_blocks(content) for row, content in files if row["split"] == "train"))
    assert len(trained) > 400_000
    assert not held_out & trained


def test_tokens_are_byte_values():
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(TINY / "tokenizer.json"))
    ours = load("tiny").tokenizer
    assert tokenizer.get_vocab_size() == 256
    every_character_size = "".join(map(chr, [*range(0x250), 0x7FF, 0x800, 0xFFFD, 0x10000, 0x1F600, 0x10FFFF]))
    for text in (every_character_size, "Ā <0x00> <s></s> \0\0 \r\n\t", "", tiny_text("calibration")):
        ids = tokenizer.encode(text).ids
        assert bytes(ids) == text.encode()
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert list(ours.encode(text)) == ids
    for byte in range(256):
        assert tokenizer.id_to_token(byte) is not None


def test_record_holds_what_the_model_must_show():
    curve = [point["validation"] for point in RECORD["curve"]]
    assert min(curve) == RECORD["best_validation"]
    assert RECORD["seconds"] < 15 * 60
    plain = recorded("test.txt", "gptq")
    assert plain < 0.92
    assert recorded("test.bin", "gptq") < 0.92
    cost = {
        name: recorded("test.txt", "gptq", name + ", a scale and zero point per 128") - plain
        for name in ("int8", "int4", "int3", "int2")
    }
    assert abs(cost["int8"]) < 0.001
    assert 0.002 < cost["int4"] < 0.01
    assert 0.02 < cost["int3"] < 0.1
    assert cost["int2"] > 0.2


def test_model_card_states_the_recorded_numbers():
    card = (TINY / "README.md").read_text(encoding="utf-8")
    for row in RECORD["results"]:
        assert f"{row['bits_per_byte']:.4f}" in card, row
    assert RECORD["corpus"]["sha256"] in card
    for text in RECORD["corpus"]["texts"].values():
        for excerpt in text["excerpts"]:
            assert excerpt["path"] in card
    assert "Python Software Foundation" in " ".join((TINY / "LICENSE.python.txt").read_text(encoding="utf-8").split())


@pytest.mark.oracle
def test_transformers_finds_the_recorded_bits_per_byte():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    ids = transformers.AutoTokenizer.from_pretrained(TINY)(tiny_text("calibration"))["input_ids"]
    window = CONFIG["max_position_embeddings"]
    windows = torch.tensor(ids[: len(ids) // window * window]).view(-1, window)
    nats, count = 0.0, 0
    with torch.no_grad():
        for batch in windows.split(16):
            logits = model(batch).logits[:, :-1]
            nats += float(
                torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
            )
            count += batch[:, 1:].numel()
        ours = load("tiny").logits(windows[0].numpy())
        # Float32 sums in another order over 8 layers; logits reach 20.
        np.testing.assert_allclose(ours, model(windows[:1]).logits[0].numpy(), rtol=0, atol=2e-4)
    # The record is of float32 on a GPU.
    assert nats / count / math.log(2) == pytest.approx(recorded("calibration.txt", "gptq"), abs=2e-5)
