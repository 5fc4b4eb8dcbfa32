"""What libraries do with the instructions: which one, how often the accumulator is promoted, where scales come in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from qsim.errors import QsimError, nearest

Promotion: TypeAlias = Literal["add", "ffma", "ffma_a_first"]
"""How a chain joins the float32 register: a plain addition, fma(scale_a * scale_b, chain, register), or
fma(chain * scale_a, scale_b, register); each operation to nearest even."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Defaults of `matmul` that reproduce one library call. Arguments given to `matmul` win over them.

    Arguments:
        instruction: the matrix instruction.
        promote_every: K of each fresh chain, or None for a single one.
        promotion: how a chain's result is added.
        block: (rows of A, rows of B, K) that share one float32 scale, or None.
        source: where this is from, and whether it was checked on hardware.
    """

    name: str
    instruction: str
    promote_every: int | None = None
    promotion: Promotion = "add"
    block: tuple[int, int, int] | None = None
    source: str = ""


_PRESETS = (
    Preset(
        name="cublaslt_fp8_fast",
        instruction="hopper.wgmma.f32.e4m3",
        source="torch._scaled_mm, use_fast_accum=True: one wgmma chain; established on an H200",
    ),
    Preset(
        name="cublaslt_fp8_precise",
        instruction="hopper.wgmma.f32.e4m3",
        promote_every=128,
        source="torch._scaled_mm, use_fast_accum=False: chains of 4 wgmma, plain float32 add; established on an H200",
    ),
    Preset(
        name="cublaslt_bf16",
        instruction="hopper.wgmma.f32.bf16",
        source="torch.mm, bf16: one wgmma chain; established on an H200 for kernels without split-K",
    ),
    Preset(
        name="cublaslt_fp16",
        instruction="hopper.wgmma.f32.f16",
        source="torch.mm, fp16: one wgmma chain; established on an H200 for kernels without split-K",
    ),
    Preset(
        name="deepgemm",
        instruction="hopper.wgmma.f32.e4m3",
        promote_every=128,
        promotion="ffma",
        block=(1, 128, 128),
        source="DeepGEMM sm90_fp8_gemm_1d2d: final = fma(scale_a * scale_b, chain of 4 wgmma, final); from source",
    ),
    Preset(
        name="cutlass_fp8",
        instruction="hopper.wgmma.f32.e4m3",
        promote_every=128,
        source="CUTLASS mma_promotion_interval = 4, plain add; from source, not checked",
    ),
)

PRESETS = {preset.name: preset for preset in _PRESETS}


def get_preset(preset: str | Preset) -> Preset:
    """The preset of that name, or the value itself.

    Raises:
        ValueError: unknown name; the message lists all.
    """
    if isinstance(preset, Preset):
        return preset
    if preset in PRESETS:
        return PRESETS[preset]
    raise QsimError(nearest("preset", preset, PRESETS, cutoff=0.5, all_below=len(PRESETS)))
