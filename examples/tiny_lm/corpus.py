"""The corpus of the tiny language model: the Python standard library's source, split by file.

The unit of the split is the file. A file may be held out only if next to nothing of it occurs anywhere else in the
library: copies, code-page tables and test files made from each other stay in training, or a held-out score would
measure memory. Everything is decided by SHA-256 of content, so the same library gives the same corpus anywhere.

A document is a NUL byte followed by the bytes of one file. A split is its documents, in order of path, end to end.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import platform
import re
import sysconfig
from pathlib import Path

import numpy as np

SEPARATOR = b"\0"
SPLITS = ("train", "validation", "calibration", "test")
HELD_OUT_BYTES = {"test": 640 << 10, "validation": 640 << 10, "calibration": 320 << 10}  # filled in this order
TEXT_BYTES = {"calibration": 128 << 10, "test": 256 << 10}  # of the committed texts, at most

GRAM_WORDS = 13  # the n-gram length of the GPT-3 contamination study, arXiv:2005.14165 appendix C
MOST_SHARED = 0.05  # of a held-out file's 13-grams may occur in another file
LONGEST_SHARED_RUN = 50  # 13-grams in a row, hence 62 words
SMALLEST_HELD_OUT = 1024  # bytes; a smaller file is a stub


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """One file of the library: its path relative to the library, its bytes, and the split it belongs to."""

    path: str
    content: bytes
    split: str = "train"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Excerpt:
    """The first `length` bytes of a document: its part in a committed text."""

    path: str
    length: int
    file_bytes: int


def find_files(library: Path | None = None) -> list[Path]:
    """Lists the library's own .py files, sorted by path.

    Args:
        library: folder of the standard library; by default that of the running Python.

    Returns:
        Paths relative to `library`. Installed packages are left out, and so are the files that record how this one
        Python was built (`_sysconfigdata_*`, `config-*`): they differ between machines.

    Raises:
        FileNotFoundError: the folder holds no Python files.
    """
    library = library or Path(sysconfig.get_path("stdlib"))
    skipped_folders = {"site-packages", "dist-packages", "__pycache__"}
    files = []
    for file in library.rglob("*.py"):
        path = file.relative_to(library)
        if skipped_folders.isdisjoint(path.parts) and not path.name.startswith("_sysconfigdata"):
            if not path.parts[0].startswith("config-"):
                files.append(path)
    if not files:
        raise FileNotFoundError(f"{library} holds no .py files: is it the folder of a standard library?")
    return sorted(files, key=lambda path: path.as_posix())


def read_documents(library: Path | None = None) -> list[Document]:
    """Reads the library's files without empty ones, exact copies (the first path stays) and files that hold a NUL."""
    root = library or Path(sysconfig.get_path("stdlib"))
    documents = {}
    for path in find_files(root):
        content = (root / path).read_bytes()
        if content and SEPARATOR not in content:
            documents.setdefault(content, Document(path=path.as_posix(), content=content))
    return list(documents.values())


def shared_grams(contents: list[bytes]) -> list[np.ndarray]:
    """Marks, for each text, the word 13-grams that occur in another of the texts too.

    Args:
        contents: the texts. A word is a run of letters, digits and underscores.

    Returns:
        One bool array a text, one entry a 13-gram in order; empty for texts under 13 words. Grams are compared by
        64-bit hashes, so a false match has a chance of about n / 2^64 each.
    """
    vocabulary: dict[bytes, int] = {}
    hashes = []
    for content in contents:
        words = [vocabulary.setdefault(word, len(vocabulary)) for word in re.findall(rb"\w+", content)]
        ids = np.array(words, np.uint64)
        count = max(len(ids) - GRAM_WORDS + 1, 0)
        gram = np.zeros(count, np.uint64)
        for i in range(GRAM_WORDS):  # a polynomial in the word ids, with a shift to mix high bits into low ones
            gram = gram * np.uint64(0x9E3779B97F4A7C15) ^ (ids[i : i + count] + np.uint64(1))
            gram ^= gram >> np.uint64(29)
        hashes.append(gram)
    once_a_text = np.concatenate([np.unique(gram) for gram in hashes])
    values, counts = np.unique(once_a_text, return_counts=True)
    return [np.isin(gram, values[counts > 1]) for gram in hashes]


def longest_run(flags: np.ndarray) -> int:
    """Length of the longest run of true entries."""
    gaps = np.flatnonzero(~np.concatenate([[False], flags, [False]]))
    return int(np.diff(gaps).max()) - 1


