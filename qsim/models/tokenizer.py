"""Text to token ids and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qsim.errors import QsimError
from qsim.files import parse_json, read_json, read_text


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
        text: JSON.
        path: how messages name it.
        own: the text was made here, so that it is JSON of a known depth.
    """

    def __init__(self, text: str, path: str | Path, *, own: bool = False) -> None:
        if not own:
            parse_json(text, str(path))  # the library overflows its stack on JSON that is nested deeply
        try:
            import tokenizers
        except ModuleNotFoundError:
            raise QsimError(f"{path} is read by the library tokenizers: pip install 'qsim[hf]'") from None
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise QsimError(f"{path} is not a tokenizer: {' '.join(str(error).split())[:200]}") from None
        except BaseException as error:  # and a panic of its own, which is no Exception, on some files
            if type(error).__name__ != "PanicException":
                raise
            raise QsimError(f"{path} is not a tokenizer that the library tokenizers can read") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

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
        return f"HuggingFaceTokenizer({self._tokenizer.get_vocab_size()} tokens)"


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
