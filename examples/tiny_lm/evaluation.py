"""Bits per byte of a text, what quantised weights cost, and samples."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .llama import Llama

SAMPLE_PROMPTS = ("def fibonacci(n):", "class Stack:\n", "import os\nimport sys\n")


@torch.no_grad()
def bits_per_byte(
    model: Llama, text: Tensor, *, window: int = 512, stride: int | None = None, batch: int = 64
) -> tuple[float, float]:
    """Mean of -log2 p(byte | bytes before it in the window) over a text.

    Without a stride, windows do not overlap, a window's first byte is not scored, and a rest shorter than a window is
    dropped: the protocol of the GPTQ paper. With one, windows start every `stride` bytes and each scores only what no
    earlier one has, so that every byte but the text's first is scored once, with at least `window - stride` bytes
    before it (the first window excepted).

    Args:
        model: in evaluation mode.
        text: (n,) uint8 on the model's device, n >= window.
        window: bytes that the model sees at once.
        stride: None or 1 to window - 1.
        batch: windows a forward pass.

    Returns:
        The mean in bits and its standard error, taken over windows: neighbouring bytes are not independent.
    """
    n = len(text)
    if stride is None:
        starts = torch.arange(0, n - window + 1, window)
        first_scored = torch.ones_like(starts)
    else:
        starts = torch.arange(0, n - window + stride, stride).clamp(max=n - window)
        first_scored = torch.cat([torch.ones(1, dtype=torch.long), starts[:-1] + window - starts[1:]])
    totals, counts = [], []
    for chunk, first in zip(starts.split(batch), first_scored.split(batch), strict=True):
        tokens = text[chunk[:, None].to(text.device) + torch.arange(window, device=text.device)].long()
        nats = F.cross_entropy(model(tokens)[:, :-1].float().transpose(1, 2), tokens[:, 1:], reduction="none")
        scored = torch.arange(1, window) >= first[:, None]
        totals.append((nats.double() * scored.to(nats.device)).sum(1).cpu())
        counts.append(scored.sum(1))
    total, count = torch.cat(totals) / math.log(2), torch.cat(counts).double()
    mean = total.sum() / count.sum()
    # Ratio estimator: the variance of sum(total) / sum(count) with windows as the sampling units.
    residual = total - mean * count
    error = (residual.square().sum() * len(count) / max(len(count) - 1, 1)).sqrt() / count.sum()
    return float(mean), float(error)


def round_to_nearest(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """Asymmetric integer weights with the scale and zero point of each group's range, and back."""
    rows = weight.view(weight.shape[0], -1, group_size)
    low, high = rows.amin(-1, keepdim=True).clamp(max=0), rows.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).clamp(min=1e-9)
    zero = (-low / scale).round()
    codes = ((rows / scale).round() + zero).clamp(0, 2**bits - 1)
    return ((codes - zero) * scale).view_as(weight)


def float8(weight: Tensor) -> Tensor:
    """E4M3 with one scale an output channel, and back."""
    scale = weight.abs().amax(1, keepdim=True) / 448
    return (weight / scale).to(torch.float8_e4m3fn).float() * scale


QUANTISERS: dict[str, Callable[[Tensor], Tensor]] = {
    "FP8 E4M3, a scale a channel": float8,
    "INT8 RTN, asymmetric, g128": lambda weight: round_to_nearest(weight, 8, 128),
    "INT4 RTN, asymmetric, g128": lambda weight: round_to_nearest(weight, 4, 128),
    "INT3 RTN, asymmetric, g128": lambda weight: round_to_nearest(weight, 3, 128),
    "INT2 RTN, asymmetric, g128": lambda weight: round_to_nearest(weight, 2, 128),
}


def quantised(model: Llama, quantise: Callable[[Tensor], Tensor]) -> Llama:
    """A copy whose block matrices went through `quantise`; embedding, norms and head stay."""
    result = copy.deepcopy(model)
    for name, weight in result.named_parameters():
        if name.endswith("proj.weight"):
            weight.data = quantise(weight.data)
    return result


@torch.no_grad()
def generate(model: Llama, prompt: str, length: int, *, temperature: float = 0.0, seed: int = 0) -> str:
    """Continues a prompt byte by byte until `length` bytes or the end of the document; greedy at temperature 0."""
    device = model.lm_head.weight.device
    # Drawn on the CPU, so that a seed means the same on any device.
    generator = torch.Generator().manual_seed(seed)
    tokens = [0, *prompt.encode()]
    for _ in range(length):
        window = torch.tensor([tokens[-model.config.max_position_embeddings :]], device=device)
        logits = model(window)[0, -1].float().cpu()
        if temperature:
            token = int(torch.multinomial((logits / temperature).softmax(0), 1, generator=generator))
        else:
            token = int(logits.argmax())
        if token == 0:
            break
        tokens.append(token)
    return bytes(tokens[1:]).decode("utf-8", errors="replace")
