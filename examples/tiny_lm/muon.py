"""Muon: momentum, orthogonalised (K. Jordan et al. 2024), with the step size of Moonlight (arXiv:2502.16982).

A weight matrix's gradient has a few large singular values, and a plain step moves only along those. Muon replaces all
singular values by about 1, so that every direction learns.
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest matrix with singular values near 1, for each of a stack (n, rows, columns).

    Newton's iteration with a quintic polynomial that drives all singular values in (0, 1] to about [0.7, 1.2]; that
    is close enough, and bfloat16 suffices for it.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon:
    """Muon with Nesterov momentum and decoupled weight decay, for weight matrices.

    Args:
        parameters: matrices. Those of one shape are updated together, in one batch of matrix products.
        momentum: of the gradient average.
        weight_decay: each step multiplies the weights by 1 - lr * weight_decay.
    """

    def __init__(self, parameters: list[Tensor], *, momentum: float = 0.95, weight_decay: float = 0.1) -> None:
        by_shape = defaultdict(list)
        for parameter in parameters:
            by_shape[parameter.shape].append(parameter)
        self.groups = list(by_shape.values())
        self.averages = [torch.zeros(len(group), *group[0].shape, device=group[0].device) for group in self.groups]
        self.momentum = momentum
        self.weight_decay = weight_decay

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for group, average in zip(self.groups, self.averages, strict=True):
            gradient = torch.stack([parameter.grad for parameter in group])
            average.lerp_(gradient, 1 - self.momentum)
            update = orthogonalise(gradient.lerp(average, self.momentum)).to(gradient.dtype)
            # An orthogonal matrix has RMS 1 / sqrt(larger side). This factor makes it 0.2, about that of an Adam
            # step, so that one learning rate serves both.
            scale = 0.2 * math.sqrt(max(update.shape[1:]))
            torch._foreach_mul_(group, 1 - lr * self.weight_decay)
            torch._foreach_add_(group, list(update.unbind()), alpha=-lr * scale)
