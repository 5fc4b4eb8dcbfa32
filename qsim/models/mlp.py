"""The MLP of a block: dense, or a mixture of experts. A mixture sends each expert the tokens that chose it, as one
product for each expert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from . import ops
from .fan import Fan, Rounding

F32 = np.float32


@dataclass(frozen=True, kw_only=True, eq=False)
class Mlp:
    """down(act(gate) * up), or down(act(up)) without a gate.

    Arguments:
        gated: `up` gives gate and up.
        pairs: they take turns, and do not lie side by side.
        activation: of the gate, or of all; `silu` with a gate.
        clamp: (limit, alpha) of gpt-oss's gate, see `ops.clamped_swiglu`; None is activation(gate) * up.
    """

    up: Fan
    down: Fan
    gated: bool
    pairs: bool
    activation: str
    clamp: tuple[float, float] | None
    round: Rounding

    def __call__(self, h: np.ndarray, observe: Any) -> np.ndarray:
        """What the MLP adds to the residual, of its Linears' input h (M, D)."""
        h = self.up(h, observe)
        return self.down(self.round(self._activate(h)), observe)

    def _activate(self, h: np.ndarray) -> np.ndarray:
        if self.pairs:
            h = np.concatenate([h[:, ::2], h[:, 1::2]], axis=1)
        if not self.gated:
            return ops.activate(h, self.activation)
        if self.clamp is not None:
            return ops.clamped_swiglu(h, *self.clamp)
        if self.activation == "silu":
            return ops.swiglu(h)
        half = h.shape[1] // 2
        return ops.activate(h[:, :half], self.activation) * h[:, half:]


@dataclass(frozen=True, kw_only=True, eq=False)
class Experts:
    """A mixture of experts: every token is sent to `per_token` of them, and their outputs are added by their shares.

    Arguments:
        name: of the router, which `observe` is called with for the whole input.
        weight, bias: of the router, (E, D) and (E,) or None; its scores are float32 whatever the model is rounded to.
        order: `softmax` over all experts before the largest are taken, or over the `chosen` ones.
        renormalise: divide the chosen shares by their sum.
    """

    name: str
    weight: np.ndarray
    bias: np.ndarray | None
    experts: tuple[Mlp, ...]
    per_token: int
    order: Literal["softmax", "chosen"]
    renormalise: bool
    round: Rounding

    def __call__(self, h: np.ndarray, observe: Any) -> np.ndarray:
        """What the experts add to the residual, of h (M, D). An expert that no token chose is not run."""
        if observe is not None:
            observe(self.name, h)
        chosen, shares = self.route(h)
        out = np.zeros_like(h)
        for e in np.unique(chosen):
            rows, place = np.nonzero(chosen == e)  # a token chooses an expert once, so rows are distinct
            out[rows] += self.experts[e](h[rows], observe) * shares[rows, place, None]
        return self.round(out)

    def route(self, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The experts of every token (M, per_token) int64, the largest first, and their shares float32; of equal scores
        the first expert wins."""
        scores = h @ self.weight.T
        if self.bias is not None:
            scores += self.bias
        if self.order == "softmax":
            scores = ops.softmax(scores)
        chosen = np.argsort(-scores, axis=1, kind="stable")[:, : self.per_token]
        shares = np.take_along_axis(scores, chosen, axis=1)
        if self.order == "chosen":
            shares = ops.softmax(shares)
        elif self.renormalise:
            shares = shares / shares.sum(axis=1, keepdims=True)
        return chosen, shares
