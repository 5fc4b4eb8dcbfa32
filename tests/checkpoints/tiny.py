"""Models of a few thousand weights for these tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from qsim.models import Model, ModelConfig
from qsim.models.families import expected_tensors
from qsim.scheme import QuantizedTensor, Scheme, get_scheme, quantize

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 256,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 64,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "hidden_act": "silu", "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def bfloat16(x: np.ndarray) -> np.ndarray:
    return (np.asarray(x, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def tiny(seed: int = 0, **changes: object) -> Model:
    """A random Llama whose weights are bfloat16 numbers."""
    rng = np.random.default_rng(seed)
    config = ModelConfig.from_dict({**LLAMA, **changes})
    tensors = {}
    for name, shape in expected_tensors(config).items():
        x = rng.standard_normal(shape).astype(np.float32) * np.float32(0.05)
        tensors[name] = bfloat16(x + 1 if name.endswith("norm.weight") else x)
    return Model(config=config, tensors=tensors, name="random")


def quantized(scheme: str | Scheme, seed: int = 0, input_scale: float | None = None, **changes: object) -> Model:
    """The same, every Linear of the blocks rounded to nearest."""
    model, scheme = tiny(seed, **changes), get_scheme(scheme)
    if input_scale is None and scheme.activation.is_quantized and not scheme.activation.dynamic:
        input_scale = 0.03125
    tensors = {
        f"{name}.weight": quantize(one.weight, scheme, name=name, input_scale=input_scale)
        for name, one in model.linears().items()
    }
    return model.replace(tensors=tensors)


def assert_same(a: Model, b: Model) -> None:
    """Equal in every code, scale, zero point, tensor and scheme, and in every logit."""
    assert a.tensors.keys() == b.tensors.keys()
    for name, tensor in a.tensors.items():
        other = b.tensors[name]
        assert type(tensor) is type(other), name
        if isinstance(tensor, QuantizedTensor):
            assert tensor == other, name
        else:
            np.testing.assert_array_equal(tensor, other, err_msg=name)
    tokens = np.arange(24) % a.config.vocab_size
    np.testing.assert_array_equal(a.logits(tokens), b.logits(tokens))


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())
