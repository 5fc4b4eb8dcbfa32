"""Published quality of quantised models: the rows with their sources, and what they let one expect of a model.

    qsim.evidence.find("llama-3-8b", "awq", bits=4, near=True)     # rows, each with its citation
    qsim.evidence.expected_loss("llama-3-8b", "awq", "w4a16-g128") # a value, its 80 % band, and what it stands on

Middle floor: it reads schemes and knows no model code and no device. `published()` is the shipped table; a user's own
rows join it: `published() + read_rows("my.csv")`.
"""

from __future__ import annotations

from .collapse import Risk
from .expect import Expectation, expected_loss
from .find import find
from .identity import KnownModel, known_models
from .metrics import METRICS, Metric, joinable
from .precision import Precision
from .table import Row, independent, published, read_rows

__all__ = [
    "METRICS", "Expectation", "KnownModel", "Metric", "Precision", "Risk", "Row", "expected_loss", "find",
    "independent", "joinable", "known_models", "published", "read_rows",
]  # fmt: skip
