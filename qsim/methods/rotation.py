"""Hadamard rotations of a model (QuaRot, Ashkboos et al., arXiv 2404.00456): the same function, without outliers.

An orthogonal matrix that spreads every channel over all others makes weights and activations nearly Gaussian, which
coarse integers represent well. Three of QuaRot's four places:

* R1 turns the hidden states: embeddings and everything that writes to the residual are turned, everything that reads it
  is turned back. Norm gains are folded into the readers first, since a turned RMSNorm must have none.
* R2 turns each head's values, and o_proj back.
* R4 turns the input of down_proj while the model runs (`Linear.input_transform`), and down_proj back.

R3, of queries and keys behind the rotary embedding, only serves a KV cache of few bits and is not here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from qsim.errors import QsimError
from qsim.models import Model, hadamard
from qsim.models.families import block_names, model_names
from qsim.scheme import QuantizedTensor

ROTATIONS = ("offline", "online")


def rotate_model(model: Model, which: str = "offline", *, seed: int = 0) -> Model:
    """A float model turned by randomised Hadamard matrices.

    Arguments:
        which: `offline` is R1 and R2, which any checkpoint can hold; `online` adds R4.
        seed: of R1's random signs.

    Returns:
        A model of the same function up to float32 rounding, computed in float64, with an untied head.

    Raises:
        ValueError: LayerNorm models (their mean subtraction does not commute with R1), norms behind attention or MLP
            (their gains cannot be folded into what reads the residual), fused projections and experts, which are not
            turned here; quantised weights, sizes without a known Hadamard matrix.
    """
    c = model.config
    if which not in ROTATIONS:
        raise QsimError(f"rotations are {', '.join(ROTATIONS)}: got {which!r}")
    reason = _reason(model)
    if reason is not None:
        raise QsimError(reason)
    if any(isinstance(t, QuantizedTensor) for t in model.tensors.values()):
        raise QsimError("rotation needs float weights: rotate before quantising")
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], c.hidden_size)
    r1, r2 = signs[:, None] * _exact(c.hidden_size), _exact(c.head_dim)
    old: dict[str, Any] = {name: np.asarray(t, dtype=np.float64) for name, t in model.tensors.items()}
    names = model_names(c)
    new: dict[str, Any] = {f"{names.embedding}.weight": old[f"{names.embedding}.weight"] @ r1}
    head, offset = old.get(f"{names.head}.weight", old[f"{names.embedding}.weight"]), c.numerics.norm_offset
    new[f"{names.head}.weight"] = (head * (old[f"{names.norm}.weight"] + offset)) @ r1
    new[f"{names.norm}.weight"] = np.ones(c.hidden_size) - offset
    settings = dict(model.linear_settings)
    for i in range(c.num_hidden_layers):
        n = block_names(c, i)
        assert n.value is not None
        assert n.down is not None
        readers = {n.attention_norm: n.projections, n.mlp_norm: n.mlps[0].first}
        for norm, linears in readers.items():
            for name in linears:
                new[f"{name}.weight"] = (old[f"{name}.weight"] * (old[f"{norm}.weight"] + offset)) @ r1
            new[f"{norm}.weight"] = np.ones(c.hidden_size) - offset
        _turn_heads(new, old, n.value, n.output, r2)
        down = old[f"{n.down}.weight"]
        if which == "online":
            down = down @ _exact(c.intermediate_size)
            settings[n.down] = {**settings.get(n.down, {}), "input_transform": "hadamard"}
        new[f"{n.down}.weight"] = down
        for name in (n.output, n.down):
            new[f"{name}.weight"] = r1.T @ new[f"{name}.weight"]
            if f"{name}.bias" in old:
                new[f"{name}.bias"] = old[f"{name}.bias"] @ r1
    return model.replace(
        config=replace(c, tie_word_embeddings=False),
        tensors={name: np.ascontiguousarray(t, dtype=np.float32) for name, t in new.items()},
        linear_settings=settings,
        name=f"{model.name} rotated",
        notes=(*model.own_notes, f"rotated by Hadamard matrices, {which}"),
    )


def _reason(model: Model) -> str | None:
    """Why a model cannot be turned, in one sentence."""
    c = model.config
    names = block_names(c, 0)
    if c.numerics.norm == "layer":
        return f"rotation needs RMSNorm: the LayerNorm of {c.architecture} subtracts a mean, which no rotation keeps"
    if names.attention_post is not None or names.mlp_post is not None:
        return (
            f"rotation needs norms before attention and MLP: {c.architecture} has norms behind them, whose gains "
            "cannot be folded away; quantise without rotate"
        )
    if any(c.sparse_layers) or names.qkv is not None or names.gate_up is not None:
        return (
            f"rotation does not turn experts or fused projections, which {c.architecture} has; quantise without rotate"
        )
    return None


def _turn_heads(new: dict[str, Any], old: dict[str, Any], value: str, output: str, r2: np.ndarray) -> None:
    size = len(r2)
    v, o = new[f"{value}.weight"], old[f"{output}.weight"]
    new[f"{value}.weight"] = np.einsum("hdk,de->hek", v.reshape(-1, size, v.shape[1]), r2).reshape(v.shape)
    if f"{value}.bias" in old:
        new[f"{value}.bias"] = (old[f"{value}.bias"].reshape(-1, size) @ r2).reshape(-1)
    new[f"{output}.weight"] = (o.reshape(o.shape[0], -1, size) @ r2).reshape(o.shape)


def _exact(n: int) -> np.ndarray:
    """The orthogonal Hadamard matrix in float64."""
    return np.sign(hadamard(n).astype(np.float64)) / np.sqrt(n)
