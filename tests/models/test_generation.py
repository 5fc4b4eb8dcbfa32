"""Generation: greedy, drawn, batched, ended."""

from __future__ import annotations

import numpy as np
import pytest

from qsim.models import complete, generate
from qsim.models.generation import TextStream
from qsim.models.tokenizer import ByteTokenizer

from .small import random_model

PROMPT = np.array([5, 17, 3, 80])


def greedy(model, tokens, count):
    """Without a cache, a whole forward pass for every token."""
    ids = list(tokens)
    for _ in range(count):
        ids.append(int(model.logits(np.array(ids), last_only=True).argmax()))
    return ids[len(tokens) :]


@pytest.mark.parametrize("kind", ["llama", "mistral", "opt"])
def test_greedy(kind):
    model = random_model(kind)
    got = list(model.generate(PROMPT, 30))
    assert got == greedy(model, PROMPT, 30)
    assert all(type(t) is int for t in got)
    assert list(generate(model, PROMPT.tolist(), 3)) == got[:3]
    assert list(generate(model, PROMPT, 0)) == []


def test_batches_of_different_lengths_are_what_each_alone_is():
    model = random_model("mistral")
    prompts = [PROMPT, PROMPT[:2], np.arange(11)]
    steps = list(generate(model, prompts, 15))
    assert all(step.shape == (3,) for step in steps)
    for i, prompt in enumerate(prompts):
        assert [int(step[i]) for step in steps] == greedy(model, prompt, 15)
    square = list(generate(model, np.stack([PROMPT, PROMPT]), 5))
    assert [s.tolist() for s in square] == [[t, t] for t in greedy(model, PROMPT, 5)]


def test_ends():
    model = random_model()
    free = list(generate(model, PROMPT, 60))
    assert len(free) == 60  # the context of 64 is full with the 60th: it is drawn, but not fed
    assert len(list(generate(model, PROMPT, 1000))) == 61
    stop = free[4]
    assert list(generate(model, PROMPT, 60, eos=[stop])) == free[: free.index(stop) + 1]
    other = random_model(eos_token_id=stop)
    assert list(generate(other, PROMPT, 60)) == free[: free.index(stop) + 1]
    assert list(generate(other, PROMPT, 60, eos=())) == free
    both = list(generate(model, [PROMPT, np.arange(9)], 20, eos=[stop]))
    at = free.index(stop)
    assert {int(step[0]) for step in both[at:]} == {stop}
    assert [int(step[0]) for step in both[: at + 1]] == free[: at + 1]


def test_draws_follow_the_distribution_and_the_seed():
    model = random_model()
    a = list(generate(model, PROMPT, 20, temperature=1.0, seed=3))
    assert a == list(generate(model, PROMPT, 20, temperature=1.0, seed=3))
    assert a != list(generate(model, PROMPT, 20, temperature=1.0, seed=4))
    assert list(generate(model, PROMPT, 20, temperature=1e-6, seed=4)) == list(generate(model, PROMPT, 20))
    assert list(generate(model, PROMPT, 20, temperature=1.0, top_p=1e-6)) == list(generate(model, PROMPT, 20))
    logits = model.logits(PROMPT, last_only=True).astype(np.float64) / 0.7
    p = np.exp(logits - logits.max())
    p /= p.sum()
    draws = np.array([next(iter(generate(model, PROMPT, 1, temperature=0.7, seed=s))) for s in range(1500)])
    counts = np.bincount(draws, minlength=96)
    expected = 1500 * p
    big = expected > 5
    chi2 = ((counts[big] - expected[big]) ** 2 / expected[big]).sum()
    assert chi2 < big.sum() + 5 * np.sqrt(2 * big.sum())
    order = np.argsort(-p)
    kept = order[: int(np.searchsorted(np.cumsum(p[order]), 0.5)) + 1]
    some = {next(iter(generate(model, PROMPT, 1, temperature=0.7, top_p=0.5, seed=s))) for s in range(300)}
    assert some <= set(kept.tolist())
    assert len(some) > len(kept) / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature must be a number of at least 0: got -1"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1: got 0"),
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0"),
        ({"tokens": [96]}, "token ids must be 0 to 95: got 96"),
        ({"tokens": []}, "at least one"),
        ({"tokens": np.zeros(65, np.int64)}, "context is 64 tokens: got a prompt of 65"),
    ],
)
def test_mistakes_are_found_before_the_first_step(options, message):
    with pytest.raises(ValueError, match=message):
        generate(random_model(), **{"tokens": PROMPT, **options})


def test_texts():
    model = random_model(vocab_size=256, eos_token_id=0)
    with pytest.raises(ValueError, match="llama has no tokenizer.json"):
        complete(model, "x")
    model = model.replace(tokenizer=ByteTokenizer())
    pieces = []
    g = complete(model, "abc", 25, temperature=2.0, seed=1, stream=pieces.append)
    assert "".join(pieces) == g.text
    assert g.text == ByteTokenizer().decode([t for t in g.tokens if t != 0])
    assert g.prompt_tokens == 3
    assert g.stop == ("eos" if g.tokens[-1] == 0 else "length")
    assert g.prefill_s > 0
    assert g.decode_tokens_per_s == (len(g.tokens) - 1) / g.decode_s
    assert complete(model, "a" * 60, 100, eos=()).stop == "context"
    assert complete(model, "a", 1, eos=()).decode_tokens_per_s is None
    with pytest.raises(ValueError, match="the prompt has no tokens"):
        complete(model, "")


def test_streams_hold_back_characters_that_are_not_whole():
    stream = TextStream(ByteTokenizer())
    data = "aä€𝄞b".encode()
    assert [stream.add(b) for b in data] == ["a", "", "ä", "", "", "€", "", "", "", "𝄞", "b"]
    assert stream.flush() == ""
    assert stream.text == "aä€𝄞b"
    assert stream.add(0xC3) == ""
    assert stream.flush() == "\ufffd"
