"""What a model's tensors and token ids must be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from qsim.arrays import as_plain_array
from qsim.errors import QsimError, QsimTypeError
from qsim.scheme import QuantizedTensor

from . import families
from .config import ModelConfig

F32 = np.float32

Tensor: TypeAlias = "np.ndarray | QuantizedTensor"


def check_tensors(config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
    """Hold tensors against what the config promises.

    Raises:
        ValueError: one missing, unknown, of the wrong shape or dtype, or quantised where nothing can use it.
    """
    expected = families.expected_tensors(config)
    linears, embedding = quantizable(config), f"{config.tensor_names.embedding}.weight"
    for name, shape in expected.items():
        if name not in tensors:
            raise QsimError(f"the model has no tensor {name}, {shape}")
        tensor = tensors[name]
        if tuple(tensor.shape) != shape:
            raise QsimError(f"tensor {name} is {shape} by the config: got {tuple(tensor.shape)}")
    optional = {f"{config.tensor_names.head}.weight"} | {
        f"{families.block_names(config, i).attention}.{which}_scale"
        for i in range(config.num_hidden_layers)
        for which in "kv"
    }
    for name, tensor in tensors.items():
        if name not in expected and name not in optional:
            raise QsimError(f"{name} is not a tensor of {config.architecture} with {config.num_hidden_layers} layers")
        if isinstance(tensor, QuantizedTensor):
            if name not in linears and name != embedding:
                raise QsimError(f"only weights of Linears and the embedding can be quantised: got {name}")
            granularity = tensor.tensor_scheme.granularity  # None: blocks along the row
            own = granularity is None or granularity.kind in ("group", "channel")
            if name == embedding and (tensor.scheme.activation.is_quantized or not own):
                raise QsimError(f"the embedding's rows must have scales of their own, weights only: got {tensor!r}")
        elif not isinstance(tensor, np.ndarray) or tensor.dtype != F32:
            raise QsimError(f"tensors are float32 or quantised: {name} is {getattr(tensor, 'dtype', type(tensor))}")


def quantizable(config: ModelConfig) -> set[str]:
    """Names of the tensors that may be a `QuantizedTensor`."""
    names = families.model_names(config)
    out = {f"{n}.weight" for n in (names.project_in, names.project_out, names.head) if n is not None}
    return out | {f"{n}.weight" for i in range(config.num_hidden_layers)
                  for n in families.block_names(config, i).linears}  # fmt: skip


def check_ids(tokens: Any, vocabulary: int) -> np.ndarray:
    """Ids as (B, T) int64; see `Model.check_tokens`."""
    ids = as_plain_array(tokens, "tokens")
    if ids.ndim not in (1, 2) or ids.size == 0:
        raise QsimError(f"tokens must be (T,) or (B, T), at least one: got shape {ids.shape}")
    if ids.dtype.kind not in "iu":
        raise QsimTypeError(f"tokens must be whole numbers: got {ids.dtype}")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocabulary:
        raise QsimError(f"token ids must be 0 to {vocabulary - 1}: got {low if low < 0 else high}")
    return np.atleast_2d(ids).astype(np.int64, copy=False)
