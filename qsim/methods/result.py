"""What a run gives back: the quantised model and the record of every layer."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsim.errors import QsimError
from qsim.evidence.outliers import LayerOutliers, Verdict, verdicts
from qsim.files import read_json, write_text
from qsim.models import Model
from qsim.scheme import Scheme

from .memory import MemoryEstimate
from .record import LayerRecord

if TYPE_CHECKING:
    import pandas as pd

RECORD_FILE = "quantization_record.json"
"""What the record is called beside a checkpoint."""

_COLUMNS = (
    "layer", "method", "scheme", "rtn_weight_mse", "weight_mse", "rtn_output_error", "output_error", "error_ratio",
    "rtn_sqnr_db", "sqnr_db", "rtn_joint_error", "joint_error", "scale_min", "scale_median", "scale_max",
    "clip_fraction", "zero_groups", "dead_columns", "tokens", "loss", "damp", "damp_percent", "condition", "fallback",
    "time_s", "notes",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizationResult:
    """A quantised model and how it came about.

    Arguments:
        model: its Linears are quantised; notes name fallbacks.
        layers: the record of every layer, in order.
        method, scheme, settings: what was asked.
        calibration: windows, window, tokens and a digest of them; {} without.
        estimate: of the memory, as it was made before the start.
        resumed: layers that were found finished.
        notes: what the run itself had to do, as layers that were kept, found damaged and solved again.
        time_s: of the whole run.
    """

    model: Model
    layers: tuple[LayerRecord, ...]
    method: str
    scheme: Scheme
    settings: Mapping[str, Any]
    calibration: Mapping[str, Any]
    estimate: MemoryEstimate
    resumed: int = 0
    notes: tuple[str, ...] = ()
    time_s: float = 0.0

    @property
    def records(self) -> pd.DataFrame:
        """One row per layer."""
        import pandas as pd

        rows = [record.to_dict() for record in self.layers]
        frame = pd.DataFrame([{k: row[k] for k in _COLUMNS} for row in rows], columns=list(_COLUMNS))
        details = [row["details"] for row in rows]
        for key in dict.fromkeys(k for d in details for k in d):
            frame[key if key not in frame else f"{key}_detail"] = [d.get(key) for d in details]
        frame["notes"] = frame["notes"].map("; ".join)
        return frame

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Layers that another method had to stand in for."""
        return tuple(r.layer for r in self.layers if r.fallback)

    @property
    def outliers(self) -> tuple[Verdict, ...]:
        """What the model's outliers let one expect of INT8 activations, from what this run saw of it.

        `qsim.methods.outliers.measure_outliers` also measures the products, and judges FP8 and block formats.
        """
        kinds = {
            name: (i, ("experts " if sparse and n >= 2 else "") + ("qkv", "o", "gate/up", "down")[n])
            for i, sparse in enumerate(self.model.config.sparse_layers)
            for n, stage in enumerate(self.model.block_stages(i)) for group in stage for name in group
        }  # fmt: skip
        return verdicts([
            LayerOutliers(layer=r.layer, kind=kinds[r.layer][1], block=kinds[r.layer][0], tokens=r.tokens,
                          channel_ratio=r.input_channel_ratio, peak_ratio=r.input_peak_ratio, row_range=r.row_range)
            for r in self.layers if r.layer in kinds
        ])  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "qsim": version(),
            "method": self.method,
            "scheme": self.scheme.to_dict(),
            "settings": dict(self.settings),
            "calibration": dict(self.calibration),
            "memory": {"model_bytes": self.estimate.model_bytes, "disk_bytes": self.estimate.disk_bytes,
                       "parts_bytes": dict(self.estimate.parts)},
            "time_s": self.time_s,
            "resumed": self.resumed,
            "notes": list(self.notes),
            "outliers": [asdict(verdict) for verdict in self.outliers],
            "layers": [record.to_dict() for record in self.layers],
        }  # fmt: skip

    def to_json(self, path: str | Path | None = None) -> str:
        """JSON text, also written to `path`, whole or not at all; a folder gets `quantization_record.json`."""
        text = json.dumps(_plain(self.to_dict()), indent=1, allow_nan=False)
        if path is not None:
            path = Path(path)
            write_text(path / RECORD_FILE if os.path.isdir(path) else path, text + "\n")
        return text


def version() -> str:
    """This program's version, or `unknown`."""
    from importlib import metadata

    try:
        return metadata.version("qsim")
    except metadata.PackageNotFoundError:  # run from a source folder
        return "unknown"


def _plain(value: Any) -> Any:
    """JSON has no Inf and NaN: they become the strings that `float` reads."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def read_records(path: str | Path) -> list[LayerRecord]:
    """The records of a JSON file that `QuantizationResult.to_json` wrote, or of the folder that has it.

    Raises:
        ValueError: not such a file.
        OSError: it cannot be read.
    """
    path = Path(path)
    path = path / RECORD_FILE if os.path.isdir(path) else path
    data = read_json(path)
    if not isinstance(data, dict) or not isinstance(data.get("layers"), list):
        raise QsimError(f"{path} is not the record of a quantisation: it has no list `layers`")
    found = []
    for i, one in enumerate(data["layers"]):
        try:
            found.append(LayerRecord.from_dict(one))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise QsimError(f"{path}: entry {i} of `layers` is not the record of a layer") from None
    return found
