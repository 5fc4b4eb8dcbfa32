"""What a study will take, before anything is measured: from the checkpoint's headers and a product timed then."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .method import NONE
from .spec import StudySpec

_OVERHEAD = 1.6
"""How much longer a forward pass takes than its products, attention and rounding included; measured on `tiny`."""
_FIXED_S = 45.0
"""Predictions, validation, figures, and what is compiled on a first run."""
_REFERENCE_BYTES = 256_000_000
_RECOGNISED = 1 << 14  # bytes of the text by which tokens are counted


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What measuring a model will take on this machine.

    Attributes:
        model, parameters: what is measured.
        tokens: of the text that is scored, for each method at most.
        variants: how often the text goes through the model, 16 bit included.
        time_s: of everything, to a factor of two.
        memory_bytes: at the highest point: the model in float32 and once more dequantised, activations and logits.
    """

    model: str
    parameters: int
    tokens: int
    variants: int
    time_s: float
    memory_bytes: int


def text_bytes(parameters: int) -> int:
    """How much text a study of a checkpoint scores when nobody says: what makes its methods take minutes each on a
    laptop. What 4 bits lose on a real model stands out of 16 KiB by ten standard errors (reports/real_model.md)."""
    return 131072 if parameters <= 50e6 else 32768 if parameters <= 500e6 else 16384


def cost_of(spec: StudySpec) -> Cost:
    """The cost of a study, without reading a weight.

    Raises:
        ValueError, OSError: a checkpoint or text that cannot be read.
    """
    from qsim.methods.registry import get_method
    from qsim.models.families import block_names, expected_tensors
    from qsim.models.outline import outline

    from .quality import text_of, variants

    q, found = spec.quality, outline(spec.quality.model)
    text = text_of(q.text, "test")
    size = min(q.max_bytes or len(text), len(text))
    sample = text[:_RECOGNISED].decode("utf-8", errors="ignore")
    per_byte = 1.0 if found.tokenizer is None else len(found.tokenizer.encode(sample)) / max(len(sample.encode()), 1)
    tokens = max(round(size * per_byte), 1)
    least = max(round(min(size, q.least_bytes or size) * per_byte), 1)
    count = [len(variants(spec, m)) for m in spec.methods]
    scored = len(spec.methods) * tokens + sum(n - 1 for n in count) * least
    flop = 2.0 * (found.linear_parameters + found.head_parameters) * scored * _OVERHEAD
    # where the vocabulary is large the reference's logits are computed again from its states for each method
    flop += 2.0 * found.head_parameters * scored if 4 * tokens * found.config.vocab_size > _REFERENCE_BYTES else 0.0
    shapes = dict(expected_tensors(found.config))
    names = {f"{n}.weight" for i in range(found.config.num_hidden_layers) for n in block_names(found.config, i).linears}
    for method in (m for m in spec.methods if m.algorithm != NONE):
        how = get_method(method.algorithm)
        flop += sum(how.work(*shapes[n][:2]) for n in names) + 6.0 * q.calibration_tokens * found.linear_parameters
    c = found.config
    activations = 4 * 2048 * (8 * c.hidden_size + 4 * max(c.intermediate_size, c.moe_intermediate_size))
    memory = 4 * found.parameters + 5 * found.linear_parameters + activations + _REFERENCE_BYTES + 3 * (64 << 20)
    return Cost(model=found.name, parameters=found.parameters, tokens=tokens, variants=sum(count),
                time_s=_FIXED_S + flop / _flop_per_s(), memory_bytes=memory)  # fmt: skip


def _flop_per_s() -> float:
    a = np.ones((768, 768), np.float32)
    a @ a
    start = time.perf_counter()
    for _ in range(3):
        a @ a
    return 3 * 2 * 768**3 / max(time.perf_counter() - start, 1e-9)


def free_bytes() -> int | None:
    """Memory that is free on this machine; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
