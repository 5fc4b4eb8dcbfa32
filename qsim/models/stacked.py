"""Experts whose files hold the weights of all as one array (gpt-oss): read as one Linear for each expert.

On disk, below the experts' module: `gate_up_proj` (E, K, N) with `gate_up_proj_bias` (E, N), or MXFP4 as shipped:
`gate_up_proj_blocks` uint8 (E, N, K / 32, 16), two codes in each byte, the lower half first, and
`gate_up_proj_scales` uint8 (E, N, K / 32), E8M0 codes; `down_proj` likewise. In the model
expert e has `{e}.gate_up_proj.weight` (N, K) and `.bias`.

Source: OpenAI's gpt-oss `weights.py`; transformers' `integrations/mxfp4.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from qsim.errors import QsimError
from qsim.safetensors import Entry, TensorFiles
from qsim.scheme import QuantizedTensor, get_scheme

from . import families
from .config import ModelConfig
from .folder import read_tensor

F32 = np.float32
_BLOCK, _BYTES = 32, 16  # elements of a block, and bytes of their codes


def is_mxfp4(quantization: Mapping[str, Any]) -> bool:
    """Whether a `quantization_config` says that experts are MXFP4 blocks as gpt-oss ships them."""
    return quantization.get("quant_method") == "mxfp4"


def names(config: ModelConfig) -> Iterator[tuple[str, list[str]]]:
    """Every stacked array, and the Linears of its experts in order."""
    if not config.numerics.stacked_experts:
        return
    for i in range(config.num_hidden_layers):
        experts = families.block_names(config, i).experts
        for k in range(len(experts[0].groups) if experts else 0):
            layers = [mlp.groups[k][0] for mlp in experts]
            yield re.sub(r"\.0\.([^.]+)$", r".\1", layers[0]), layers


def read_experts(found: TensorFiles, config: ModelConfig) -> tuple[dict[str, Any], set[str]]:
    """The tensors of all experts by the model's names, and the names on disk that they came from.

    Raises:
        QsimError: a tensor that is missing, of another shape or dtype, or has NaN or Inf.
    """
    expected, out = families.expected_tensors(config), dict[str, Any]()
    used: set[str] = set()
    for stacked, layers in names(config):
        if f"{layers[0]}.weight" in found:
            continue  # a folder with a weight for each expert
        n, k = expected[f"{layers[0]}.weight"]
        count = len(layers)
        blocks = f"{stacked}_blocks"
        if blocks in found:
            used |= {blocks, f"{stacked}_scales"}
            weights = _blocks(found, stacked, (count, n, k))
            out |= {f"{layer}.weight": _tensor(*weights, e, layer) for e, layer in enumerate(layers)}
        else:
            used.add(stacked)
            whole = read_tensor(found, stacked, (count, k, n))
            out |= {f"{layer}.weight": np.ascontiguousarray(whole[e].T) for e, layer in enumerate(layers)}
        if f"{layers[0]}.bias" in expected:
            used.add(f"{stacked}_bias")
            bias = read_tensor(found, f"{stacked}_bias", (count, n))
            out |= {f"{layer}.bias": bias[e].copy() for e, layer in enumerate(layers)}
    return out, used


def stack_experts(config: ModelConfig, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The model's tensors as a plain checkpoint holds them: experts as the arrays that `read_experts` reads, their
    values where they are quantised; everything else as it is."""
    out = dict(tensors)
    for stacked, layers in names(config):
        weights = [np.asarray(out.pop(f"{layer}.weight"), F32).T for layer in layers]
        out[stacked] = np.stack(weights)
        if f"{layers[0]}.bias" in out:
            out[f"{stacked}_bias"] = np.stack([out.pop(f"{layer}.bias") for layer in layers])
    return out


def _blocks(found: TensorFiles, stacked: str, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    count, n, k = shape
    if k % _BLOCK:
        raise QsimError(
            f"{found.path}: MXFP4 blocks have {_BLOCK} elements, which must divide the {k} inputs of {stacked}"
        )
    rows = k // _BLOCK
    blocks = _bytes(found, f"{stacked}_blocks", (count, n, rows, _BYTES))
    scales = _bytes(found, f"{stacked}_scales", (count, n, rows))
    if (scales == 255).any():
        raise QsimError(f"{found.path}: tensor {stacked}_scales has a scale that is NaN (code 255)")
    return blocks, scales


def _bytes(found: TensorFiles, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in found:
        raise QsimError(f"{found.path} has no tensor {name}, {shape} by config.json")
    entry: Entry = found[name]
    if entry.shape != shape or entry.dtype != "U8":
        raise QsimError(
            f"{entry.path}: tensor {name} must be U8 {shape} by config.json: got {entry.dtype} {entry.shape}"
        )
    return entry.bits()


def _tensor(blocks: np.ndarray, scales: np.ndarray, e: int, name: str) -> QuantizedTensor:
    n = blocks.shape[1]
    pairs = blocks[e].reshape(n, -1)
    codes = np.empty((n, 2 * pairs.shape[1]), np.uint8)
    codes[:, 0::2], codes[:, 1::2] = pairs & 15, pairs >> 4
    return QuantizedTensor(
        codes=codes, scale_codes=scales[e], scheme=get_scheme("mxfp4-weight-only"), name=name,
    )  # fmt: skip
