"""Every method on every family of decoders: what is folded where, what stays float, and experts that saw no token."""

from __future__ import annotations

import numpy as np
import pytest

from qsim.errors import QsimError
from qsim.methods import apply_folds, get_method, quantize_model
from qsim.methods.folding import Fold
from qsim.methods.passes import through_block
from qsim.methods.rotation import rotate_model
from qsim.models import ModelConfig
from qsim.scheme import QuantizedTensor

from ..models.small import CONFIGS, random_model

TOKENS = np.random.default_rng(2).integers(0, 96, (3, 32))
NEW = ["gemma2", "gemma3", "mixtral", "qwen3-moe", "phi3", "olmo2", "granite", "gpt-neox", "gpt-neox-serial",
       "starcoder2", "gpt-oss"]  # fmt: skip
METHODS = [("rtn", "w4a16-g32"), ("gptq", "w4a16-g32"), ("awq", "w4a16-g32"), ("smoothquant", "w8a8-channel-token"),
           ("fp8", "fp8-static")]  # fmt: skip


def one_block(kind):
    """A model of as few blocks as show all that its family has: one, where layers are of one kind."""
    mixed = "layer_types" in CONFIGS[kind] or "mlp_only_layers" in CONFIGS[kind]
    return random_model(kind, num_hidden_layers=2 if mixed else 1)


def quantised(kind, method, scheme, model=None, **options):
    options = {**({"grid": 3, "view_windows": 1} if method == "awq" else {}), **options}
    return quantize_model(model or random_model(kind), method, scheme, TOKENS, **options)


@pytest.mark.parametrize("kind", NEW)
@pytest.mark.parametrize(("method", "scheme"), METHODS)
def test_every_method_runs_on_every_family(kind, method, scheme):
    model = one_block(kind)
    result = quantised(kind, method, scheme, model)
    assert {r.layer for r in result.layers} == set(model.linears())
    for name in model.linears():
        assert isinstance(result.model.tensors[f"{name}.weight"], QuantizedTensor)
    routers = [name for name in model.tensors if name.endswith(("gate.weight", "router.weight"))]
    assert all(isinstance(result.model.tensors[name], np.ndarray) for name in routers)
    want = model.logits(TOKENS)
    error = np.sqrt(np.mean((result.model.logits(TOKENS) - want) ** 2) / np.mean(want**2))
    assert 1e-4 < error < 0.6


@pytest.mark.parametrize("kind", NEW)
@pytest.mark.parametrize(("method", "scheme"), [("awq", "w4a16-g32"), ("smoothquant", "w8a8-channel-token")])
def test_the_factors_that_a_method_finds_leave_the_function(kind, method, scheme):
    """Each fold rounds a weight and its source once: float32's 6e-8 over the widest factor, through sums of 64."""
    model = one_block(kind)
    recipe = get_method(method).make(scheme, {"grid": 3, "view_windows": 1} if method == "awq" else {})
    result = quantised(kind, method, scheme, model)
    scales = {r.layer: r.channel_scale for r in result.layers}
    folds = []
    for i in range(model.config.num_hidden_layers):
        for source, names in model.fold_groups(i):
            if method == "smoothquant" and source in scales:
                assert all(scales[name] is None for name in names)  # only norms are divided
                continue
            assert all(np.array_equal(scales[name], scales[names[0]]) for name in names)
            folds.append(Fold(source=source, names=tuple(names), scale=scales[names[0]]))
    assert recipe.fold is not None
    behind_norms = [fold for fold in folds if fold.source not in scales]
    assert bool(behind_norms) == (kind != "olmo2")  # its norms are behind attention and MLP
    want, folded = model.logits(TOKENS), apply_folds(model, folds).logits(TOKENS)
    assert np.abs(folded - want).max() < 1e-4 * np.abs(want).max()
    for fold in behind_norms:  # what the quantised model holds is the divided source
        np.testing.assert_array_equal(
            result.model.tensors[f"{fold.source}.weight"], apply_folds(model, [fold]).tensors[f"{fold.source}.weight"]
        )
        for router in model.float_readers(fold.source):
            np.testing.assert_array_equal(
                result.model.tensors[f"{router}.weight"], model.tensors[f"{router}.weight"] * fold.scale
            )


def test_layers_without_a_fold_have_no_channel_scale_in_their_record():
    result = quantised("olmo2", "smoothquant", "w8a8-channel-token")
    assert all(r.channel_scale is None for r in result.layers)
    result = quantised("olmo2", "awq", "w4a16-g32")
    assert {r.layer.rpartition(".")[2] for r in result.layers if r.channel_scale is not None} == {"down_proj"}


