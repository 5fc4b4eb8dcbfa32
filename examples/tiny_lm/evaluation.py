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


def plan_windows(length: int, window: int, protocol: str, stride: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Which bytes go into the model together, and which of them are scored there.

    Args:
        length: of the text.
        window: bytes that the model sees at once.
        protocol: `gptq`: whole windows that do not overlap; a window's first byte is not scored, a rest is dropped.
            `windows`: the same windows, each followed by a look at the next byte, so that every byte but the text's
            first is scored once. `sliding`: a window every `stride` bytes; each scores only what no earlier one has.
            The names mean what they mean in `qsim.models.evaluate`.
        stride: of `sliding`, 1 to window - 1.

    Returns:
        start, stop, first: for each window, bytes start to stop go in, and bytes first to stop (exclusive) are scored.
    """
    if protocol == "gptq":
        start = torch.arange(0, length - window + 1, window)
        return start, start + window, start + 1
    if protocol == "windows":
        start = torch.arange(0, length - 1, window)
        return start, (start + window + 1).clamp(max=length), start + 1
    if protocol != "sliding" or stride is None or not 1 <= stride < window:
        raise ValueError(
            "protocol is gptq, windows, or sliding with a stride of 1 to window - 1: "
            f"got {protocol!r}, stride={stride}, window={window}"
        )
    start = torch.arange(0, max(length - window, 0) + stride, stride)
    stop = (start + window).clamp(max=length)
    return start, stop, torch.cat([torch.ones(1, dtype=torch.long), stop[:-1]])


@torch.no_grad()
def bits_per_byte(
    model: Llama, text: Tensor, *, window: int = 512, protocol: str = "gptq", stride: int | None = None, batch: int = 64
) -> tuple[float, float]:
    """Mean of -log2 p(byte | bytes before it in the window) over a text.

    Args:
        model: in evaluation mode.
        text: (n,) uint8 on the model's device, n >= window.
        window, protocol, stride: see `plan_windows`.
        batch: windows a forward pass.

    Returns:
        The mean in bits and its standard error, taken over windows: neighbouring bytes are not independent.
    """
    start, stop, first = plan_windows(len(text), window, protocol, stride)
    width = int((stop - start).max())
    offsets = torch.arange(width, device=text.device)
    totals, counts = [], []
    for begin, end, score in zip(start.split(batch), stop.split(batch), first.split(batch), strict=True):
        # A last window that is short is filled up with bytes that nothing scored can see.
        at = (begin.to(text.device)[:, None] + offsets).clamp(max=len(text) - 1)
        tokens = text[at].long()
        nats = F.cross_entropy(model(tokens[:, :-1]).float().transpose(1, 2), tokens[:, 1:], reduction="none")
        position = begin[:, None] + torch.arange(1, width)
        scored = (position >= score[:, None]) & (position < end[:, None])
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
    "float8_e4m3fn, a scale per channel": float8,
    "int8, a scale and zero point per 128": lambda weight: round_to_nearest(weight, 8, 128),
    "int4, a scale and zero point per 128": lambda weight: round_to_nearest(weight, 4, 128),
    "int3, a scale and zero point per 128": lambda weight: round_to_nearest(weight, 3, 128),
    "int2, a scale and zero point per 128": lambda weight: round_to_nearest(weight, 2, 128),
}
"""Weights only, rounded to nearest: by the name that the record and the card give them."""


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
