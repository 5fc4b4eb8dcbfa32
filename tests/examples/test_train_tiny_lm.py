"""The training example: its optimizer, its evaluation, and a few steps from corpus to a folder that qsim loads."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.oracle

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import train_tiny_lm
from tiny_lm import corpus, evaluation
from tiny_lm.llama import Config, Llama
from tiny_lm.muon import Muon, orthogonalise

SMALL = Config(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
               num_key_value_heads=1, head_dim=32, max_position_embeddings=32)  # fmt: skip


@pytest.fixture
def model():
    torch.manual_seed(1)
    small = Llama(SMALL).eval().requires_grad_(False)
    for weight in small.parameters():
        weight.data += 0.1 * torch.randn_like(weight)  # away from the initial, almost flat prediction
    return small


def text(length):
    return torch.tensor(list(random.Random(3).randbytes(length)), dtype=torch.uint8)


@pytest.mark.parametrize("shape", [(64, 32), (32, 64), (48, 48)])
def test_muon_is_that_of_torch(shape):
    torch.manual_seed(0)
    start = [torch.randn(shape) for _ in range(3)]
    ours, theirs = ([torch.nn.Parameter(w.clone()) for w in start] for _ in range(2))
    muon = Muon(ours, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(shape)
            b.grad = a.grad.clone()
        muon.step(1e-2)
        reference.step()
    for a, b, w in zip(ours, theirs, start, strict=True):
        # Both iterate in bfloat16, one fusing what the other rounds; five steps multiply small errors by 3.4 each.
        # Without Nesterov's term they would differ by 0.2 or more.
        assert (a - b).norm() < 0.06 * (a - w).norm()


def test_orthogonalise_brings_singular_values_near_one():
    torch.manual_seed(0)
    matrices = torch.randn(4, 32, 96) @ torch.diag(torch.logspace(0, -1, 96))
    values = torch.linalg.svdvals(orthogonalise(matrices).float())
    assert values.min() > 0.6
    assert values.max() < 1.25


@pytest.mark.parametrize("length", [32, 33, 63, 64, 65, 200])
@pytest.mark.parametrize(("protocol", "stride"), [("gptq", None), ("windows", None), ("sliding", 8), ("sliding", 31)])
def test_bits_per_byte_byte_by_byte(model, length, protocol, stride):
    content = text(length)
    start, stop, first = (t.tolist() for t in evaluation.plan_windows(length, 32, protocol, stride))
    scored, bits = [], 0.0
    for begin, end, score in zip(start, stop, first, strict=True):
        log_p = torch.log_softmax(model(content[None, begin:end].long())[0], -1)
        for position in range(score, end):
            bits -= float(log_p[position - 1 - begin, int(content[position])]) / math.log(2)
            scored.append(position)
    if protocol == "gptq":
        assert scored == [i for i in range(length // 32 * 32) if i % 32]
    else:
        assert scored == list(range(1, length))
    mean, error = evaluation.bits_per_byte(model, content, window=32, protocol=protocol, stride=stride, batch=3)
    assert mean == pytest.approx(bits / len(scored), rel=1e-5)
    assert error >= 0


def test_protocols_are_those_of_qsim():
    from qsim.models.windows import plan_windows

    class Shape:
        class config:
            max_position_embeddings = 32

    for length in (40, 64, 65, 200):
        for protocol, stride in (("gptq", None), ("windows", None), ("sliding", 8)):
            start, stop, first = (t.tolist() for t in evaluation.plan_windows(length, 32, protocol, stride))
            theirs = plan_windows(Shape, length, 32, stride, protocol)
            # qsim names the last byte that goes in and the byte before the first one scored.
            assert [(w.start, w.stop + 1, w.scored + 1) for w in theirs] == list(zip(start, stop, first, strict=True))


def test_an_unknown_protocol_is_refused():
    for protocol, stride in (("sliding", None), ("sliding", 0), ("sliding", 32), ("rolling", 8)):
        with pytest.raises(ValueError, match=f"gptq, windows, or sliding .* got '{protocol}', stride={stride}"):
            evaluation.plan_windows(100, 32, protocol, stride)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_round_to_nearest_stays_within_half_a_step(bits):
    torch.manual_seed(0)
    weight = torch.randn(16, 256)
    weight[0, :128] = 0
    weight[1, :128] = weight[1, :128].abs() + 3  # zero is not in the range of values
    rounded = evaluation.round_to_nearest(weight, bits, 128)
    groups = weight.view(16, 2, 128)
    step = (groups.amax(-1).clamp(min=0) - groups.amin(-1).clamp(max=0)) / (2**bits - 1)
    # The rounded zero point moves the grid by half a step at most, and clips as much at one end.
    assert ((rounded - weight).view(16, 2, 128).abs().amax(-1) <= step * 1.001 + 1e-7).all()
    assert (rounded.view(16, 2, 128)[0, 0] == 0).all()
    assert all(len(set(row.tolist())) <= 2**bits for row in rounded.view(-1, 128))


def test_a_few_steps_from_corpus_to_a_model_that_qsim_loads(tmp_path, monkeypatch, capsys):
    library, built, out = tmp_path / "lib", tmp_path / "corpus", tmp_path / "model"
    library.mkdir()
    words = ["def", "return", "class", "self", "for", "in", "range", "x", "y", "if", "else", "import", "not"]
    generator = random.Random(0)
    for i in range(30):
        body = "\n".join(" ".join(generator.choices(words, k=8)) + f" v{i}_{j}" for j in range(120))
        (library / f"m{i}.py").write_text(body + "\n")

    def run(*command):
        monkeypatch.setattr(sys, "argv", ["train_tiny_lm.py", *map(str, command)])
        train_tiny_lm.main()
        return capsys.readouterr().out

    monkeypatch.setattr(evaluation, "SAMPLE_PROMPTS", ("def f(",))
    monkeypatch.setattr(corpus, "HELD_OUT_BYTES", dict.fromkeys(corpus.HELD_OUT_BYTES, 8000))
    monkeypatch.setattr(corpus, "TEXT_BYTES", dict.fromkeys(corpus.TEXT_BYTES, 4096))
    run("corpus", built, "--library", library)
    small = ["--hidden", 128, "--layers", 1, "--ffn", 128, "--context", 64, "--batch", 8, "--warmup", 5]
    log = run("train", built, out, *small, "--steps", 40, "--evaluate-every", 20, "--device", "cpu")
    assert "best validation" in log
    record = json.loads((out / "training.json").read_text())
    assert record["curve"][-1]["step"] == 40
    assert record["curve"][-1]["validation"] < 5  # 8 bits at the start
    assert len(record["results"]) == 5 + len(evaluation.QUANTISERS)
    before = (out / "training.json").read_bytes()
    assert run("evaluate", built, out) == ""  # nothing is missing
    assert (out / "training.json").read_bytes() == before
    run("card", out)
    assert f"{record['results'][0]['bits_per_byte']:.4f}" in (out / "README.md").read_text(encoding="utf-8")

    from qsim.models import evaluate, load

    found = evaluate(load(out), (built / "test.txt").read_bytes(), window=64, protocol="gptq")
    expected = next(row for row in record["results"] if row["protocol"] == "gptq")
    np.testing.assert_allclose(found.bits_per_byte, expected["bits_per_byte"], rtol=1e-5)
    np.testing.assert_allclose(found.bits_per_byte_se, expected["standard_error"], rtol=1e-3)
