"""What a method needs of a model, and what it does to one block: the seam between the algorithms and the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from qsim.models import Model
from qsim.scheme import QuantizedTensor, Scheme

from .calibration import LayerInputs
from .folding import Fold
from .record import LayerRecord

LayerResult: TypeAlias = tuple[QuantizedTensor, LayerRecord]


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockView:
    """One block of the float model with the statistics of its inputs, for methods that look at whole blocks.

    Arguments:
        model: the float model. index: the block.
        inputs: statistics by Linear name; Linears that share an input share them.
        hidden: hidden states (B, T, D) that enter the block, of some windows spread over the calibration.
    """

    model: Model
    index: int
    inputs: Mapping[str, LayerInputs]
    hidden: np.ndarray

    def weight(self, name: str) -> np.ndarray:
        """A Linear's float weight (N, K)."""
        return np.asarray(self.model.tensors[f"{name}.weight"])

    def observed(self, source: str, names: Sequence[str]) -> str:
        """Under which name the input that all of `names` share was observed: experts see only some tokens each, but
        their router sees the whole output of the norm."""
        return next(iter(self.model.float_readers(source)), names[0])

    def sublayer_inputs(self) -> dict[str, np.ndarray]:
        """What enters attention and MLP behind their norms, (B, T, D), by the name of each reader, Linear or router."""
        out: dict[str, np.ndarray] = {}

        def observe(name: str, x: np.ndarray) -> None:
            if x.size == self.hidden.size and x.shape[-1] == self.hidden.shape[-1]:
                out[name] = x.reshape(self.hidden.shape).copy()

        self.model.block(self.index, self.hidden, observe=observe)
        return out


@dataclass(frozen=True, kw_only=True, eq=False)
class Recipe:
    """A method with its options, ready for a model.

    Arguments:
        method, scheme, settings: what it is, for records and for resuming.
        quantize: function (weight, inputs, scale, name) of one layer. `weight` is the float weight, `scale` the (K,)
            factor that a fold multiplies its columns by, or None. Module-level or a `partial` of such, so that it can
            be sent to another process. With `shared_scale` it also takes `tensor_scale`, what that has returned.
        shared_scale: finds the one tensor scale of weights that engines fuse, see `qsim.scheme.shared`; None when each
            layer has scales of its own.
        fold: finds the factors of a block; None when the method has none.
        quantised_prefix: inputs come from the blocks as already quantised, not from the original ones.
        hessian, moments, sample: which statistics it needs; `sample` rows of the input.
        correction: compare with the original model's inputs, too (GPTAQ).
        needs_calibration: whether it can do without any text.
        view_windows: windows whose hidden states `fold` looks at.
        scattered: columns of one group end up apart, so that the result has a `group_index` when it has groups.
    """

    method: str
    scheme: Scheme
    settings: Mapping[str, Any] = field(default_factory=dict)
    quantize: Callable[..., LayerResult]
    shared_scale: Callable[[Sequence[np.ndarray]], float | None] | None = None
    fold: Callable[[BlockView], list[Fold]] | None = None
    quantised_prefix: bool = False
    hessian: bool = True
    moments: bool = False
    sample: int = 0
    correction: bool = False
    needs_calibration: bool = True
    view_windows: int = 0
    scattered: bool = False
