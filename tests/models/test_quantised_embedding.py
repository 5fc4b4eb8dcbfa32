"""An embedding that stays quantised, and the engine of its head."""

from __future__ import annotations

import numpy as np
import pytest

from qsim.checkpoints import write
from qsim.errors import QsimError
from qsim.kernels import linear, pack
from qsim.models import load
from qsim.models.linear import Linear
from qsim.scheme import QuantizedTensor, quantize

from ..checkpoints.tiny import tiny


@pytest.mark.parametrize("kind", ["q8_0", "q4_k", "q5_0"])
def test_a_quantised_embedding_stays_as_it_is_stored(kind, tmp_path):
    """It is looked up by rows, and multiplied as the head: by codes for a few tokens, by its values for many."""
    model = tiny(hidden_size=256, head_dim=64, vocab_size=300, tie_word_embeddings=True)
    write(model, tmp_path / "a.gguf", "gguf", tensor_type=kind)
    back = load(tmp_path / "a.gguf")
    name = "model.embed_tokens.weight"
    table = back.tensors[name]
    assert isinstance(table, QuantizedTensor)
    plain = back.replace(tensors={**back.tensors, name: table.dequantize()})
    ids = np.random.default_rng(0).integers(0, 300, 60)
    np.testing.assert_array_equal(back.embed(ids), plain.embed(ids))
    hidden = np.random.default_rng(1).standard_normal((80, 256)).astype(np.float32)
    for count in (1, 9, 63, 64, 80):
        # float32 sums of 256 products in another order
        np.testing.assert_allclose(back.unembed(hidden[:count]), plain.unembed(hidden[:count]), atol=2e-4)
    write(back, tmp_path / "b.gguf", "gguf")
    assert load(tmp_path / "b.gguf").tensors[name] == table
    write(back, tmp_path / "folder", "plain", dequantize=True)
    np.testing.assert_array_equal(load(tmp_path / "folder").tensors[name], table.dequantize())


def test_an_embedding_without_scales_for_its_rows_is_refused():
    model = tiny(hidden_size=256, head_dim=64)
    name = "model.embed_tokens.weight"
    for scheme in ("w8a16-tensor", "w8a8"):
        with pytest.raises(QsimError, match="the embedding's rows must have scales of their own, weights only"):
            model.replace(tensors={**model.tensors, name: quantize(model.tensors[name], scheme)})


@pytest.mark.parametrize("scheme", ["q8_0", "q4_k", "w4a16-g128", "w8a8", "fp8-rowwise", "mxfp4", "nvfp4", "nf4-g64"])
def test_the_mixed_engine_is_the_fused_one_for_a_few_tokens_and_dequantised_values_for_many(scheme):
    rng = np.random.default_rng(0)
    weight = quantize(rng.standard_normal((300, 512)).astype(np.float32), scheme)
    x, bias = rng.standard_normal((80, 512)).astype(np.float32), rng.standard_normal(300).astype(np.float32)
    mixed, fused, values = (Linear(name="l", weight=weight, bias=bias, engine=e)
                            for e in ("mixed", "fused", "dequantized"))  # fmt: skip
    np.testing.assert_array_equal(mixed(x[:63]), fused(x[:63]))
    # float32 sums of 512 products of size 1 in another order
    np.testing.assert_allclose(mixed(x), values(x), atol=512 * 2**-22, rtol=1e-5)
    assert not mixed.runs_compiled
    if not weight.scheme.activation.is_quantized:  # then the default engine does the same
        np.testing.assert_array_equal(fused(x), mixed(x))
        assert not fused.runs_compiled


@pytest.mark.parametrize("scheme", ["q8_0", "q4_k", "w4a16-g128", "nvfp4", "w8a8"])
def test_a_few_tokens_have_the_bits_of_the_kernel_with_all_its_checks(scheme):
    rng = np.random.default_rng(1)
    weight = quantize(rng.standard_normal((300, 512)).astype(np.float32), scheme)
    x, bias = rng.standard_normal((16, 512)).astype(np.float32), rng.standard_normal(300).astype(np.float32)
    one, packed = Linear(name="l", weight=weight, bias=bias), pack(weight, bias=bias)
    for rows in (x[:1], x[:5], x, x[:, ::-1][:2]):
        np.testing.assert_array_equal(one(rows), linear(np.ascontiguousarray(rows), packed))
    np.testing.assert_array_equal(one(x[:2].astype(np.float64)), linear(x[:2], packed))
