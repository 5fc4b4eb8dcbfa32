"""Bits per byte, perplexity, divergences and their errors, against the definitions written out."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numba
import numpy as np
import pytest

from qsim._native.blas import one_blas_thread
from qsim.errors import QsimError
from qsim.models import Reference, evaluate, with_scheme
from qsim.models.evaluation import LOOK_EVERY, _may_share, first_token
from qsim.models.statistics import ratio
from qsim.models.tokenizer import ByteTokenizer

from .small import random_model

TEXT = "for i in range(10): print(i ** 2, 'ä€')\n" * 7


@pytest.fixture(scope="module")
def model():
    return random_model(vocab_size=256).replace(tokenizer=ByteTokenizer(), name="small")


def log_probabilities(model, tokens):
    logits = model.logits(np.asarray(tokens)).astype(np.float64)
    return (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )


def expected(model, ids, spans):
    """(nll of each window, count) for spans of (start, stop, first target), by one forward pass each."""
    sums = []
    for start, stop, first in spans:
        lp = log_probabilities(model, ids[start : stop - 1])
        sums.append([-sum(lp[t - 1 - start, ids[t]] for t in range(first, stop)), stop - first])
    return np.array(sums)


def test_windows(model):
    ids = model.tokenizer.encode(TEXT)
    n = len(ids)
    r = evaluate(model, TEXT, window=50)
    sums = expected(model, ids, [(s, min(s + 51, n), s + 1) for s in range(0, n - 1, 50)])
    assert r.tokens == r.bytes == n - 1 == sums[:, 1].sum()
    assert r.windows == len(sums)
    assert r.nll == pytest.approx(sums[:, 0].sum() / (n - 1), rel=1e-6)
    assert r.bits_per_byte == pytest.approx(r.nll / math.log(2))
    assert r.perplexity == pytest.approx(math.exp(r.nll))
    np.testing.assert_allclose(r.per_window["nll"], sums[:, 0], rtol=1e-5)
    value, se = ratio(sums[:, 0], sums[:, 1])
    assert r.nll_se == pytest.approx(se, rel=1e-3)
    assert r.perplexity_se == pytest.approx(math.exp(value) * se, rel=1e-3)
    assert r.kl is r.reference is r.top1_agreement is None
    assert r.to_dict()["notes"] == []
    assert "per_window" not in r.to_dict()
    hits = sum(int(log_probabilities(model, ids[s : min(s + 50, n - 1)]).argmax(-1)[t] == ids[s + t + 1])
               for s in range(0, n - 1, 50) for t in range(min(50, n - 1 - s)))  # fmt: skip
    assert r.accuracy == hits / (n - 1)


def test_gptq_protocol_is_its_script(model):
    """gptq.py: nsamples = numel // seqlen; each window's mean loss over seqlen - 1 shifted labels, times seqlen."""
    ids = model.tokenizer.encode(TEXT)
    seqlen = 50
    nlls = []
    for i in range(len(ids) // seqlen):
        batch = ids[i * seqlen : (i + 1) * seqlen]
        lp = log_probabilities(model, batch)
        loss = -np.mean([lp[t, batch[t + 1]] for t in range(seqlen - 1)])
        nlls.append(loss * seqlen)
    ppl = math.exp(sum(nlls) / (len(ids) // seqlen * seqlen))
    r = evaluate(model, TEXT, window=seqlen, protocol="gptq")
    assert r.perplexity == pytest.approx(ppl, rel=1e-6)
    assert r.windows == len(nlls)
    assert r.tokens == len(nlls) * (seqlen - 1)


@pytest.mark.parametrize(("window", "stride"), [(50, 20), (50, 50), (50, 1), (64, None)])
def test_sliding_is_the_loop_of_the_transformers_guide(model, window, stride):
    """huggingface.co/docs/transformers/perplexity, its loop word for word."""
    ids = model.tokenizer.encode(TEXT)[:120]
    text = model.tokenizer.decode(ids)
    step, prev, total, count = stride or window // 2, 0, 0.0, 0
    for begin in range(0, len(ids), step):
        end = min(begin + window, len(ids))
        target_length = end - prev
        lp = log_probabilities(model, ids[begin:end])
        for t in range(max(begin + 1, end - target_length), end):
            total -= lp[t - 1 - begin, ids[t]]
            count += 1
        prev = end
        if end == len(ids):
            break
    r = evaluate(model, text, window=window, stride=stride, protocol="sliding")
    assert r.tokens == count
    assert r.nll == pytest.approx(total / count, rel=1e-6)
    if stride != 50:
        assert count == len(ids) - 1
    assert r.stride == step


def test_against_a_reference(model):
    q = with_scheme(model, "w3a16-g32")
    ids = model.tokenizer.encode(TEXT)[:101]
    text = model.tokenizer.decode(ids)
    r = evaluate(q, text, window=50, reference=model)
    kl, same, delta = [], [], []
    for s in (0, 50):
        p, lp_q = log_probabilities(model, ids[s : s + 50]), log_probabilities(q, ids[s : s + 50])
        kl += (np.exp(p) * (p - lp_q)).sum(-1).tolist()
        same += (p.argmax(-1) == lp_q.argmax(-1)).tolist()
        targets = ids[s + 1 : s + 51]
        delta += (p[np.arange(50), targets] - lp_q[np.arange(50), targets]).tolist()
    assert r.kl == pytest.approx(np.mean(kl), rel=1e-4)
    assert r.top1_agreement == np.mean(same)
    assert 0.3 < r.top1_agreement < 1
    assert r.bits_per_byte_delta == pytest.approx(np.mean(delta) / math.log(2), rel=1e-4)
    assert r.bits_per_byte_delta == pytest.approx(
        r.bits_per_byte - evaluate(model, text, window=50).bits_per_byte, abs=1e-6
    )
    assert r.reference == "small"
    assert r.model == "small w3a16-g32"
    assert r.notes == ("weights rounded to nearest: w3a16-g32",)
    same_model = evaluate(model, text, window=50, reference=model)
    assert same_model.kl == 0
    assert same_model.top1_agreement == 1
    assert same_model.bits_per_byte_delta == 0


def test_a_reference_remembers_within_its_budget(model):
    q = with_scheme(model, "w4a16-g32")
    plain = evaluate(q, TEXT, window=50, reference=model)
    calls = []
    spy = model.replace(linear_settings={"model.layers.0.mlp.up_proj": {"engine": lambda one, x: (
        calls.append(len(x)), x @ one.weight.T)[1]}})  # fmt: skip
    whole = Reference(spy)
    first = evaluate(q, TEXT, window=50, reference=whole)
    made = len(calls)
    again = evaluate(q, TEXT, window=50, reference=whole)
    assert len(calls) == made > 0
    assert first.kl == again.kl == pytest.approx(plain.kl, rel=1e-4)
    calls.clear()
    small = Reference(spy, budget_bytes=4 * 50 * 256)
    for _ in range(2):
        assert evaluate(q, TEXT, window=50, reference=small).kl == pytest.approx(plain.kl, rel=1e-4)
    assert made < len(calls) <= 2 * made
    calls.clear()
    long = 10 * TEXT  # its windows go through the model in batches, none of whose logits fits where its states do
    ids = len(model.tokenizer.encode(long))
    states = Reference(spy, budget_bytes=4 * 1000 * model.config.vocab_size - 1)
    once = evaluate(q, long, window=50, reference=states)
    made = len(calls)
    assert 4 * ids * model.config.hidden_size < states.budget_bytes
    assert evaluate(q, long, window=50, reference=states).kl == once.kl
    assert len(calls) - made < made / 2


@pytest.mark.parametrize("kept", [0, 10**9])
def test_a_first_token_goes_before_every_window_and_is_not_scored(model, kept):
    first, ids = 7, model.tokenizer.encode(TEXT)
    q = with_scheme(model, "w4a16-g32")
    found = evaluate(q, TEXT, window=50, first=first, reference=Reference(model, kept))
    nll = {}
    for name, one in (("q", q), ("model", model)):
        nll[name] = []
        for start in range(0, len(ids) - 1, 50):
            part = ids[start : start + 51]
            logits = one.unembed(one.hidden(np.concatenate([[first], part[:-1]]))[0])[1:].astype(float)
            logits -= np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True)) + logits.max(
                1, keepdims=True)  # fmt: skip
            nll[name].append(-logits[np.arange(len(part) - 1), part[1:]].sum())
    np.testing.assert_allclose(found.per_window["nll"], nll["q"], rtol=1e-4)
    np.testing.assert_allclose(found.per_window["reference_nll"], nll["model"], rtol=1e-4)
    assert found.tokens == len(ids) - 1
    assert found.nll != evaluate(q, TEXT, window=50).nll
    already = np.concatenate([[first], ids])  # as a tokenizer that puts it before the text gives it
    assert evaluate(q, already, window=50, first=first).nll == pytest.approx(found.nll, rel=1e-6)
    with pytest.raises(QsimError, match="window must be between 2 and the context length"):
        evaluate(q, TEXT, window=model.config.max_position_embeddings, first=first)
    assert first_token(model) is None
    begins = SimpleNamespace(
        config=SimpleNamespace(bos_token_id=7), tokenizer=SimpleNamespace(encode=lambda _: [7, 97])
    )
    assert first_token(begins) == 7


def test_batches_change_nothing(model, monkeypatch):
    import qsim.models.evaluation as module

    together = evaluate(model, TEXT, window=20)
    monkeypatch.setattr("qsim.models.windows.BATCH_TOKENS", 1)
    monkeypatch.setattr(module, "_LOGITS", 7 * 256)
    alone = evaluate(model, TEXT, window=20)
    np.testing.assert_allclose(alone.per_window["nll"], together.per_window["nll"], rtol=1e-5)
    np.testing.assert_array_equal(alone.per_window["tokens"], together.per_window["tokens"])


def test_token_ids_and_bytes_and_cuts(model):
    ids = model.tokenizer.encode(TEXT)
    by_ids = evaluate(model, ids, window=50)
    assert by_ids.bits_per_byte is by_ids.bytes is by_ids.bits_per_byte_se is None
    assert by_ids.nll == evaluate(model, TEXT.encode(), window=50).nll
    euro = TEXT.encode().index("€".encode())
    cut = evaluate(model, TEXT, window=50, max_bytes=euro + 1)  # the first byte of a character of three
    assert cut.bytes == euro - 1
    assert evaluate(model, TEXT, window=50, max_bytes=10**9).bytes == len(ids) - 1
    one = evaluate(model, TEXT[:20], window=50)
    assert one.windows == 1
    assert one.nll_se is one.bits_per_byte_se is None


def test_progress(model, capsys):
    seen = []
    evaluate(model, TEXT, window=50, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (6, 6)
    evaluate(model, TEXT, window=50, progress=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 65}, "window must be between 2 and the context length \\(64\\): got 65"),
        ({"window": 1}, "window must be between 2"),
        ({"protocol": "wikitext"}, "protocol must be one of windows, sliding, gptq: got 'wikitext'"),
        ({"stride": 5}, "stride belongs to protocol='sliding'"),
        (
            {"stride": 65, "protocol": "sliding", "window": 64},
            "stride must be between 1 and the window \\(64\\): got 65",
        ),
        ({"text": "x"}, "needs a text of at least 2 tokens: got 1"),
        ({"text": "x" * 20, "protocol": "gptq", "window": 64}, "'gptq' needs a text of at least 64 tokens: got 20"),
        ({"text": b"ab\xff"}, "a text is UTF-8: byte 2 is not"),
        ({"text": np.array([1, 999])}, "token ids must be 0 to 255: got 999"),
        ({"text": np.array([1, 2]), "max_bytes": 3}, "max_bytes cuts a text: got token ids"),
    ],
)
def test_mistakes(model, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(model, **{"text": TEXT, "window": 50, **options})


def test_models_that_cannot_be_compared(model):
    with pytest.raises(ValueError, match="same vocabulary: got 256 and 96"):
        evaluate(model, TEXT, window=50, reference=random_model())
    with pytest.raises(ValueError, match="no tokenizer.json"):
        evaluate(random_model(), TEXT, window=50)


def test_standard_errors_cover_correlated_windows():
    """Series with autocorrelation 0.5: the stated error is near the true one, which the naive one misses."""
    rng = np.random.default_rng(0)
    n, stated, naive, values = 200, [], [], []
    weights = np.full(n, 50.0)
    for _ in range(300):
        noise = rng.standard_normal(n + 50)
        x = np.zeros(n + 50)
        for i in range(1, n + 50):
            x[i] = 0.5 * x[i - 1] + noise[i]
        y = 50 * (2 + 0.1 * x[50:])
        value, se = ratio(y, weights)
        values.append(value)
        stated.append(se)
        naive.append(np.std(y / 50, ddof=1) / np.sqrt(n))
    true = np.std(values)
    assert 0.75 < np.mean(stated) / true < 1.1
    assert np.mean(naive) / true < 0.65
    value, se = ratio(np.array([1.0, 2.0, 3.0, 4.0] * 25), np.ones(100) * 2.0)
    assert value == 1.25
    assert se >= np.std([0.5, 1.0, 1.5, 2.0] * 25, ddof=1) / 10 * 0.999  # negative correlation does not shrink it
    assert ratio(np.array([3.0]), np.array([2.0])) == (1.5, None)


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
@pytest.mark.parametrize("scheme", [None, "w4a16-g32", "w8a8", "fp8-rowwise"])
def test_the_threads_of_our_own_kernels_do_not_change_a_bit(model, scheme):
    """BLAS may split a sum by its threads, which `evaluate` says; on one BLAS thread everything is equal."""
    one = model if scheme is None else with_scheme(model, scheme)
    found, before = [], numba.get_num_threads()
    for threads in (1, 2):
        numba.set_num_threads(threads)
        try:
            with one_blas_thread():
                found.append(evaluate(one, TEXT, window=50, reference=model).to_dict() | {"time_s": 0})
        finally:
            numba.set_num_threads(before)
    assert found[0] == found[1]


def test_windows_that_are_enough_end_the_evaluation():
    """The rest of the text is left out, and what was scored is scored as it is alone."""
    model = random_model()
    ids = np.random.default_rng(3).integers(0, 96, 8 * 3 * LOOK_EVERY + 1)
    seen = []

    def enough(so_far):
        seen.append((so_far.windows, so_far.nll))
        return len(seen) == 2

    found = evaluate(model, ids, window=8, reference=model, enough=enough)
    assert [windows for windows, _ in seen] == [LOOK_EVERY, 2 * LOOK_EVERY]
    assert (found.windows, found.nll) == seen[-1]
    alone = evaluate(model, ids[: 8 * 2 * LOOK_EVERY + 1], window=8, reference=model, enough=lambda so_far: False)
    assert (found.nll, found.kl, found.accuracy) == (alone.nll, alone.kl, alone.accuracy)
    whole = evaluate(model, ids, window=8, reference=model, enough=lambda so_far: False)
    assert whole.nll == pytest.approx(evaluate(model, ids, window=8, reference=model).nll, rel=1e-6)  # other batches


def test_windows_on_several_threads_have_the_bits_of_one(monkeypatch):
    """Of every kind of activation: a model whose products are BLAS's runs its windows side by side."""
    ids = np.random.default_rng(4).integers(0, 96, 16 * 80 + 1)
    done = []
    for scheme in (None, "w8a8-channel-token", "fp8-rowwise", "w8a8-tensor", "mxfp8", "w8a16-channel-kvint8"):
        model = random_model() if scheme is None else with_scheme(random_model(), scheme)
        model = model.replace(linear_settings={"*": {"engine": "dequantized"}})
        assert _may_share(model)
        found = []
        for threads in (1, 3):
            monkeypatch.setattr("qsim.models.windows.BATCH_TOKENS", 32)
            with monkeypatch.context() as patch:
                patch.setattr("numba.get_num_threads", lambda threads=threads: threads)
                found.append(evaluate(model, ids, window=16, reference=model, progress=lambda *n: done.append(n)))
        assert found[0].nll == found[1].nll
        assert found[0].accuracy == found[1].accuracy
    assert all(b[0] > a[0] for a, b in itertools.pairwise(done) if b[0] > 2)  # counted, in whatever order they end
    assert not _may_share(with_scheme(random_model(), "w8a8-channel-token"))  # its kernels have threads of their own
