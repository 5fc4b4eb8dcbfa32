"""Finished layers on disk, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qsim.errors import QsimError
from qsim.scheme import QuantizedTensor

from .folding import Fold
from .record import LayerRecord

MANIFEST = "run.json"


class Store:
    """What is finished of one run. Without a folder it keeps nothing.

    A file is written under another name and renamed, so that a layer is there as a whole or not at all; its record is
    written last and marks it as finished.

    Arguments:
        folder: made when it does not exist; None keeps nothing.
        identity: model, calibration, method and settings. A folder of another run is refused.

    Raises:
        ValueError: the folder holds another run, or is not one of this kind.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        if folder is None:
            return
        manifest = folder / MANIFEST
        if manifest.is_file():
            found = json.loads(manifest.read_text())
            wanted = json.loads(json.dumps(identity))
            differ = [k for k in {*found, *wanted} if found.get(k) != wanted.get(k)]
            if differ:
                raise QsimError(
                    f"{folder} holds an unfinished run with another {', '.join(sorted(differ))}: remove it, or repeat "
                    "that run to go on with it"
                )
        elif folder.exists() and any(folder.iterdir()):
            raise QsimError(f"{folder} is not empty and not an unfinished run: choose another work_dir")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            _write(manifest, lambda path: path.write_text(json.dumps(identity, indent=1)))

    def layer(self, name: str) -> tuple[QuantizedTensor, LayerRecord] | None:
        """A finished layer, or None."""
        if self.folder is None or not (self.folder / f"{name}.json").is_file():
            return None
        record = LayerRecord.from_dict(json.loads((self.folder / f"{name}.json").read_text()))
        return QuantizedTensor.load(self.folder / f"{name}.safetensors"), record

    def put_layer(self, name: str, q: QuantizedTensor, record: LayerRecord) -> None:
        """Keep a finished layer."""
        if self.folder is None:
            return
        _write(self.folder / f"{name}.safetensors", q.save)
        _write(self.folder / f"{name}.json", lambda path: path.write_text(json.dumps(record.to_dict())))

    def block(self, index: int) -> tuple[list[Fold], dict[str, float]] | None:
        """Factors and KV scales of a block, or None when they were not found yet."""
        path = None if self.folder is None else self.folder / f"block{index}.npz"
        if path is None or not path.is_file():
            return None
        with np.load(path) as file:
            head = json.loads(str(file["head"]))
            folds = [
                Fold(source=one["source"], names=tuple(one["names"]), scale=file[f"scale{i}"], details=one["details"])
                for i, one in enumerate(head["folds"])
            ]
        return folds, head["kv_scales"]

    def put_block(self, index: int, folds: list[Fold], kv_scales: Mapping[str, float]) -> None:
        """Keep a block's factors and KV scales."""
        if self.folder is None:
            return
        head = {
            "folds": [{"source": f.source, "names": f.names, "details": dict(f.details)} for f in folds],
            "kv_scales": dict(kv_scales),
        }
        arrays = {f"scale{i}": fold.scale for i, fold in enumerate(folds)}

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.savez(file, head=np.array(json.dumps(head)), **arrays)  # type: ignore[arg-type]

        _write(self.folder / f"block{index}.npz", write)


def _write(path: Path, write: Callable[[Path], object]) -> None:
    # the suffix stays last: QuantizedTensor.save chooses the format by it
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    write(temporary)
    os.replace(temporary, path)
