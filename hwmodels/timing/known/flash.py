"""FlashAttention-3."""

from __future__ import annotations

from ..family import AttentionFamily

ATTENTION = (
    AttentionFamily(name="fa3", title="FlashAttention-3", engine="FlashAttention", version="3", year=2024,
                    preference=40, instruction="hopper", needs="Hopper's instructions"),
)  # fmt: skip
