"""A checkpoint's blocks one at a time: memory holds one block, whatever the size of the model."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from qsim.errors import QsimError
from qsim.scheme import QuantizedTensor

from .checks import check_ids
from .config import ModelConfig
from .families import block_names, expected_tensors, model_names
from .folder import TINY, gguf_file
from .loading import load
from .model import Model
from .source import Source
from .tokenizer import Tokenizer, load_tokenizer

F32 = np.float32


class BlockByBlock:
    """A model as its blocks, each of which is a `Model` of one block when it is asked for.

    Arguments:
        model: a model, or a path as `load` takes it. Of a folder one block at a time is read; a model in memory, a GGUF
            file and experts that are stored in one tensor are held whole, and `streams` is False.

    Raises:
        ValueError, OSError: as `load`.
    """

    def __init__(self, model: Model | str | Path) -> None:
        self._source: Source | None = None
        self._model: Model | None = None
        if isinstance(model, Model):
            self._model = model
        elif gguf_file(model) is None:
            try:
                self._source = Source(model)
            except QsimError:  # experts in one tensor; what is wrong with a folder `load` says, too
                self._source = None
        if self._source is None and self._model is None:
            assert not isinstance(model, Model)
            self._model = load(model)
        self.was_read_whole = self._source is None and not isinstance(model, Model)
        found = self._model if self._model is not None else self._source
        assert found is not None
        self.config: ModelConfig = found.config
        self.tokenizer: Tokenizer | None
        self.notes: tuple[str, ...]
        if self._source is None:
            assert self._model is not None
            self.name, self.tokenizer, self.notes = self._model.name, self._model.tokenizer, self._model.notes
        else:
            folder = self._source.folder
            self.name, self.tokenizer = "tiny" if folder == TINY else folder.name, load_tokenizer(folder)
            self.notes = self._source.notes.lines()

    @property
    def streams(self) -> bool:
        """Whether one block at a time is in memory."""
        return self._source is not None

    @property
    def block_bytes(self) -> int:
        """Bytes of the largest block in float32."""
        sizes: Counter[str] = Counter()
        for name, shape in expected_tensors(self.config).items():
            owner = next((p for p in self._prefixes if name.startswith(p)), "")
            sizes[owner] += 4 * math.prod(shape)
        return max(size for owner, size in sizes.items() if owner)

    @property
    def bytes_held(self) -> int:
        """Bytes of the model that stay in memory throughout; 0 where blocks are read one at a time."""
        return 0 if self._model is None else self._model.nbytes

    @property
    def _prefixes(self) -> list[str]:
        return [block_names(self.config, i).prefix for i in range(self.config.num_hidden_layers)]

    def embed(self, tokens: np.ndarray) -> np.ndarray:
        """Hidden states that enter block 0, (B, T, D) float32, of ids (B, T)."""
        if self._model is not None:
            return self._model.embed(tokens)
        ids, small = np.unique(tokens, return_inverse=True)
        return self._one(0, rows=ids).embed(small.reshape(tokens.shape))

    def block(self, i: int) -> tuple[Model, int]:
        """A model that holds block i, and its number there."""
        return (self._model, i) if self._model is not None else (self._one(i), 0)

    def check_tokens(self, tokens: Any) -> np.ndarray:
        """As `Model.check_tokens`."""
        return check_ids(tokens, self.config.vocab_size)

    def own_name(self, name: str, i: int) -> str:
        """What a Linear of the model that `block(i)` gave is called in the whole model."""
        if self._model is not None:
            return name
        return block_names(self.config, i).prefix + name.removeprefix(block_names(self._config(i, 1), 0).prefix)

    def _config(self, i: int, vocabulary: int) -> ModelConfig:
        c = self.config
        return dataclasses.replace(
            c, num_hidden_layers=1, sliding_windows=(c.sliding_windows[i],), sparse_layers=(c.sparse_layers[i],),
            vocab_size=vocabulary, tie_word_embeddings=True,
        )  # fmt: skip

    def _one(self, i: int, rows: np.ndarray | None = None) -> Model:
        """Block i as a model of its own; with `rows` it can embed these tokens, in their order."""
        assert self._source is not None
        config = self._config(i, 1 if rows is None else len(rows))
        mine, theirs = block_names(config, 0).prefix, block_names(self.config, i).prefix
        embedding = f"{model_names(config).embedding}.weight"
        outside = rows is not None or i == self.config.num_hidden_layers - 1
        tensors: dict[str, Any] = {}
        for name, shape in expected_tensors(config).items():
            if name.startswith(mine):
                tensors[name] = self._source.load(theirs + name.removeprefix(mine))
            elif name == embedding:
                tensors[name] = np.zeros(shape, F32) if rows is None else self._float(name)[rows]
            else:
                tensors[name] = self._float(name) if outside else np.zeros(shape, F32)
        return Model(config=config, tensors=tensors, name=self.name)

    def _float(self, name: str) -> np.ndarray:
        assert self._source is not None
        found = self._source.load(name)
        return found.dequantize() if isinstance(found, QuantizedTensor) else found
