"""Safetensors: the dtypes of the format, its files with every claim of the header checked, and folders of shards.

A header is a promise about bytes; `open_file` holds it against the file before anything is read, and names the file
and the tensor that break it. Nothing is memory-mapped: a tensor is read when asked for, and a file that shrinks later
is an error, not a fault of the process. Pickles are never read. A file or a shard may be a symbolic link, as in the
cache of Hugging Face.

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
from typing import Any, BinaryIO

import numpy as np

from qsim import files
from qsim.errors import QsimError
from qsim.formats import FloatFormat

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
HEADER_LIMIT = 16 << 20  # bytes; about 130,000 tensors, where the largest shards in use have a few thousand
_AXES = 16  # of a tensor; weights have two
_SIZE = 1 << 40  # of an axis
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

# safetensors name -> NumPy dtype of its bits; floats that NumPy lacks are kept as unsigned integers.
NUMPY_OF: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind)
    for name, kind in {
        "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1", "F8_E8M0": "u1",
        "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
        "BOOL": "?",
    }.items()
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0")
# formats that scales and unquantised tensors are stored in
DTYPE_OF = {
    "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip
FORMAT_OF = {dtype: name for name, dtype in DTYPE_OF.items()}


# --- values ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored:
    """One tensor as a file holds it: a dtype name beside the bits, since NumPy lacks bfloat16 and FP8.

    Arguments:
        dtype: safetensors name: `BF16`, `F8_E4M3`, `I32`, ...
        bits: the array; BF16 as uint16, FP8 as uint8, every other dtype as itself.

    Raises:
        QsimError: an unknown dtype, or an array of another one.
    """

    dtype: str
    bits: np.ndarray

    def __post_init__(self) -> None:
        if self.dtype not in NUMPY_OF:
            raise QsimError(f"a safetensors dtype must be one of {', '.join(NUMPY_OF)}: got {self.dtype!r}")
        if self.bits.dtype != NUMPY_OF[self.dtype]:
            raise QsimError(f"{self.dtype} must be kept as {NUMPY_OF[self.dtype]}: got {self.bits.dtype}")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bits.shape

    @property
    def nbytes(self) -> int:
        return self.bits.nbytes

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOATS

    def values(self) -> np.ndarray:
        """float32 values of a float dtype (float64 is rounded to nearest); integers as they are."""
        if self.dtype == "BF16":
            out = self.bits.astype(np.uint32)
            out <<= np.uint32(16)
            return out.view(np.float32)
        if self.dtype.startswith("F8_"):
            from qsim.formats import decode

            table = np.asarray(decode(np.arange(256, dtype=np.uint8), FORMAT_OF[self.dtype]), dtype=np.float32)
            return np.asarray(table[self.bits])
        return self.bits.astype(np.float32, copy=False) if self.is_float else self.bits


def integers(array: np.ndarray, dtype: str) -> Stored:
    """An integer array as that dtype."""
    return Stored(dtype=dtype, bits=np.ascontiguousarray(array, dtype=NUMPY_OF[dtype]))


def words(array: np.ndarray) -> Stored:
    """uint32 words as the int32 that PyTorch stores them in."""
    return Stored(dtype="I32", bits=np.ascontiguousarray(array).view(np.int32))


def exactly(values: np.ndarray, fmt: str | FloatFormat) -> Stored | None:
    """float32 values in a format, or None when one of them would change.

    Arguments:
        values: float32.
        fmt: `float32`, `float16`, `bfloat16`, an FP8 format or E8M0.
    """
    name = fmt if isinstance(fmt, str) else fmt.name
    values = np.ascontiguousarray(values, dtype=np.float32)
    patterns = values.view(np.uint32)
    if name == "float32":
        return Stored(dtype="F32", bits=values)
    if name == "bfloat16":
        exact = not (patterns & np.uint32(0xFFFF)).any()
        return Stored(dtype="BF16", bits=(patterns >> 16).astype(np.uint16)) if exact else None
    if name == "float16":
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        exact = np.array_equal(half.astype(np.float32).view(np.uint32), patterns)
        return Stored(dtype="F16", bits=half) if exact else None
    from qsim.formats import decode, encode

    if not np.isfinite(values).all() or (name == "float8_e8m0fnu" and (values <= 0).any()):
        return None
    codes = np.asarray(encode(values, name))
    exact = np.array_equal(np.asarray(decode(codes, name), dtype=np.float32), values)
    return Stored(dtype=DTYPE_OF[name], bits=codes) if exact else None


# --- files ----------------------------------------------------------------------------------------------------


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
            QsimError: the file has become shorter since it was opened.
        """
        count = math.prod(self.shape)
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            out = np.fromfile(file, dtype=NUMPY_OF[self.dtype], count=count)
        if out.size != count:
            raise QsimError(f"{self.path}: tensor {self.name} ends early: {out.size} of {count} elements are there")
        return out.reshape(self.shape)

    def stored(self) -> Stored:
        """The tensor bit for bit, with its dtype."""
        return Stored(dtype=self.dtype, bits=self.bits())

    def float32(self) -> np.ndarray:
        """The tensor's values in float32: BF16, FP16 and FP8 exactly, F64 rounded to nearest.

        Raises:
            QsimError: an integer tensor.
        """
        if self.dtype not in FLOATS:
            raise QsimError(f"{self.path}: tensor {self.name} is {self.dtype}, where a float is needed")
        return self.stored().values()


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
        QsimError: not a safetensors file, a header beyond `HEADER_LIMIT`, truncated, overlapping or missing bytes, an
            unknown dtype, a size that is not dtype times shape, a name twice; the message names the file and the
            tensor.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    if path.suffix in _PICKLES:
        raise QsimError(f"{path} is a pickle, which is never read; save the model as safetensors")
    size = files.regular_size(path)
    with open(path, "rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > size - 8:
            raise QsimError(
                f"{path} is not a whole safetensors file: its header should be {length if len(head) == 8 else '?'} "
                f"bytes, the file has {size}"
            )
        if length > HEADER_LIMIT:
            raise QsimError(f"{path} has a header of {length} bytes: at most {HEADER_LIMIT} are read; split the file")
        raw = file.read(length)
    where = f"the header of {path}"
    try:
        header = files.parse_json(raw.decode("utf-8"), where)
    except UnicodeDecodeError as error:
        raise QsimError(f"{where} is not UTF-8 text: byte {error.start} is {raw[error.start]:#04x}") from None
    if not isinstance(header, dict):
        raise QsimError(f"{where} must be a JSON object: got {type(header).__name__}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise QsimError(f"{path}: __metadata__ maps names to strings")
    start = 8 + length
    entries = {name: _entry(path, name, fields, start, size) for name, fields in header.items()}
    _check_layout(path, entries, start, size)
    return TensorFiles(path=path, entries=entries, metadata=metadata)


def _entry(path: Path, name: str, fields: Any, start: int, size: int) -> Entry:
    where = f"{path}: tensor {name if len(name) <= 200 else name[:200] + '...'}"
    if not isinstance(fields, dict) or not {"dtype", "shape", "data_offsets"} <= fields.keys():
        raise QsimError(f"{where} needs dtype, shape and data_offsets in the header")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in NUMPY_OF:
        raise QsimError(f"{where} must have one of the dtypes {', '.join(NUMPY_OF)}: got {_short(dtype)}")
    for what, numbers, most, limit in (("shape", shape, _AXES, _SIZE), ("data_offsets", offsets, 2, 1 << 62)):
        if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
            raise QsimError(f"{where}: {what} must be a list of whole numbers: got {_short(numbers)}")
        if len(numbers) > most or any(n > limit for n in numbers):
            raise QsimError(f"{where}: {what} must have at most {most} numbers up to {limit}: got {_short(numbers)}")
    if len(offsets) != 2:
        raise QsimError(f"{where}: data_offsets must be two numbers: got {offsets!r}")
    first, last = offsets
    expected = math.prod(shape) * NUMPY_OF[dtype].itemsize
    if last - first != expected:
        raise QsimError(f"{where} of {dtype} {tuple(shape)} has {expected} bytes: the header gives {last - first}")
    if math.prod(n for n in shape if n) > 1 << 60:  # of an empty tensor: NumPy refuses such a shape all the same
        raise QsimError(f"{where}: the shape {tuple(shape)} is beyond what an array can have")
    if start + last > size:
        raise QsimError(f"{path} is truncated: tensor {name} ends at byte {start + last}, the file has {size}")
    return Entry(name=name, path=path, dtype=dtype, shape=tuple(shape), offset=start + first, nbytes=expected)


def _short(value: Any) -> str:
    """A value of a header for a message, at most a line; a number of many digits is not written out."""
    if isinstance(value, list):
        return f"[{', '.join(_short(v) for v in value[:4])}{', ...' if len(value) > 4 else ''}]"
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


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


def write_file(path: Path, tensors: Mapping[str, Stored]) -> None:
    """One safetensors file, which is there as a whole or not at all.

    Tensors are in the order of the safetensors library, wide dtypes first, so that each starts at a multiple of its
    item size: PyTorch refuses others.

    Raises:
        OSError: the file cannot be written.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-NUMPY_OF[item[1].dtype].itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in ordered:
        offsets = [at, at + tensor.nbytes]
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)

    def write(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            if tensor.nbytes:
                file.write(np.ascontiguousarray(tensor.bits).reshape(-1).view(np.uint8).data)

    files.write_whole(path, write)


# --- folders --------------------------------------------------------------------------------------------------


def open_folder(path: str | Path) -> TensorFiles:
    """Open a checkpoint folder: `model.safetensors`, or its index with shards, or any one safetensors file in it.

    Raises:
        QsimError: no safetensors file; a shard that the index names and the folder lacks; a tensor that is not where
            the index says; a tensor in two shards; whatever `open_file` finds.
        OSError: the folder cannot be read.
    """
    path = Path(path)
    if os.path.isfile(path / SINGLE):
        return open_file(path / SINGLE)
    if os.path.isfile(path / INDEX):
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
    index = files.read_json(where)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise QsimError(f"{where} is not an index: it has no weight_map from tensor names to files")
    firsts: dict[str, str] = {}
    for name, shard in places.items():
        firsts.setdefault(shard, name)
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] = {}
    for shard, first in sorted(firsts.items()):
        if not shard.isprintable() or shard in ("", ".", "..") or any(c in shard for c in "/\\"):
            raise QsimError(f"{where}: shards must be files of the same folder: got {shard[:200]!r} for tensor {first}")
        if not os.path.isfile(path / shard):
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