def split_documents(documents: list[Document]) -> list[Document]:
    """Gives every document its split.

    Documents that may be held out (at least 1 KiB of UTF-8, at most 5 % of their 13-grams in any other document, no
    shared run over 50 of them) are taken in order of their SHA-256 until test, then validation, then calibration have
    their bytes; all others are for training.
    """
    candidates = []
    for document, shared in zip(documents, shared_grams([d.content for d in documents]), strict=True):
        if len(document.content) < SMALLEST_HELD_OUT or not _is_utf8(document.content) or not len(shared):
            continue
        if shared.mean() <= MOST_SHARED and longest_run(shared) <= LONGEST_SHARED_RUN:
            candidates.append(document)
    candidates.sort(key=lambda document: document.sha256, reverse=True)
    split_of = {}
    for split, quota in HELD_OUT_BYTES.items():
        held = 0
        while held < quota and candidates:
            document = candidates.pop()
            split_of[document.path] = split
            held += len(document.content)
    return [dataclasses.replace(d, split=split_of.get(d.path, "train")) for d in documents]


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def stream(documents: list[Document], split: str) -> bytes:
    """The documents of one split end to end, a NUL before each."""
    return b"".join(SEPARATOR + d.content for d in documents if d.split == split)


def choose_excerpts(documents: list[Document], split: str) -> list[Excerpt]:
    """Chooses what of each document of a split goes into the committed text of that split.

    Every document gives its beginning, cut at the end of a line, up to a length that is the same for all and as large
    as `TEXT_BYTES[split]` allows (separators counted): many files, none of which dominates.
    """
    chosen = [d for d in documents if d.split == split]
    # Of all limits the largest that fits. Shorter files leave their share to the others.
    low, high = 0, max(len(d.content) for d in chosen)
    while low < high:
        limit = (low + high + 1) // 2
        if sum(1 + min(len(d.content), limit) for d in chosen) <= TEXT_BYTES[split]:
            low = limit
        else:
            high = limit - 1
    excerpts = []
    for document in chosen:
        size = len(document.content)
        length = size if size <= low else document.content.rfind(b"\n", 0, low) + 1
        excerpts.append(Excerpt(path=document.path, length=length, file_bytes=size))
    return excerpts


def text(documents: list[Document], split: str) -> bytes:
    """The committed text of a split: its excerpts end to end, a NUL before each."""
    content = {d.path: d.content for d in documents}
    return b"".join(SEPARATOR + content[e.path][: e.length] for e in choose_excerpts(documents, split))


def corpus_sha256(documents: list[Document]) -> str:
    """One hash for the whole corpus and its split: SHA-256 of the manifest."""
    return hashlib.sha256(manifest(documents).encode()).hexdigest()


def manifest(documents: list[Document]) -> str:
    """Path, size, SHA-256 and split of every document, as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["path", "bytes", "sha256", "split"])
    for d in documents:
        writer.writerow([d.path, len(d.content), d.sha256, d.split])
    return out.getvalue()


def save(folder: Path, library: Path | None = None) -> dict[str, object]:
    """Builds the corpus and writes it: `<split>.bin`, `calibration.txt`, `test.txt`, `corpus.csv`, `corpus.json`.

    Args:
        folder: where to; made if absent.
        library: folder of the standard library; by default that of the running Python.

    Returns:
        What `corpus.json` holds: the Python version, the corpus hash, and sizes, excerpts and remaining overlap.
    """
    documents = split_documents(read_documents(library))
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        (folder / f"{split}.bin").write_bytes(stream(documents, split))
    for split in TEXT_BYTES:
        (folder / f"{split}.txt").write_bytes(text(documents, split))
    (folder / "corpus.csv").write_text(manifest(documents), encoding="utf-8", newline="\n")
    record: dict[str, object] = {
        "python": platform.python_version() if library is None else "not known: a folder was given",
        "sha256": corpus_sha256(documents),
        "splits": {
            split: {"files": sum(d.split == split for d in documents), "bytes": len(stream(documents, split))}
            for split in SPLITS
        },
        "texts": {
            split: {
                "bytes": len(text(documents, split)),
                "sha256": hashlib.sha256(text(documents, split)).hexdigest(),
                "excerpts": [dataclasses.asdict(e) for e in choose_excerpts(documents, split)],
                # of the text's 13-grams, the part that also occurs in training
                "grams_in_training": float(
                    shared_grams([text(documents, split), stream(documents, "train")])[0].mean()
                ),
            }
            for split in TEXT_BYTES
        },
    }
    (folder / "corpus.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record
