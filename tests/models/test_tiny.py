"""The embedded model: there at once, good enough to write Python, and what outliers do to it."""

from __future__ import annotations

import ast
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from qsim.cli import main
from qsim.models import complete, evaluate, load, tiny_text, with_outliers, with_scheme
from qsim.models.tokenizer import ByteTokenizer

BYTES = 4096


@pytest.fixture(scope="module")
def tiny():
    return load("tiny")


def test_loads_without_the_network_and_without_tokenizers():
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise OSError('no network')\n"
        "socket.socket.connect = refuse\n"
        "sys.modules['tokenizers'] = None\n"
        "import qsim\n"
        "print(qsim.models.load('tiny').notes)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "()"


def test_is_what_its_card_says(tiny):
    c = tiny.config
    assert (c.architecture, c.vocab_size, c.hidden_size % 128, c.num_hidden_layers) == ("llama", 256, 0, 8)
    assert c.num_key_value_heads < c.num_attention_heads
    assert c.max_position_embeddings >= 512
    assert 9e6 < tiny.parameters < 12e6
    assert isinstance(tiny.tokenizer, ByteTokenizer)
    for text in ("calibration", "test"):
        assert 120_000 < len(tiny_text(text).encode()) < 270_000
    with pytest.raises(ValueError, match="the text must be calibration or test"):
        tiny_text("train")


def test_writes_python(tiny):
    g = complete(tiny, "def fibonacci(n):", 48)
    assert g.text.startswith("\n    ")
    for prompt in ("import os\n\ndef read(path):\n    with open(", "class Stack:\n    def __init__(self"):
        text = prompt + complete(tiny, prompt, 160).text
        whole = text[: text.rindex("\n")]
        for _ in range(12):  # the last statements may be cut
            try:
                tree = ast.parse(whole)
                break
            except SyntaxError:
                whole = whole[: whole.rindex("\n")]
        assert tree.body, text


def test_outliers_break_naive_w8a8_and_nothing_else(tiny):
    """Naive per-tensor W8A8 fails as it does on OPT-175B; the function itself keeps its logits."""
    out = with_outliers(tiny)
    tokens = tiny.tokenizer.encode(tiny_text("test"))[:256]
    assert np.abs(out.logits(tokens) - tiny.logits(tokens)).max() < 1e-4
    assert "synthetic outliers" in out.name
    text = tiny_text("test")

    def bits(model):
        return evaluate(model, text, max_bytes=BYTES).bits_per_byte

    plain = bits(tiny)
    assert bits(out) == pytest.approx(plain, abs=1e-4)
    assert bits(with_scheme(tiny, "w8a8-tensor")) < 1.1 * plain
    assert bits(with_scheme(out, "w8a8-tensor")) > 3 * plain
    r = evaluate(with_scheme(out, "w8a8-tensor"), text, max_bytes=2048, reference=out)
    assert any(note.startswith("synthetic outliers") for note in r.notes)
    assert r.top1_agreement < 0.5


def test_quantisation_is_seen_clearly(tiny):
    """Fewer bits lose more, by more than their errors."""
    found = [evaluate(with_scheme(tiny, s), tiny_text("test"), max_bytes=BYTES, reference=tiny)
             for s in ("w8a16-channel", "w4a16-g128", "w3a16-g128")]  # fmt: skip
    kl = [r.kl for r in found]
    assert kl == sorted(kl)
    assert kl[0] < 1e-3 < kl[-1]
    for a, b in itertools.pairwise(found):
        assert b.kl - a.kl > 2 * (a.kl_se + b.kl_se)


def test_attention_and_linears_bit_by_bit_stay_near(tiny):
    from qsim.models import AttentionMath

    exact = tiny.replace(
        linear_settings={"*": {"engine": "exact", "instruction": "hopper.wgmma.f32.bf16"}},
        attention=AttentionMath(instruction="hopper.wgmma.f32.bf16"),
    )
    r = evaluate(exact, tiny_text("test"), max_bytes=600, reference=tiny, window=300)
    assert 0 < r.kl < 1e-3
    assert r.top1_agreement > 0.97


def test_commands():
    result = CliRunner().invoke(main, ["eval", "--max-bytes", "3000", "--json"])
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["model"] == "tiny"
    assert 0.5 < data["bits_per_byte"] < 1.5
    assert 0 < data["bits_per_byte_se"] < 0.5
    result = CliRunner().invoke(main, ["generate", "def fibonacci(n):", "--max-new-tokens", "32"])
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("def fibonacci(n):\n    ")
    assert "tokens/s" in result.stderr
