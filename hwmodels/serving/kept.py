"""Checkpoints whose scheme holds for some layers only: which operators follow it, and the bytes of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsim.errors import QsimError, nearest
from qsim.families import Experts

from ..workload.operators import weight_nbytes

if TYPE_CHECKING:
    from qsim.scheme import Scheme

    from ..workload.architecture import Architecture

QUANTIZED = ("all", "mlp", "experts")
"""Which linear layers follow the scheme: all, those of MLPs and experts, or those of routed experts alone; the others
stay in 16 bit. Published 4-bit checkpoints of mixtures leave attention, and many all but the routed experts, alone."""
ROUTED = ("gate_up", "activation", "down", "combine")


def check_quantized(quantized: str, architecture: Architecture) -> None:
    """Refuse another word, or routed experts of a model that has none.

    Raises:
        QsimError: the words that there are, or that the model has no experts.
    """
    if quantized not in QUANTIZED:
        raise QsimError(nearest("part that is quantised", quantized, QUANTIZED))
    if quantized == "experts" and not any(isinstance(mlp, Experts) for _, mlp, _ in architecture.mlps):
        raise QsimError(f"quantized='experts' needs a mixture of experts: {architecture.name} has none")


def following(architecture: Architecture, quantized: str) -> frozenset[str] | None:
    """Names of the operators of a step that follow the scheme; None for all."""
    if quantized == "all":
        return None
    found = set()
    for prefix, mlp, _ in architecture.mlps:
        names: tuple[str, ...] = ROUTED if isinstance(mlp, Experts) else ()
        if quantized == "mlp":
            names = (*ROUTED, "quantize_gate_up", "quantize_down", "shared_gate_up", "shared_down")
        found |= {prefix + name for name in names}
    return frozenset(found)


def sixteen_bit_bytes(architecture: Architecture, scheme: Scheme, quantized: str) -> float:
    """Bytes that the weights take more, on all devices together, because some stay in 16 bit."""
    names = following(architecture, quantized)
    if names is None:
        return 0.0
    more = 0.0
    for part in architecture.parts:
        if part.name not in names and not part.router:
            more += part.count * (2.0 * part.n * part.k - weight_nbytes(scheme, part.n, part.k))
    return more
