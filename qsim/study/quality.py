"""The quality half: quantise the model by every method, measure what it loses, bit for bit where a device is named."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwmodels.device import Device
from qsim.models import Model, evaluate, load, tiny_text
from qsim.quantize import QuantizedTensor

from .accumulator import Adder, adder, compute_format
from .hardware import devices, executed
from .result import Measured
from .rows import ExactRow, QualityRow
from .spec import Method, StudySpec

EXACT_METHODS = ("none:bf16", "gptq:w4a16-g128", "smoothquant:w8a8-channel-token", "fp8:fp8-rowwise")
"""Methods that go through the emulator by default: one for each kind of product that a device forms."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """The model that is measured, with the texts that it is measured and calibrated on."""

    model: Model
    text: bytes
    calibration: bytes
    text_name: str
    calibration_name: str

    @property
    def fingerprint(self) -> dict[str, str]:
        """Hashes of weights and texts."""
        return {
            "model": model_hash(self.model), "text": hashlib.sha256(self.text).hexdigest(),
            "calibration": hashlib.sha256(self.calibration).hexdigest(),
        }  # fmt: skip


def subject(spec: StudySpec) -> Subject:
    """Load the model and the texts of a study.

    Raises:
        ValueError: a folder that is no checkpoint, a model without tokenizer, a text that is empty or not UTF-8.
        OSError: a file cannot be read.
    """
    q = spec.quality
    model = load(q.model)
    if model.tokenizer is None:
        raise ValueError(f"{q.model} has no tokenizer.json: its quality cannot be measured on a text")
    return Subject(
        model=model, text=_text(q.text, "test"), calibration=_text(q.calibration, "calibration"),
        text_name=q.text and Path(q.text).name or "the embedded test text",
        calibration_name=q.calibration and Path(q.calibration).name or "the embedded calibration text",
    )  # fmt: skip


def _text(path: str, embedded: Any) -> bytes:
    found = tiny_text(embedded) if not path else Path(path).read_bytes()
    raw = found.encode() if isinstance(found, str) else found
    try:
        empty = not raw.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path or embedded} is not UTF-8 text: byte {error.start} is 0x{raw[error.start]:02x}") from None
    if empty:
        raise ValueError(f"{path or embedded} holds no text")
    return raw


def model_hash(model: Model) -> str:
    """SHA-256 over the names and bytes of all tensors."""
    digest = hashlib.sha256()
    for name in sorted(model.tensors):
        tensor = model.tensors[name]
        digest.update(name.encode())
        for array in (tensor.codes, tensor.scales) if isinstance(tensor, QuantizedTensor) else (tensor,):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def variants(spec: StudySpec, method: Method) -> tuple[str, ...]:
    """`full`, and `weights` when a device of the study leaves the method's activations in 16 bit."""
    found = {executed(d, method.scheme, spec.speed.profile) for d in devices(spec).values()}
    return ("full", "weights") if "weights" in found else ("full",)
