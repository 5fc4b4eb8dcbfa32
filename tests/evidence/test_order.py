"""Questions that nobody published an answer to: names that are not in the table, and numbers between known ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from qsim.errors import QsimError
from qsim.evidence import Expectation, KnownModel, Precision, expected_loss, find, known_models
from qsim.evidence.find import identity
from qsim.evidence.identity import canonical, model_from_name
from qsim.evidence.law import FEATURES, laws
from qsim.evidence.order import coarser, finer
from qsim.evidence.table import published

MODELS = (
    "llama-2-7b",
    "llama-3-8b",
    "llama-3.1-8b-instruct",
    "opt-6.7b",
    "mixtral-8x7b",
    "qwen2.5-3b",
    *(pytest.param(m, marks=pytest.mark.exhaustive) for m in ("qwen3-8b", "phi-4", "gemma-3-4b-it")),
)
METHODS = ("rtn", "gptq", "awq")
REGIONS = ("channel", "g1024", "g128", "g64", "g32", "g16")  # the coarsest first
GGUF = ("q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k", "q8_0")


def answers(model: str, method: str, asked: list[Precision]) -> list[Expectation]:
    return [expected_loss(model, method, p) for p in asked]


def chains() -> Iterator[list[Precision]]:
    """Numbers, each loses at least as much as the next: bits in one group, groups of the same bits, types, caches."""
    for bits in (3, 4, 5, 6, 8):
        yield [Precision(weight=f"int{bits}", region=region) for region in REGIONS]
    for region in REGIONS:
        yield [Precision(weight=f"int{bits}", region=region) for bits in (3, 4, 5, 6, 8)]
    yield [Precision(weight=name, region="block") for name in GGUF]
    for cache in ("int8", "fp8"):
        yield [Precision(kv="int4"), Precision(kv=cache), Precision()]


@pytest.mark.parametrize("model", MODELS)
def test_more_bits_and_finer_scales_never_lose_more(model: str) -> None:
    """But for two published facts, which stay as their sources print them."""
    compared = 0
    for chain, method in itertools.product(chains(), METHODS):
        how = "gguf" if chain[0].weight in GGUF else "none" if chain[0].weight == "none" else method
        known = [e for e in answers(model, how, chain) if e.known]
        for more, less in itertools.combinations(known, 2):
            if more.basis == less.basis == "published":
                continue
            compared += 1
            for name in ("value", "lost"):
                assert getattr(less, name) <= getattr(more, name) + 1e-12, (more, less)
    assert compared > 30


@pytest.mark.parametrize("model", MODELS)
def test_every_band_holds_its_point_and_every_unknown_says_what_to_do(model: str) -> None:
    for chain, method in itertools.product(chains(), METHODS):
        for e in answers(model, method, chain):
            if e.known:
                assert e.low <= e.value <= e.high  # type: ignore[operator]
                assert e.lost_low <= e.lost <= e.lost_high  # type: ignore[operator]
                assert e.points is None or e.points_low <= e.points <= e.points_high  # type: ignore[operator]
                assert e.basis != "unknown"
            else:
                assert (e.low, e.high, e.lost, e.points) == (None, None, None, None)
                assert e.basis != "unknown" or "measure it with" in e.note


@pytest.mark.parametrize("cache", ["fp8", "int8", "int4"])
@pytest.mark.parametrize("model", MODELS[:4])
def test_a_quantised_cache_never_gains(model: str, cache: str) -> None:
    for method, scheme in (("awq", "w4a16-g128"), ("fp8", "fp8-rowwise"), ("smoothquant", "w8a8-channel-token")):
        alone, both = expected_loss(model, method, scheme), expected_loss(model, method, scheme, kv=cache)
        if alone.known and both.known and both.basis != "published":
            assert both.value >= alone.value  # type: ignore[operator]


def test_a_larger_model_never_loses_more_by_law() -> None:
    for method, scheme in (
        ("rtn", "w4a16-g128"), ("gptq", "w3a16-g128"), ("awq", "w4a16-g32"), ("fp8", "fp8-rowwise"),
        ("smoothquant", "w8a8-channel-token"), ("rtn", "nvfp4"), ("none", "bf16-kvint4"),
    ):  # fmt: skip
        found = []
        for size in (0.3, 1, 3, 8, 30, 70, 400):
            new = KnownModel(name=f"new-{size}b", family="new", generation="new", parameters_b=size)
            found.append(expected_loss(new, method, scheme))
        assert {e.basis for e in found} == {"law"}
        for name in ("value", "lost"):
            at = [getattr(e, name) for e in found]
            assert at == sorted(at, reverse=True), (method, scheme, at)


def test_the_law_has_no_coefficient_of_the_wrong_sign() -> None:
    for law in laws(published()).values():
        found = dict(zip(FEATURES, law.coefficients.values(), strict=False))
        for name in FEATURES[1:4]:
            assert found[name] >= 0
        assert found[FEATURES[4]] <= 0


def test_coarser_and_finer_are_each_others_opposite() -> None:
    asked = {p for chain in chains() for p in chain if p != Precision() and p.bits in (4, 8, 16)}
    for a, b in itertools.product(asked, asked):
        assert not (b in coarser(a) and b in finer(a))
        assert not (b in coarser(a) and a in coarser(b))
    p = Precision(weight="int4", region="g64")
    assert Precision(weight="int4", region="g128") in coarser(p)
    assert Precision(weight="int8", region="g32") in finer(p)
    assert Precision(weight="int8", region="channel") not in (*coarser(p), *finer(p))
    assert coarser(Precision(weight="int8", region="channel", activation="int8", scaling="token")) == ()


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("mistralai/Mistral-7B-v0.1", "mistral-7b"), ("mistralai/Mixtral-8x7B-v0.1", "mixtral-8x7b"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b-instruct"), ("bigscience/bloom-7b1", "bloom-7.1b"),
        ("bigscience/bloom-1b7", "bloom-1.7b"), ("llama3.1:8b", "llama-3.1-8b"), ("Qwen/Qwen-2.5-7B", "qwen2.5-7b"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b-chat"), ("facebook/opt-iml-30b", "opt-iml-30b"),
        ("google/gemma-3-1b-it", "gemma-3-1b-instruct"),
    ],
)  # fmt: skip
def test_hub_ids_and_tags_are_names_of_the_table(name: str, known: str) -> None:
    assert canonical(name) == known
    if "gemma" not in name:
        assert known in known_models()


@pytest.mark.parametrize(
    ("name", "generation", "size"),
    [
        ("Qwen/Qwen3-4B", "qwen-3", 4), ("Qwen/Qwen2.5-14B-Instruct", "qwen-2.5", 14.8), ("opt-3b", "opt", 3),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507", "qwen-3", 235), ("llama-33b", "llama-1", 33),
        ("google/gemma-3-270m-it", "gemma-3", 0.27), ("Mixtral-8x22B-v0.3", "mixtral", 141),
        ("meta-llama/Llama-3.2-8B", "llama-3", 8), ("Qwen3-8B-Base", "qwen-3", 8.2),
    ],
)  # fmt: skip
def test_a_size_between_known_ones_is_near_its_generation(name: str, generation: str, size: float) -> None:
    found = identity(name)
    assert found is not None
    assert (found.generation, found.parameters_b, found.name) == (generation, pytest.approx(size), canonical(name))
    assert found.name not in known_models()
    asked = expected_loss(name, "awq", "w4a16-g128")
    assert asked.basis in ("near", "law")
    assert "read from its name" in asked.note


@pytest.mark.parametrize(
    "name",
    ["gemma-2-9b", "gpt-17-900b", "qwen2.5-coder-7b", "glm-4-9b", "llama-4-scout-17b-16e", "falcon-3-7b", "qwen3-0b",
     "qwen3-8x7b", "mixtral-7b", "deepseek-r1-distill-llama-8b", "llama-2-13b-gptq", "zephyr-7b", "opt", "7b",
     "opt--7b", "x" * 500, "opt-1e9b", "", "opt-7b/../", "llama-3-8b-vision"],
)  # fmt: skip
def test_a_name_of_another_generation_or_kind_stays_unknown(name: str) -> None:
    assert model_from_name(name) is None
    for method, scheme in (("awq", "w4a16-g128"), ("fp8", "fp8-rowwise"), ("none", "bf16-kvfp8")):
        found = expected_loss(name, method, scheme)
        assert (found.basis, found.value, found.low, found.lost, found.points) == ("unknown", None, None, None, None)
        assert "measure it with" in found.note


@pytest.mark.parametrize("kv", ["fp8_e5m2", "int6", "nvfp4"])
def test_a_cache_whose_order_is_not_known_is_left_alone(kv: str) -> None:
    assert coarser(Precision(kv=kv)) == finer(Precision(kv=kv)) == ()
    assert expected_loss("llama-3-8b", "none", Precision(kv=kv)).note


@pytest.mark.parametrize("word", ["fp8", "FP8", "kvfp8", "e4m3", "fp8_e4m3", "8", "KV8"])
def test_one_cache_has_many_spellings(word: str) -> None:
    asked = expected_loss("llama-3-8b", "awq", "w4a16-g128", kv=word)
    assert asked.value == expected_loss("llama-3-8b", "awq", "w4a16-g128-kvfp8").value
    assert find("llama-3-8b", kv=word) == find("llama-3-8b", kv="fp8")


@pytest.mark.parametrize("word", ["bf16", "fp16", "none", "FP16", ""])
def test_a_cache_in_sixteen_bit_changes_nothing(word: str) -> None:
    assert expected_loss("llama-3-8b", "awq", "w4a16-g128", kv=word) == expected_loss("llama-3-8b", "awq", "w4a16-g128")
    assert expected_loss("llama-3-8b", "none", "bf16", kv=word).basis == "exact"


@pytest.mark.parametrize("word", ["banana", "int17", "fp8x", "none8"])
def test_a_cache_in_numbers_that_do_not_exist_is_refused(word: str) -> None:
    with pytest.raises(QsimError, match=f"unknown numbers of a KV cache '{word}'"):
        expected_loss("llama-3-8b", "awq", "w4a16-g128", kv=word)
    with pytest.raises(QsimError, match="unknown numbers of a KV cache"):
        find("llama-3-8b", kv=word)
