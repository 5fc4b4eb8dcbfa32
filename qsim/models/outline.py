"""What a checkpoint is, from its headers alone: no weight is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from qsim.families.gguf import architecture_of, config_of
from qsim.fields import Fields
from qsim.layouts.gguf.file import open_gguf

from .config import ModelConfig
from .families import block_names, expected_tensors
from .folder import TINY, gguf_file, read_config, resolve
from .gguf import _with_rope
from .gguf_tokenizer import tokenizer_of
from .tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True, kw_only=True, eq=False)
class Outline:
    """A model without its weights.

    Attributes:
        name, config, tokenizer: as `Model` has them.
        parameters: weights of all tensors. linear_parameters: of the Linears that methods quantise.
        head_parameters: of the product with the vocabulary, also where the head is the embedding.
    """

    name: str
    config: ModelConfig
    tokenizer: Tokenizer | None
    parameters: int
    linear_parameters: int
    head_parameters: int


def outline(path: str | Path) -> Outline:
    """The outline of a checkpoint, as `load` takes it.

    Raises:
        QsimError, OSError: as `load`, as far as headers tell.
    """
    file = gguf_file(path)
    if file is None:
        folder = resolve(path)
        name, config = "tiny" if folder == TINY else folder.name, read_config(folder)
        tokenizer = load_tokenizer(folder)
    else:
        found = open_gguf(file)
        metadata = Fields(found.metadata, str(found.path))
        architecture_of(metadata)
        data, _ = config_of(metadata, {key: one.shape for key, one in found.tensors.items()})
        name, config = found.path.stem, ModelConfig.from_dict(_with_rope(found, data), str(found.path))
        tokenizer, _ = tokenizer_of(metadata)
    sizes = {key: math.prod(shape) for key, shape in expected_tensors(config).items()}
    blocks = {f"{n}.weight" for i in range(config.num_hidden_layers) for n in block_names(config, i).linears}
    head = config.vocab_size * config.word_embed_proj_dim
    return Outline(
        name=name, config=config, tokenizer=tokenizer, parameters=sum(sizes.values()),
        linear_parameters=sum(size for key, size in sizes.items() if key in blocks),
        head_parameters=head,
    )  # fmt: skip
