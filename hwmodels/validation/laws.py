"""Laws of engines: what an engine adds to the kernels that are priced here, from its other published rows.

Decode: t = t0 + bytes / (eta BW). Prefill: t = layers * t0 + kernels / eta, where `kernels` is the sum that the kernel
model predicts: engines of 2022 and 2023 had launches, unfused element-wise kernels and matrix products that the
calibrated kernels of 2024 do not have. Both are fitted on rows other than the one that is predicted, with weak priors.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ENGINES = (
    (r"^SQ-PT", "PyTorch with CUTLASS INT8, 2022"), (r"^SQ-FT", "FasterTransformer, 2022"),
    (r"^TC-.*TRTLLM", "TensorRT-LLM in TinyChat's comparison"), (r"^TC-", "TinyChat"), (r"^LC-", "llama.cpp"),
    (r"^TRT-", "TensorRT-LLM 0.5"), (r"^ANL.*vllm", "vLLM"), (r"^ANL.*trt", "TensorRT-LLM 2024"),
)  # fmt: skip
"""Row -> the engine and its time; rows of one engine share a law."""


def prefill_engine(row_id: str) -> str:
    """The engine behind a prefill row; a row of no known engine stands alone."""
    for pattern, name in ENGINES:
        if re.search(pattern, row_id):
            return name
    return row_id


def fit_law(moved_s: np.ndarray, time_s: np.ndarray) -> tuple[float, float]:
    """(t0, eta) of t0 + moved / eta, with a weak prior for engines with few rows: 2.5 ms, 0.85 +- 0.15."""
    from scipy.optimize import least_squares

    def misfit(theta: np.ndarray) -> np.ndarray:
        t0, eta = np.exp(theta[0]), theta[1]
        out = np.log((t0 + moved_s / eta) / time_s) / 0.05
        return np.concatenate([out, [(theta[0] - np.log(2.5e-3)) / 0.7, (eta - 0.85) / 0.15]])

    found = least_squares(misfit, [np.log(2.5e-3), 0.85], bounds=([-12, 0.3], [-2, 1.0]))
    return float(np.exp(found.x[0])), float(found.x[1])


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """One observed prefill: `kernels_s` as the kernel model predicts it, `time_s` as published."""

    engine: str
    model: str
    integer: bool
    parallel: bool
    layers: int
    kernels_s: float
    time_s: float


def prefill_law(rows: Sequence[Prefill]) -> tuple[float, float]:
    """(t0 of a layer, eta) of layers * t0 + kernels / eta; priors: 10 us within a factor e, eta 1 within 1.4 times."""
    from scipy.optimize import least_squares

    layers, kernels, time = (np.array([getattr(r, f) for r in rows]) for f in ("layers", "kernels_s", "time_s"))

    def misfit(theta: np.ndarray) -> np.ndarray:
        out = np.log((layers * np.exp(theta[0]) + kernels / np.exp(theta[1])) / time) / 0.1
        return np.concatenate([out, [theta[0] - np.log(1e-5), theta[1] / 0.35]])

    found = least_squares(misfit, [np.log(1e-5), 0.0])
    return float(np.exp(found.x[0])), float(np.exp(found.x[1]))


def prefill_time(row: Prefill, known: Sequence[Prefill]) -> tuple[float, int]:
    """The time of a prefill by the law of its engine, and how many rows that rests on (0: the kernels alone).

    Only rows of other models count: of the same engine, on one device or on several as the row is, with products of the
    same kind (INT8 or not); where there are none, the nearest of these that there are.
    """
    others = [r for r in known if r.engine == row.engine and r.model != row.model]
    for alike in ("parallel", "integer"):
        same = [r for r in others if getattr(r, alike) == getattr(row, alike)]
        others = same or others
    if not others:
        return row.kernels_s, 0
    t0, eta = prefill_law(others)
    return row.layers * t0 + row.kernels_s / eta, len(others)
