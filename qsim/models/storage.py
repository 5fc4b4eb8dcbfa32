"""Safetensors files and folders of them, read with every claim of the header checked.

A header is a promise about bytes; `open_file` holds it against the file before anything is read, and names the file
and the tensor that break it. Nothing is memory-mapped: a tensor is read when asked for, and a file that shrinks later
is an error, not a fault of the process. Pickles are never read.

Format: 8 bytes little-endian header length, JSON {name: {dtype, shape, data_offsets}}, optional `__metadata__`, data.
Source: https://huggingface.co/docs/safetensors, "Format".
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qsim.errors import QsimError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_HEADER_LIMIT = 100_000_000  # the limit of the safetensors library
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

# stored dtype -> NumPy dtype of its bits; floats without a NumPy type are unsigned integers here
_BITS: dict[str, str] = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1", "F8_E8M0": "u1",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
    "BOOL": "?",
}  # fmt: skip
_FP8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"}
FLOATS = ("F64", "F32", "F16", "BF16", *_FP8)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Where a tensor lies: file, stored dtype (`BF16`, `F8_E4M3`, ...), shape, first byte and size in bytes."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def bits(self) -> np.ndarray:
        """The tensor as stored: BF16 as uint16, FP8 as uint8, others in their NumPy dtype. A fresh array.

        Raises:
            ValueError: the file has become shorter since it was opened.
        """
        kind = np.dtype(_BITS[self.dtype])
        count = math.prod(self.shape)
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            out = np.fromfile(file, dtype=kind, count=count)
        if out.size != count:
            raise QsimError(f"{self.path}: tensor {self.name} ends early: {out.size} of {count} elements are there")
        return out.reshape(self.shape)

    def float32(self) -> np.ndarray:
        """The tensor's values in float32: BF16, FP16 and FP8 exactly, F64 rounded to nearest.

        Raises:
            ValueError: an integer tensor.
        """
        if self.dtype not in FLOATS:
            raise QsimError(f"{self.path}: tensor {self.name} is {self.dtype}, where a float is needed")
        raw = self.bits()
        if self.dtype == "BF16":
            out = raw.astype(np.uint32)
            out <<= np.uint32(16)
            return out.view(np.float32)
        if self.dtype in _FP8:
            return _fp8_table(self.dtype)[raw]
        return raw.astype(np.float32, copy=False)


def _fp8_table(dtype: str) -> np.ndarray:
    from qsim.formats import decode

    return np.asarray(decode(np.arange(256, dtype=np.uint8), _FP8[dtype]), dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class TensorFiles(Mapping[str, Entry]):
    """The tensors of one safetensors file or of a folder of shards, by name. Made by `open_file` and `open_folder`."""

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Entry:
        try:
            return self.entries[name]
        except KeyError:
            raise KeyError(f"{self.path} has no tensor {name}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(e.nbytes for e in self.entries.values())


def open_file(path: str | Path) -> TensorFiles:
    """Read and check the header of one safetensors file.

    Raises:
        ValueError: not a safetensors file, truncated, overlapping or missing bytes, an unknown dtype, a size that is
            not dtype times shape, a name twice; the message names the file and the tensor.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    if path.suffix in _PICKLES:
        raise QsimError(f"{path} is a pickle, which is never read; save the model as safetensors")
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > min(size - 8, _HEADER_LIMIT):
            raise QsimError(
                f"{path} is not a whole safetensors file: its header should be {length if len(head) == 8 else '?'} "
                f"bytes, the file has {size}"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (UnicodeDecodeError, json.JSONDecodeError, _TwiceError) as error:
        raise QsimError(f"{path} is not a safetensors file: its header is not valid JSON ({error})") from None
    if not isinstance(header, dict):
        raise QsimError(f"{path} is not a safetensors file: its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise QsimError(f"{path}: __metadata__ maps names to strings")
    start = 8 + length
    entries = {name: _entry(path, name, fields, start, size) for name, fields in header.items()}
    _check_layout(path, entries, start, size)
    return TensorFiles(path=path, entries=entries, metadata=metadata)


class _TwiceError(QsimError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(f"{next(n for n in names if names.count(n) > 1)} is there twice")
    return out


def _entry(path: Path, name: str, fields: Any, start: int, size: int) -> Entry:
    where = f"{path}: tensor {name}"
    if not isinstance(fields, dict) or not {"dtype", "shape", "data_offsets"} <= fields.keys():
        raise QsimError(f"{where} needs dtype, shape and data_offsets in the header")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if dtype not in _BITS:
        raise QsimError(f"{where} has dtype {dtype!r}; read are {', '.join(_BITS)}")
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
            raise QsimError(f"{where}: {what} is a list of whole numbers: got {numbers!r}")
    if len(offsets) != 2:
        raise QsimError(f"{where}: data_offsets are two numbers: got {offsets!r}")
    first, last = offsets
    expected = math.prod(shape) * np.dtype(_BITS[dtype]).itemsize
    if last - first != expected:
        raise QsimError(f"{where} of {dtype} {tuple(shape)} has {expected} bytes: the header gives {last - first}")
    if start + last > size:
        raise QsimError(f"{path} is truncated: tensor {name} ends at byte {start + last}, the file has {size}")
    return Entry(name=name, path=path, dtype=dtype, shape=tuple(shape), offset=start + first, nbytes=expected)


def _check_layout(path: Path, entries: Mapping[str, Entry], start: int, size: int) -> None:
    """The data section is covered once, without holes."""
    at, before = start, "the header"
    for e in sorted(entries.values(), key=lambda e: (e.offset, e.nbytes)):
        if e.offset != at:
            what = "overlaps" if e.offset < at else "leaves a hole after"
            raise QsimError(f"{path}: tensor {e.name} {what} {before}: it starts at {e.offset}, expected {at}")
        at, before = e.offset + e.nbytes, e.name
    if at != size:
        raise QsimError(f"{path} has {size - at} bytes after its last tensor, {before}")


def open_folder(path: str | Path) -> TensorFiles:
    """Open a checkpoint folder: `model.safetensors`, or its index with shards, or any one safetensors file in it.

    Raises:
        ValueError: no safetensors file; a shard that the index names and the folder lacks; a tensor that is not where
            the index says; a tensor in two shards; whatever `open_file` finds.
        OSError: the folder cannot be read.
    """
    path = Path(path)
    if (path / SINGLE).is_file():
        return open_file(path / SINGLE)
    if (path / INDEX).is_file():
        return _open_index(path)
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return open_file(found[0])
    if found:
        raise QsimError(f"{path} has {len(found)} safetensors files but neither {SINGLE} nor {INDEX}")
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in _PICKLES)
    if pickles:
        raise QsimError(
            f"{path} has no safetensors file, only {pickles[0]}: pickles are never read; save the model as safetensors"
        )
    raise QsimError(f"{path} is not a checkpoint: it has no {SINGLE} and no {INDEX}")


def _open_index(path: Path) -> TensorFiles:
    where = path / INDEX
    try:
        index = json.loads(where.read_text(encoding="utf-8"))
        places = index["weight_map"]
        assert isinstance(places, dict)
        assert all(isinstance(v, str) for v in places.values())
    except (ValueError, KeyError, TypeError, AssertionError):
        raise QsimError(f"{where} is not an index: it has no weight_map from tensor names to files") from None
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] = {}
    for shard in sorted(set(places.values())):
        first = next(name for name, s in places.items() if s == shard)
        if Path(shard).name != shard:
            raise QsimError(f"{where}: shards are files of the same folder: got {shard!r} for tensor {first}")
        if not (path / shard).is_file():
            raise QsimError(f"{path / shard} is missing: {INDEX} places tensor {first} in it")
        opened = open_file(path / shard)
        twice = entries.keys() & opened.keys()
        if twice:
            name = min(twice)
            raise QsimError(f"{path / shard}: tensor {name} is also in {entries[name].path.name}")
        entries |= opened.entries
        metadata |= opened.metadata
    for name, shard in places.items():
        if name not in entries or entries[name].path.name != shard:
            raise QsimError(f"{path / shard} lacks tensor {name}, which {INDEX} places in it")
    return TensorFiles(path=path, entries=entries, metadata=metadata)
