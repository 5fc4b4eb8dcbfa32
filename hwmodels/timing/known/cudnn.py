"""Attention in FP8 by cuDNN, which no framework takes by itself: queries, keys, values and outputs in E4M3."""

from __future__ import annotations

from ..family import AttentionFamily

ATTENTION = (
    AttentionFamily(
        name="cudnn_fp8", title="cuDNN attention in FP8", engine="cuDNN", version="9.19", year=2026, preference=50,
        compute="float8_e4m3fn", element_bytes=1.0, phases=("prefill",), head_sizes=(64, 128, 256), chosen=False,
    ),
)  # fmt: skip
