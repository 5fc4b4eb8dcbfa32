"""The model on disk: a Hugging Face folder of BF16 safetensors shards with a tokenizer whose ids are byte values."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .llama import Config, Llama

SHARD_BYTES = 12 << 20


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_weights(state: dict[str, Tensor], folder: Path) -> None:
    """Writes tensors, rounded to bfloat16, as shards of at most 12 MiB in model order, and their index."""
    shards: list[dict[str, Tensor]] = [{}]
    for name, tensor in state.items():
        rounded = tensor.detach().to("cpu", torch.bfloat16).contiguous()
        if sum(t.nbytes for t in shards[-1].values()) + rounded.nbytes > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = rounded
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
    size = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": size, "total_parameters": size // 2}, "weight_map": weight_map},
    )


def read_model(folder: Path, device: str = "cpu") -> Llama:
    """The model of a folder, in float32, for evaluation."""
    content = json.loads((folder / "config.json").read_text())
    config = Config(**{field: content[field] for field in Config.__dataclass_fields__})
    state = {}
    for shard in sorted(folder.glob("model-*.safetensors")):
        state.update(load_file(shard))
    model = Llama(config)
    model.load_state_dict(state)
    return model.to(device).eval().requires_grad_(False)


def byte_characters() -> list[str]:
    """The printable character that GPT-2's byte-level tokenizers write for each byte value."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def write_tokenizer(folder: Path, context: int) -> None:
    """Writes `tokenizer.json` (byte-level BPE without merges: token id = byte value) and `tokenizer_config.json`.

    There are no special tokens: one would be matched in ordinary text. A NUL character in the text is the document
    separator.
    """
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": None,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": {character: byte for byte, character in enumerate(byte_characters())},
                "merges": [],
            },
        },
    )
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": context,
            "clean_up_tokenization_spaces": False,
            "add_bos_token": False,
            "add_eos_token": False,
        },
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
