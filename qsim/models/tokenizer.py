"""Text to token ids and back."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from qsim.errors import QsimError
from qsim.files import parse_json, read_json, read_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Native


class Tokenizer(Protocol):
    """What a model needs of a tokenizer."""

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int64 (T,), special tokens included where the tokenizer puts them."""
        ...

    def decode(self, ids: Any) -> str:
        """The text of ids, without special tokens; bytes that are no UTF-8 become U+FFFD."""
        ...

    def spans(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids, and the number of the text's UTF-8 bytes that each stands for (they sum to all of them)."""
        ...


class ByteTokenizer:
    """Every byte of UTF-8 is a token, and its value is the id."""

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64)

    def decode(self, ids: Any) -> str:
        return np.asarray(ids).astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def spans(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        ids = self.encode(text)
        return ids, np.ones_like(ids)

    def __repr__(self) -> str:
        return "ByteTokenizer()"


class HuggingFaceTokenizer:
    """The text of a `tokenizer.json`, read by the library `tokenizers`.

    Arguments:
        text: JSON; or a function that makes it, which is called when the tokenizer is first used: a vocabulary of
            262144 pieces takes seconds.
        path: how messages name it.

    Raises:
        QsimError: a text that is no tokenizer, or the library is not installed; by a function's text at first use.
    """

    def __init__(self, text: str | Callable[[], str], path: str | Path) -> None:
        self._make: Callable[[], str] | None = None
        self._path = path
        if callable(text):
            self._make = text
            return
        parse_json(text, str(path))  # the library overflows its stack on JSON that is nested deeply
        self._tokenizer = _native(text, path)

    @cached_property
    def _tokenizer(self) -> Native:
        assert self._make is not None, "a text was read at once"
        made = _native(self._make(), self._path)
        self._make = None  # and the vocabulary that it holds
        return made

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._tokenizer.encode(text).ids, dtype=np.int64)

    def decode(self, ids: Any) -> str:
        return str(self._tokenizer.decode([int(i) for i in np.asarray(ids)], skip_special_tokens=True))

    def spans(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        encoded = self._tokenizer.encode(text)
        size = np.zeros(len(text) + 1, np.int64)  # bytes before each character
        points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        size[1:] = np.cumsum(1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF))
        ends = np.array([size[end] for _, end in encoded.offsets], dtype=np.int64)
        ends = np.maximum.accumulate(ends)  # a special token has (0, 0); a character split in two counts once
        if ends.size:
            ends[-1] = size[-1]
        return np.array(encoded.ids, dtype=np.int64), np.diff(ends, prepend=0)

    def to_json(self) -> str:
        """The text of a `tokenizer.json` of this tokenizer."""
        return str(self._tokenizer.to_str())

    def __repr__(self) -> str:
        if self._make is not None:  # to show a model must not take seconds
            return f"HuggingFaceTokenizer(of {self._path}, built at first use)"
        return f"HuggingFaceTokenizer({self._tokenizer.get_vocab_size()} tokens)"


def _native(text: str, path: str | Path) -> Native:
    """The library's own tokenizer of a `tokenizer.json`."""
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise QsimError(f"{path} is read by the library tokenizers: pip install 'qsim[hf]'") from None
    try:
        made = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise QsimError(f"{path} is not a tokenizer: {' '.join(str(error).split())[:200]}") from None
    except BaseException as error:  # and a panic of its own, which is no Exception, on some files
        if type(error).__name__ != "PanicException":
            raise
        raise QsimError(f"{path} is not a tokenizer that the library tokenizers can read") from None
    made.no_truncation()
    made.no_padding()
    return made


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a folder, or None when it has none.

    A vocabulary of the 256 bytes, in order and without merges, needs no library.

    Raises:
        ValueError: a `tokenizer.json` that cannot be read, or the library for it is not installed.
    """
    path = folder / "tokenizer.json"
    if not os.path.isfile(path):
        return None
    if path.stat().st_size < 1 << 16 and _is_bytes(path):
        return ByteTokenizer()
    return HuggingFaceTokenizer(read_text(path), path)


def _is_bytes(path: Path) -> bool:
    data = read_json(path)
    model = data.get("model") if isinstance(data, dict) else None
    return isinstance(model, dict) and not model.get("merges") and model.get("vocab") == byte_vocabulary()


def byte_vocabulary() -> dict[str, int]:
    """The character that GPT-2's byte-level tokenizers write for each byte, with the byte as its id."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    written = {b: b for b in printable} | {b: 256 + i for i, b in enumerate(others)}
    return {chr(written[b]): b for b in range(256)}
