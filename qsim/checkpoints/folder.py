"""Checkpoint folders that come into being whole: shards, their index, and one move at the end.

Everything is written to a hidden folder beside the target and moved into place when it is complete, as `qsim.folders`
does it; config.json and the index are written last. An error or Ctrl-C removes the hidden folder; a killed process
leaves it behind, without the files that would make it a checkpoint, until the same target is written again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qsim.errors import QsimError
from qsim.files import copy_regular, replace, write_json
from qsim.folders import whole_folder
from qsim.safetensors import INDEX, SINGLE, Stored, write_file

SHARD_BYTES = 1 << 28  # a shard is held in memory until it is full: what conversion holds beside a layer
# What belongs to a model beside its weights. Never config.json, weights, or configs of another layout.
_BESIDE = ("tokenizer*", "vocab*", "merges*", "special_tokens_map.json", "added_tokens.json", "*.model",
           "chat_template*", "generation_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*", "README.md")  # fmt: skip


@contextmanager
def new_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A hidden folder that becomes `path` when the block ends well, and is removed when it does not.

    Arguments:
        overwrite: replace a checkpoint (or an empty folder) that is there.

    Raises:
        ValueError: something is there already, and `overwrite` is False or it is not a checkpoint.
    """
    with whole_folder(path, lambda target: check_target(target, overwrite=overwrite)) as folder:
        yield folder


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuse a target that is there, or that is not a checkpoint to replace.

    Raises:
        ValueError: see `new_folder`.
    """
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_dir():
        raise QsimError(f"{path} is not a folder: a checkpoint is written to a new folder")
    if not any(path.iterdir()):
        return
    if not overwrite:
        raise QsimError(f"{path} exists: choose another folder, or overwrite=True to replace the checkpoint in it")
    if not (path / "config.json").is_file() and not any(path.glob("*.gguf")):
        raise QsimError(f"{path} is not a checkpoint (it has no config.json), so overwrite=True does not replace it")


class ShardWriter:
    """Writes tensors one at a time to safetensors shards of a limited size.

    Arguments:
        folder: where to.
        shard_bytes: the largest shard; a tensor that is larger has one of its own.
    """

    def __init__(self, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
        if shard_bytes < 1:
            raise QsimError(f"shard_bytes must be at least 1: got {shard_bytes}")
        self.folder, self.shard_bytes = folder, shard_bytes
        self.total_bytes = 0
        self._held: dict[str, Stored] = {}
        self._held_bytes = 0
        self._shards: list[list[str]] = []
        self._names: set[str] = set()

    def add(self, name: str, tensor: Stored) -> None:
        """Write a tensor, or hold it until the shard is full."""
        if name in self._names:
            raise QsimError(f"tensor {name} is written twice")
        self._names.add(name)
        if self._held and self._held_bytes + tensor.nbytes > self.shard_bytes:
            self._flush()
        self._held[name] = tensor
        self._held_bytes += tensor.nbytes
        self.total_bytes += tensor.nbytes
        if self._held_bytes >= self.shard_bytes:
            self._flush()

    def close(self) -> list[str]:
        """Write what is held and the index; the file names."""
        if self._held or not self._shards:
            self._flush()
        count = len(self._shards)
        if count == 1:
            replace(self.folder / _shard_name(1, 0), self.folder / SINGLE)
            return [SINGLE]
        files = [_shard_name(i + 1, count) for i in range(count)]
        for i, name in enumerate(files):
            replace(self.folder / _shard_name(i + 1, 0), self.folder / name)
        places = {name: files[i] for i, names in enumerate(self._shards) for name in names}
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": dict(sorted(places.items()))}
        write_json(self.folder / INDEX, index)
        return [*files, INDEX]

    def _flush(self) -> None:
        write_file(self.folder / _shard_name(len(self._shards) + 1, 0), self._held)
        self._shards.append(list(self._held))
        self._held, self._held_bytes = {}, 0


def _shard_name(i: int, count: int) -> str:
    return f"model-{i:05d}-of-{count:05d}.safetensors"


def copy_beside(source: Path | None, target: Path) -> tuple[list[str], list[str]]:
    """Copy the files that belong to a model beside its weights: tokenizer, generation settings, licence, card.

    A link could point to any file of this computer, and a copy of it would be handed on with the model. Only regular
    files are copied, and links of a Hugging Face cache that end in the blobs of the same repository.

    Returns:
        Names that were copied, and names that were not.
    """
    if source is None or not source.is_dir():
        return [], []
    copied: list[str] = []
    left: list[str] = []
    for path in sorted({p for pattern in _BESIDE for p in source.glob(pattern) if p.is_symlink() or not p.is_dir()}):
        real = path.resolve() if path.is_symlink() and _is_blob(path) else path
        (copied if copy_regular(real, target / path.name) else left).append(path.name)
    return copied, left


def _is_blob(link: Path) -> bool:
    """Whether a link ends in a file of its own Hugging Face cache: `snapshots/REVISION/NAME -> ../../blobs/HASH`."""
    snapshot = link.parent.resolve()
    blobs = snapshot.parent.parent / "blobs"
    try:
        real = link.resolve(strict=True)
    except (OSError, RuntimeError):  # it points nowhere, or in a circle
        return False
    return snapshot.parent.name == "snapshots" and blobs.is_dir() and real.parent == blobs
