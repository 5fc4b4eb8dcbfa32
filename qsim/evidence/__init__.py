"""Published quality of quantised models: the rows with their sources, and what they let one expect of a model.

    qsim.evidence.find("llama-3-8b", "awq", bits=4, near=True)     # rows, each with its citation
    qsim.evidence.expected_loss("llama-3-8b", "awq", "w4a16-g128") # a value, its 80 % band, and what it stands on

Middle floor: it reads schemes and knows no model code and no device. `shipped()` is the table: what was published, and
what was measured with this project. A user's own rows join it: `shipped() + read_rows("my.csv")`, or
`shipped() + read_rows("study")` for what `qsim study --model CHECKPOINT --out study` measured.
"""

from __future__ import annotations

from .collapse import Risk
from .expect import expected_loss
from .expectation import Expectation
from .find import find
from .identity import KnownModel, known_models
from .metrics import METRICS, Metric, joinable
from .precision import Precision
from .table import Row, independent, measured, published, read_rows, rows_text, shipped

__all__ = [
    "METRICS", "Expectation", "KnownModel", "Metric", "Precision", "Risk", "Row", "expected_loss", "find",
    "independent", "joinable", "known_models", "measured", "published", "read_rows", "rows_text", "shipped",
]  # fmt: skip
