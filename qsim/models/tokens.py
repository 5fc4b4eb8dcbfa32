"""Token ids out of files, for models whose folder has no tokenizer and for texts that are tokens already."""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from qsim.errors import QsimError
from qsim.files import read_json, regular_size

from .model import Model
from .streaming import BlockByBlock
from .tokenizer import ByteTokenizer

IDS_LIMIT = 1 << 30  # bytes of a .npy file
SUFFIXES = (".npy", ".json")


def text_or_ids(path: Path, model: Model | BlockByBlock) -> bytes | np.ndarray:
    """The content of a file: token ids of a `.npy` or `.json` file, else the bytes of a text.

    Raises:
        QsimError: as `read_token_ids`.
        OSError: the file cannot be read.
    """
    return read_token_ids(path, model.config.vocab_size) if path.suffix in SUFFIXES else path.read_bytes()


def read_token_ids(path: str | Path, vocab_size: int) -> np.ndarray:
    """Token ids of a file.

    Arguments:
        path: `.npy`, an integer array (T,) or (B, T); or `.json`, a list of whole numbers or of such lists, all of one
            length. Pickles are never read.
        vocab_size: ids are below it.

    Returns:
        int64, (T,) or (B, T), at least one id.

    Raises:
        QsimError: another suffix, not such a file, too large, ids that are no whole numbers or outside the vocabulary.
        OSError: the file cannot be read.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise QsimError(f"{path}: token ids are read from files that end in {' or '.join(SUFFIXES)}")
    ids = _from_npy(path) if path.suffix == ".npy" else _from_json(path)
    if ids.ndim not in (1, 2) or ids.size == 0:
        raise QsimError(f"{path} must hold token ids (T,) or (B, T), at least one: got shape {ids.shape}")
    if ids.dtype.kind not in "iu":
        raise QsimError(f"{path} must hold whole numbers, the ids of tokens: got {ids.dtype}")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        odd = low if low < 0 else high
        raise QsimError(f"{path}: token ids must be from 0 to {vocab_size - 1}, the model's vocabulary: got {odd}")
    return np.array(ids, np.int64)


def _from_npy(path: Path) -> np.ndarray:
    regular_size(path, IDS_LIMIT)
    with open(path, "rb") as file:
        if file.read(6) != b"\x93NUMPY":  # an archive or a pickle has other first bytes
            raise QsimError(f"{path} is not a file of one NumPy array, as np.save writes it")
    broken = (ValueError, EOFError, TypeError, KeyError, OverflowError, MemoryError, RecursionError, SyntaxError,
              TokenError)  # fmt: skip
    try:
        # mapped, so that a header which promises more than the file holds is an error and takes no memory
        return np.lib.format.open_memmap(path, mode="r")
    except broken as error:
        why = " ".join(str(error).split())[:200]
        raise QsimError(f"{path} is not a file of one NumPy array, as np.save writes it: {why}") from None


def _from_json(path: Path) -> np.ndarray:
    value: Any = read_json(path)
    rows = value if isinstance(value, list) and value and all(isinstance(row, list) for row in value) else [value]
    if not all(isinstance(row, list) and all(type(i) is int for i in row) for row in rows):
        raise QsimError(f"{path} must hold a list of token ids, or a list of such lists")
    if len({len(row) for row in rows}) > 1:
        raise QsimError(
            f"{path}: lists of token ids must have one length: got {sorted({len(row) for row in rows})[:8]}"
        )
    if any(i.bit_length() > 62 for row in rows for i in row):
        raise QsimError(f"{path} has a token id of more than 62 bits")
    ids = np.array(rows, np.int64)
    return ids if rows is value else ids[0]


def with_byte_tokens(model: Model) -> Model:
    """The model with every byte of a text as the token of that number, in place of a tokenizer.

    Raises:
        QsimError: a vocabulary of fewer than 256 tokens.
    """
    if model.config.vocab_size < 256:
        raise QsimError(f"bytes as tokens need a vocabulary of at least 256: the model has {model.config.vocab_size}")
    return model.replace(tokenizer=ByteTokenizer())
