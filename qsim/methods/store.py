"""Finished layers and factors on disk, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from qsim.pieces import Pieces, count
from qsim.scheme import QuantizedTensor

from .folding import Fold
from .record import LayerRecord

KIND = "quantisation"
_T = TypeVar("_T")


class Store:
    """What is finished of one run. Without a folder it keeps nothing.

    Every layer is a file of `qsim.pieces`, which is there as a whole or not at all and carries its own name, its run
    and a checksum. One that was damaged is set aside and solved again; `notes` says which.

    Arguments:
        folder: made when it does not exist; None keeps nothing.
        identity: model, calibration, method and settings. A folder of another run is refused.

    Raises:
        ValueError: the folder holds another run, or is not one of this kind.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any]) -> None:
        self._pieces = None if folder is None else Pieces(folder, KIND, identity)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was set aside and solved again, one sentence each."""
        return () if self._pieces is None else tuple(self._pieces.notes)

    def layer(self, name: str) -> tuple[QuantizedTensor, LayerRecord] | None:
        """A finished layer, or None."""

        def read(arrays: dict[str, np.ndarray], head: dict[str, Any]) -> tuple[QuantizedTensor, LayerRecord]:
            return QuantizedTensor.from_arrays(arrays, head["tensor"]), LayerRecord.from_dict(head["record"])

        return self._get(_layer(name), read)

    def put_layer(self, name: str, q: QuantizedTensor, record: LayerRecord) -> None:
        """Keep a finished layer.

        Raises:
            OSError: it cannot be written; the layer is not finished.
        """
        if self._pieces is not None:
            arrays, texts = q.to_arrays()
            self._pieces.put(_layer(name), _packed(arrays, {"tensor": texts, "record": record.to_dict()}))

    def block(self, index: int) -> tuple[list[Fold], dict[str, float]] | None:
        """Factors and KV scales of a block, or None when they were not found yet."""

        def read(arrays: dict[str, np.ndarray], head: dict[str, Any]) -> tuple[list[Fold], dict[str, float]]:
            folds = [
                Fold(source=one["source"], names=tuple(one["names"]), scale=arrays[f"scale{i}"], details=one["details"])
                for i, one in enumerate(head["folds"])
            ]
            return folds, head["kv_scales"]

        return self._get(_block(index), read)

    def put_block(self, index: int, folds: list[Fold], kv_scales: Mapping[str, float]) -> None:
        """Keep a block's factors and KV scales.

        Raises:
            OSError: as `put_layer`.
        """
        if self._pieces is None:
            return
        head = {
            "folds": [{"source": f.source, "names": f.names, "details": dict(f.details)} for f in folds],
            "kv_scales": dict(kv_scales),
        }
        self._pieces.put(_block(index), _packed({f"scale{i}": fold.scale for i, fold in enumerate(folds)}, head))

    def _get(self, name: str, read: Callable[[dict[str, np.ndarray], dict[str, Any]], _T]) -> _T | None:
        content = None if self._pieces is None else self._pieces.get(name)
        if content is None:
            return None
        assert self._pieces is not None
        from safetensors import SafetensorError

        try:
            return read(*_unpacked(content))
        except (ValueError, LookupError, TypeError, AttributeError, struct.error, SafetensorError) as error:
            self._pieces.set_aside(name, f"its content is none that this version writes ({error})")
            return None


def finished_layers(folder: Path) -> int:
    """How many layers a run's folder has finished."""
    return count(folder, _layer(""))


def _layer(name: str) -> str:
    return f"layer.{name}"


def _block(index: int) -> str:
    return f"block.{index}"


def _packed(arrays: Mapping[str, np.ndarray], head: Any) -> bytes:
    from safetensors.numpy import save

    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + save({k: np.ascontiguousarray(v) for k, v in arrays.items()})


def _unpacked(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    from safetensors.numpy import load

    (size,) = struct.unpack_from("<Q", content)
    arrays = {name: np.array(a) for name, a in load(content[8 + size :]).items()}  # of their own: `load` gives views
    return arrays, json.loads(content[8 : 8 + size])