@pytest.mark.parametrize("kind", ["mixtral", "qwen3-moe", "gpt-oss"])
def test_statistics_of_an_expert_are_of_the_tokens_that_chose_it(kind):
    model = random_model(kind)
    block = next(i for i, sparse in enumerate(model.config.sparse_layers) if sparse)
    hidden = model.embed(TOKENS)
    for i in range(block):
        hidden = model.block(i, hidden)
    result = quantised(kind, "rtn", "w4a16-g32", model)
    leaders = [group[0] for group in model.block_stages(block)[2]]
    _, seen = through_block(model, block, hidden, leaders)
    tokens = {r.layer: r.tokens for r in result.layers}
    assert {name: len(x) for name, x in seen.items()} == {name: tokens[name] for name in leaders}
    assert sum(map(len, seen.values())) == TOKENS.size * model.config.num_experts_per_tok


def lonely():
    """A gpt-oss whose router never sends a token to expert 1 of its last block: its bias is far below the others'."""
    model = random_model("gpt-oss")
    bias = np.array([0, -1e4, 0, 0, 0], np.float32)
    return model.replace(tensors={"model.layers.1.mlp.router.bias": bias}), 1


@pytest.mark.parametrize(("method", "scheme"), METHODS)
def test_an_expert_that_no_token_chose_is_rounded_and_recorded(method, scheme):
    model, block = lonely()
    result = quantised("gpt-oss", method, scheme, model)
    names = [n for stage in model.block_stages(block)[2:] for group in stage for n in group if ".experts.1." in n]
    assert len(names) == 2
    for record in result.layers:
        if record.layer in names:
            assert record.tokens == 0
            assert record.method == method
            assert record.fallback == ("" if method == "rtn" else "rtn")
            assert "no calibration token reached this expert" in record.notes
        else:
            assert record.tokens
            assert not record.fallback
    note = next(n for n in result.model.notes if "no calibration token" in n)
    assert note == f"no calibration token reached {names[0]} and 1 more: rounded to nearest"
    assert np.isfinite(result.model.logits(TOKENS)).all()


def test_gptaq_corrects_all_layers_but_experts():
    """Which tokens reach an expert can differ between the original and the quantised model, so inputs have no pairs."""
    corrected = quantised("mixtral", "gptq", "w4a16-g32", correction=True)
    told = {r.layer for r in corrected.layers if "correction_strength" in r.settings}
    assert told == {r.layer for r in corrected.layers if ".experts." not in r.layer}


@pytest.mark.parametrize("kind", ["phi3", "gpt-neox", "gemma3", "olmo2"])
def test_scales_of_an_fp8_cache_bound_what_the_cache_holds(kind):
    """The largest rotated pair bounds a key at every position; fused projections are split as the block splits them."""
    model = random_model(kind)
    result = quantised(kind, "fp8", "fp8-static-kvfp8", model)
    cache = model.new_cache(len(TOKENS))
    model.logits(TOKENS, cache=cache)
    length = TOKENS.shape[1]
    for i in range(model.config.num_hidden_layers):
        prefix = next(name for name in result.model.tensors if name.endswith(".k_scale") and f".{i}." in name)[:-8]
        for which, entries in (("k", cache.keys), ("v", cache.values)):
            peak = float(np.abs(entries[i, :, :, :length]).max())
            bound = 448 * float(result.model.tensors[f"{prefix}.{which}_scale"][0])
            assert 0.999 * peak <= bound <= 1.6 * peak


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("gemma2", "has norms behind them"), ("olmo2", "has norms behind them"), ("phi3", "fused projections"),
        ("mixtral", "experts or fused projections"), ("gpt-neox", "needs RMSNorm"), ("starcoder2", "needs RMSNorm"),
    ],
)  # fmt: skip
def test_what_cannot_be_rotated_is_refused_by_its_family(kind, message):
    with pytest.raises(QsimError, match=message):
        rotate_model(random_model(kind))


def test_a_model_with_multipliers_is_rotated():
    """Scalars pass a rotation; float64 rotations rounded to float32 leave some 1e-6 of the largest logit."""
    model = random_model("granite")
    want = model.logits(TOKENS)
    assert np.abs(rotate_model(model).logits(TOKENS) - want).max() < 2e-5 * np.abs(want).max()
    assert ModelConfig.from_dict(CONFIGS["granite"]).embedding_multiplier == 3.0
