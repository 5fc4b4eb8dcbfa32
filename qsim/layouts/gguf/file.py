"""The container of GGUF: a header of keys and values, a table of tensors, and their bytes.

Nothing that a file says is trusted before it is checked against the size of the file: counts, lengths, offsets and
types of other people's files are bounded, so that a wrong one is a sentence and never a large allocation.

Source: ggml's `docs/gguf.md`; `gguf.cpp` for what readers accept.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from qsim import files
from qsim._native.threads import for_chunks
from qsim.errors import QsimError

from .types import PIECE, TYPES, TensorType

MAGIC = b"GGUF"
ALIGNMENT = 32
_VERSIONS = (2, 3)
_HEADER = 1 << 27  # bytes of the header that are read; vocabularies of 256 thousand tokens take about 10 MB
_FIRST = 1 << 16  # of them at first
_COUNT = 1 << 16  # keys, and tensors
_NAME = 1 << 16  # bytes of a key or of a tensor's name
_AXES = 4
_ENTRIES = 1 << 22  # of all lists together; a vocabulary with its scores, kinds and merges has about a million
_SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1", 10: "<u8", 11: "<i8",
            12: "<f8"}  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """A tensor of a file, by its header.

    Arguments:
        path: the file.
        name: in llama.cpp's spelling.
        shape: in NumPy's order, the last axis contiguous; the file lists it the other way round.
        type: how its values are stored.
        offset: of its first byte, from the start of the file.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int

    @property
    def size(self) -> int:
        """How many values it has."""
        return int(np.prod(self.shape, dtype=object))

    @property
    def nbytes(self) -> int:
        """How many bytes it takes in the file."""
        return self.size // self.type.values * self.type.size

    def part(self, i: int) -> GgufTensor | None:
        """One of the matrices along the first of three axes; None where there is none."""
        if len(self.shape) != 3 or not 0 <= i < self.shape[0]:
            return None
        return replace(self, shape=self.shape[1:], offset=self.offset + i * (self.nbytes // self.shape[0]))

    def raw(self) -> np.ndarray:
        """Its blocks, uint8 (rows, bytes of a row).

        Raises:
            QsimError: the file has become shorter.
        """
        return self._bytes(0, self.nbytes).reshape(-1, self.shape[-1] // self.type.values * self.type.size)

    def _bytes(self, first: int, count: int) -> np.ndarray:
        out = np.fromfile(self.path, np.uint8, count=count, offset=self.offset + first)
        if out.size != count:  # pieces are read side by side: the first that fails need not be the first that is short
            held = max(self.path.stat().st_size - self.offset, 0)
            raise QsimError(f"{self.path}: tensor {self.name} ends after {held} of its {self.nbytes} bytes")
        return out

    def values(self) -> np.ndarray:
        """Its values, float32.

        They are read and decoded a piece at a time, on several threads: no second copy of a tensor is held.

        Raises:
            QsimError: a type that is not read, values that are NaN or Inf, the file has become shorter.
        """
        kind = self.type
        try:
            kind.check_read()
        except QsimError as error:
            raise QsimError(f"{self.path}: tensor {self.name}: {error}") from None
        out = np.empty(self.size, np.float32)
        bad: list[int] = []

        def read(first: int, stop: int) -> None:
            part = out[first * kind.values : stop * kind.values]
            with np.errstate(all="ignore"):  # what is not finite is counted
                kind.dequantize(self._bytes(first * kind.size, (stop - first) * kind.size), part)
            if not (np.isfinite(part.min()) and np.isfinite(part.max())):
                bad.append(int((~np.isfinite(part)).sum()))

        for_chunks(self.size // kind.values, read, chunk=max(PIECE // kind.values, 1))
        if bad:
            raise QsimError(f"{self.path}: tensor {self.name} has {sum(bad)} values that are NaN or Inf")
        return out.reshape(self.shape)


@dataclass(frozen=True, kw_only=True)
class GgufFile:
    """An opened file: everything but the tensors' bytes.

    Arguments:
        path: the file.
        metadata: values by key: int, float, bool, str, or a list of these.
        tensors: by name, in the file's order.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def is_gguf(path: str | Path) -> bool:
    """Whether a path is a regular file that begins as GGUF does."""
    try:
        with open(path, "rb") as file:
            return Path(path).is_file() and file.read(4) == MAGIC
    except (OSError, ValueError):
        return False


def open_gguf(path: str | Path) -> GgufFile:
    """Read the header of a file.

    Raises:
        QsimError: not GGUF, another version or byte order, a file that is truncated; a key, a length, a shape, a type
            or an offset that cannot be; two keys or tensors of one name; tensors that overlap.
        OSError: the file cannot be read.
    """
    path = Path(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        return _parse(_Reader(path, file, size))


def _parse(reader: _Reader) -> GgufFile:
    path, size = reader.path, reader.size
    if reader.take(4, "the magic number") != MAGIC:
        raise QsimError(f"{path} is not a GGUF file: it does not begin with GGUF")
    version = reader.number("<u4", "the version")
    if version not in _VERSIONS:
        swapped = int.from_bytes(int(version).to_bytes(4, "little"), "big")
        if swapped in (1, *_VERSIONS):
            raise QsimError(f"{path} is a big-endian GGUF file: only little-endian files are read; convert it")
        raise QsimError(f"{path} is GGUF version {version}: versions 2 and 3 are read; convert it with llama.cpp")
    counts = [reader.number("<u8", f"the number of {what}") for what in ("tensors", "keys")]
    for what, count in zip(("tensors", "keys"), counts, strict=True):
        if count > _COUNT:
            raise QsimError(f"{path} says that it has {count} {what}: at most {_COUNT} are read")
    metadata: dict[str, Any] = {}
    for _ in range(counts[1]):
        key = reader.text("a key", _NAME)
        if key in metadata:
            raise QsimError(f"{path} has the key {key[:80]!r} twice")
        metadata[key] = reader.value(reader.number("<u4", f"the type of {key[:80]}"), f"key {key[:80]}")
    align = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(align, int) or isinstance(align, bool) or not 1 <= align <= 1 << 20 or align & (align - 1):
        raise QsimError(f"{path}: general.alignment must be a power of two up to {1 << 20}: got {str(align)[:40]}")
    found = [_tensor_header(reader) for _ in range(counts[0])]
    start = reader.at + -reader.at % align
    tensors: dict[str, GgufTensor] = {}
    for name, shape, kind, offset in found:
        if name in tensors:
            raise QsimError(f"{path} has tensor {name[:80]!r} twice")
        if offset % align:
            raise QsimError(f"{path}: the offset of tensor {name} must be a multiple of {align}: got {offset}")
        tensors[name] = GgufTensor(path=path, name=name, shape=shape, type=kind, offset=start + offset)
    _check_places(path, list(tensors.values()), size)
    return GgufFile(path=path, metadata=metadata, tensors=tensors)


def _tensor_header(reader: _Reader) -> tuple[str, tuple[int, ...], TensorType, int]:
    name, path = reader.text("the name of a tensor", _NAME), reader.path
    axes = reader.number("<u4", f"the axes of tensor {name[:80]}")
    if not 1 <= axes <= _AXES:
        raise QsimError(f"{path}: tensor {name[:80]} must have 1 to {_AXES} axes: got {axes}")
    shape = tuple(reader.number("<u8", f"the shape of tensor {name[:80]}") for _ in range(axes))[::-1]
    number = reader.number("<u4", f"the type of tensor {name[:80]}")
    offset = reader.number("<u8", f"the offset of tensor {name[:80]}")
    kind = TYPES.get(number)
    if kind is None:
        raise QsimError(f"{path}: tensor {name[:80]} has type {number}, which is not a GGUF type known here")
    if any(n < 1 for n in shape) or shape[-1] % kind.values:
        raise QsimError(
            f"{path}: tensor {name[:80]} of shape {shape} does not divide into blocks of {kind.values} ({kind.name})"
        )
    return name, shape, kind, offset


def _check_places(path: Path, tensors: list[GgufTensor], size: int) -> None:
    end, before = 0, ""
    for one in sorted(tensors, key=lambda t: t.offset):
        if one.offset < end:
            raise QsimError(f"{path}: tensors {before} and {one.name} overlap")
        end, before = one.offset + one.nbytes, one.name
        if end > size:
            raise QsimError(
                f"{path}: tensor {one.name} ends at byte {end}, beyond the file's {size}: the file is truncated"
            )


class _Reader:
    """Values of a header one after the other, each within the file."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.size, self.at = path, size, 0
        self._file, self._head, self._entries = file, bytearray(), _ENTRIES

    def _reaches(self, end: int) -> bool:
        """Whether the header has bytes up to there; reads on, twice as far each time, where it must."""
        if end > len(self._head):
            wanted = min(max(end, 2 * len(self._head), _FIRST), self.size, _HEADER)
            self._head += self._file.read(wanted - len(self._head))
        return end <= len(self._head)

    def _missing(self, end: int, what: str) -> QsimError:
        if end > self.size:
            return QsimError(f"{self.path} is truncated: {what} would end at byte {end} of {self.size}")
        return QsimError(f"{self.path} has a header of more than {_HEADER} bytes at {what}: that much is read")

    def take(self, count: int, what: str) -> bytes:
        """The next bytes."""
        end = self.at + count
        if not self._reaches(end):
            raise self._missing(end, what)
        found = bytes(self._head[self.at : end])
        self.at = end
        return found

    def number(self, dtype: str, what: str) -> Any:
        """One number as Python has it."""
        return np.frombuffer(self.take(np.dtype(dtype).itemsize, what), dtype)[0].item()

    def text(self, what: str, limit: int = _HEADER) -> str:
        """A string with its length before it."""
        length = self.number("<u8", f"the length of {what}")
        if length > limit:
            raise QsimError(f"{self.path}: {what} has {length} bytes: at most {limit} are read")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise QsimError(f"{self.path}: {what} is not UTF-8 text: {error.reason}") from None

    def value(self, kind: int, what: str) -> Any:
        """A value of a key."""
        if kind == _STRING:
            return self.text(what)
        if kind in _SCALARS:
            found = self.number(_SCALARS[kind], what)
            return bool(found) if kind == _BOOL else found
        if kind != _ARRAY:
            raise QsimError(f"{self.path}: {what} has type {kind}, which is not a GGUF type of values")
        inner = self.number("<u4", f"the type of {what}")
        count = self.number("<u8", f"the length of {what}")
        if count > self._entries:
            raise QsimError(f"{self.path}: {what} has {count} entries: lists of {_ENTRIES} in all are read")
        self._entries -= count
        if inner == _STRING:
            return self._texts(count, what)
        if inner not in _SCALARS:
            raise QsimError(f"{self.path}: {what} is a list of type {inner}: lists of numbers and texts are read")
        dtype = np.dtype(_SCALARS[inner])
        found = np.frombuffer(self.take(count * dtype.itemsize, what), dtype)
        return found.astype(bool).tolist() if inner == _BOOL else found.tolist()

    def _texts(self, count: int, what: str) -> list[str]:
        """As `text`, many; a vocabulary has a hundred thousand."""
        out, head, at = [], self._head, self.at
        unpack, known = struct.Struct("<Q").unpack_from, len(head)
        for _ in range(count):
            first = at + 8
            if first > known:
                self._reaches(first)
                known = len(head)
            at = first + (unpack(head, at)[0] if first <= known else 0)
            if at > known:
                self._reaches(at)
                known = len(head)
                if at > known:
                    raise self._missing(at, f"a text of {what}")
            out.append(head[first:at].decode("utf-8", "replace"))
        self.at = at
        return out


# --- writing ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A tensor that is to be written.

    Arguments:
        name: in llama.cpp's spelling.
        shape: in NumPy's order.
        type: how its values are stored.
        blocks: gives its bytes, uint8; called when they are written.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType
    blocks: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return int(np.prod(self.shape)) // self.type.values * self.type.size


def write_gguf(
    path: str | Path,
    metadata: Mapping[str, Any],
    tensors: list[Planned],
    progress: Callable[[int, int, str], None] | None = None,
) -> None:
    """Write a file of version 3, whole or not at all.

    Arguments:
        metadata: values by key. A whole number is stored in 32 bits, a float too; lists of texts, numbers or bools.
        progress: called with tensors done, tensors in all, and a name.

    Raises:
        OSError: as `qsim.files.write_whole`.
    """

    def write(file: BinaryIO) -> None:
        header = _header(metadata, tensors)
        file.write(header)
        at = len(header)
        for done, one in enumerate(tensors):
            if progress is not None:
                progress(done, len(tensors), one.name)
            raw = one.blocks()
            assert raw.nbytes == one.nbytes, one.name
            file.write(np.ascontiguousarray(raw).reshape(-1).data)
            at += one.nbytes
            file.write(bytes(-at % ALIGNMENT))
            at += -at % ALIGNMENT
        if progress is not None:
            progress(len(tensors), len(tensors), "")

    files.write_whole(path, write)


def _header(metadata: Mapping[str, Any], tensors: list[Planned]) -> bytes:
    out = bytearray(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        out += _text(key) + _value(value)
    at = 0
    for one in tensors:
        out += _text(one.name) + struct.pack("<I", len(one.shape))
        out += struct.pack(f"<{len(one.shape)}Q", *one.shape[::-1]) + struct.pack("<IQ", one.type.number, at)
        at += one.nbytes + -one.nbytes % ALIGNMENT
    return bytes(out) + bytes(-len(out) % ALIGNMENT)


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", errors="replace")
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    """The type of a value and the value."""
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    kinds = {str: _STRING, bool: _BOOL, int: 5, float: 6}
    kind = kinds[type(value[0])] if value else _STRING
    head = struct.pack("<IIQ", _ARRAY, kind, len(value))
    if kind == _STRING:
        return head + b"".join(map(_text, value))
    return head + np.array(value, _SCALARS[kind]).tobytes()
