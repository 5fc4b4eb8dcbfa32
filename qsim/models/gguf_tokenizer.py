"""The tokenizer in the metadata of a GGUF file, as a `tokenizer.json`, and back.

Two kinds: byte-level BPE (`gpt2`: GPT-2, Llama 3, Qwen), and SentencePiece with byte fallback (`llama`: Llama 2,
Mistral).

Source: llama.cpp's `llama-vocab.cpp`, for the patterns by name; transformers' `convert_slow_tokenizer.py`, for the
merges of a SentencePiece vocabulary.
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from qsim.errors import QsimError
from qsim.fields import Fields

from .tokenizer import ByteTokenizer, HuggingFaceTokenizer, Tokenizer, byte_vocabulary

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
"""What a token is, in the list of types."""
_SPACE = "\u2581"
_TOKENS = 1 << 20
_PIECE = 512  # characters of a piece of SentencePiece
_SPLIT = (NORMAL, USER, UNUSED)  # the kinds of pieces that are made of others
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3, _QWEN2 = _WORDS % "{1,3}", _WORDS % ""
# pre-tokenizer by name: patterns that a text is split by, one after the other
PATTERNS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "olmo": (_GPT2,),
    "llama-bpe": (_LLAMA3,),
    "llama3": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "deepseek-r1-qwen": (_QWEN2,),
    "smollm": (r"\p{N}", _GPT2),
    "starcoder": (r"\p{N}", _GPT2),
}
_K = "tokenizer.ggml."


def tokenizer_of(metadata: Fields) -> tuple[Tokenizer | None, str | None]:
    """The tokenizer of a file, or why there is none.

    What the keys say is checked here; the tokenizer itself, with the merges of a SentencePiece vocabulary, is built
    when it is first used.

    Raises:
        QsimError: keys that contradict each other, or are of another type.
    """
    kind = metadata.text(_K + "model", "")
    if not kind:
        return None, "the file has no tokenizer: give token ids"
    tokens = metadata.items(_K + "tokens", str, most=_TOKENS)
    types = metadata.items(_K + "token_type", int, (), most=_TOKENS) or (NORMAL,) * len(tokens)
    if len(types) != len(tokens):
        raise QsimError(f"{metadata.where}: {_K}token_type must have {len(tokens)} entries: got {len(types)}")
    merges = metadata.items(_K + "merges", str, (), most=_TOKENS)
    if kind == "gpt2" and not merges and list(tokens) == list(byte_vocabulary()):
        return ByteTokenizer(), None
    _check_once(tokens, metadata.where)
    if kind == "gpt2":
        pre = metadata.text(_K + "pre", "gpt-2")
        if pre not in PATTERNS:
            return None, f"the file's tokenizer splits texts as {pre[:60]!r}, which is not read here: give token ids"
        make = partial(_byte_level, tokens, types, merges, PATTERNS[pre], ignore_merges=pre in ("llama-bpe", "llama3"))
    elif kind == "llama":
        scores = metadata.items(_K + "scores", float, most=_TOKENS)
        if len(scores) != len(tokens):
            raise QsimError(f"{metadata.where}: {_K}scores must have {len(tokens)} entries: got {len(scores)}")
        _check_pieces(tokens, types, metadata.where)
        prefix = metadata.flag(_K + "add_space_prefix", True)
        make = partial(_sentencepiece, tokens, types, scores, prefix=prefix)
    else:
        return None, f"the file's tokenizer is of kind {kind[:60]!r}, which is not read here: give token ids"
    if importlib.util.find_spec("tokenizers") is None:
        return None, "the file's tokenizer needs the library tokenizers: pip install 'qsim[hf]', or give token ids"
    template = _template(metadata, tokens, default_bos=kind == "llama")
    return HuggingFaceTokenizer(partial(_text, make, template), metadata.where), None


def _text(make: Callable[[], dict[str, Any]], template: dict[str, Any] | None) -> str:
    """The text of a `tokenizer.json`, with what puts special tokens around a text in place of its own, if anything."""
    built = make()
    return json.dumps(built if template is None else {**built, "post_processor": template})


def _check_once(tokens: Sequence[str], where: str) -> None:
    """Refuse a token that comes twice."""
    if len(set(tokens)) != len(tokens):
        twin = Counter(tokens).most_common(1)[0][0]
        raise QsimError(f"{where}: {_K}tokens has {twin[:40]!r} twice")


def _check_pieces(tokens: Sequence[str], types: Sequence[int], where: str) -> None:
    """Refuse a piece whose ways to be split are too many to be searched."""
    longest = max((len(token) for token, kind in zip(tokens, types, strict=True) if kind in _SPLIT), default=0)
    if longest > _PIECE:
        raise QsimError(f"{where}: {_K}tokens has a piece of {longest} characters: up to {_PIECE} are read")


def _added(tokens: Sequence[str], types: Sequence[int]) -> list[dict[str, Any]]:
    """Tokens that are found in a text before it is split: special ones, and those of a user."""
    return [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": kind != USER}
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (UNKNOWN, CONTROL, USER)
    ]  # fmt: skip


def _vocabulary(tokens: Sequence[str]) -> dict[str, int]:
    return {token: i for i, token in enumerate(tokens)}


def _byte_level(
    tokens: Sequence[str], types: Sequence[int], merges: Sequence[str], patterns: Sequence[str], *, ignore_merges: bool
) -> dict[str, Any]:
    split = [{"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False} for p in patterns]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": ignore_merges,
        "vocab": _vocabulary(tokens), "merges": list(merges),
    }  # fmt: skip
    return _json(model, _added(tokens, types), None, {"type": "Sequence", "pretokenizers": [*split, level]}, level)


def _sentencepiece(
    tokens: Sequence[str], types: Sequence[int], scores: Sequence[float], *, prefix: bool
) -> dict[str, Any]:
    vocabulary = _vocabulary(tokens)
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    steps = [{"type": "Prepend", "prepend": _SPACE}, replaces] if prefix else [replaces]
    back: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
    ]  # fmt: skip
    if prefix:
        back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    model = {
        "type": "BPE", "dropout": None, "unk_token": unknown, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
        "vocab": vocabulary, "merges": _merges(tokens, types, scores, vocabulary),
    }  # fmt: skip
    normalizer = {"type": "Sequence", "normalizers": steps}
    return _json(model, _added(tokens, types), normalizer, None, {"type": "Sequence", "decoders": back})


def _merges(
    tokens: Sequence[str], types: Sequence[int], scores: Sequence[float], vocabulary: dict[str, int]
) -> list[list[str]]:
    """Every way to make a piece of two others, the piece of the highest score first."""
    found: list[tuple[float, int, int, int, str, str]] = []
    known = vocabulary.get
    for token, kind, score in zip(tokens, types, scores, strict=True):
        if kind not in _SPLIT:
            continue
        for at in range(1, len(token)):
            right = known(token[at:])
            if right is None:  # most ends of a piece are none: the beginning is not looked up
                continue
            left = known(token[:at])
            if left is not None:
                found.append((-score, -at, -left, -right, token[:at], token[at:]))
    found.sort()
    return [[one[4], one[5]] for one in found]


def _json(
    model: dict[str, Any], added: list[dict[str, Any]], normalizer: Any, pre: Any, decoder: Any
) -> dict[str, Any]:
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": pre, "post_processor": None, "decoder": decoder, "model": model,
    }  # fmt: skip


def _template(metadata: Fields, tokens: Sequence[str], *, default_bos: bool) -> dict[str, Any] | None:
    """What puts special tokens at the start and the end of a text; None when nothing does."""
    ids: dict[str, int] = {}
    for which, default in (("bos", default_bos), ("eos", False)):
        if metadata.flag(f"{_K}add_{which}_token", default):
            found = metadata.integer(f"{_K}{which}_token_id", 0, len(tokens) - 1, None)
            if found is not None:
                ids[which] = found
    if not ids:
        return None
    sequence: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    for which, one in ids.items():
        special = {"SpecialToken": {"id": tokens[one], "type_id": 0}}
        sequence = [special, *sequence] if which == "bos" else [*sequence, special]
    known = {tokens[one]: {"id": tokens[one], "ids": [one], "tokens": [tokens[one]]} for one in ids.values()}
    return {"type": "TemplateProcessing", "single": sequence, "pair": sequence, "special_tokens": known}


# --- to a file --------------------------------------------------------------------------------------------------


def tokenizer_metadata(tokenizer: Tokenizer | None, vocabulary: int) -> tuple[dict[str, Any], str | None]:
    """GGUF's keys of a tokenizer, or why it cannot be stored.

    Arguments:
        vocabulary: rows of the embedding; the list of tokens gets unused ones up to there.
    """
    if tokenizer is None:
        return {}, "the model has no tokenizer, so the file has none: llama.cpp wants one"
    if isinstance(tokenizer, ByteTokenizer):
        tokens = list(byte_vocabulary())
        return _keys("gpt2", tokens, [NORMAL] * len(tokens), vocabulary) | {
            _K + "pre": "gpt-2", _K + "merges": [], _K + "add_bos_token": False,
        }, None  # fmt: skip
    unwritten = "the tokenizer is neither byte-level BPE nor SentencePiece as GGUF has them: it was left out"
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return {}, unwritten
    data = json.loads(tokenizer.to_json())
    model = data["model"]
    if model.get("type") != "BPE":
        return {}, unwritten
    by_id = {i: token for token, i in model["vocab"].items()}
    special = {one["id"]: one for one in data["added_tokens"]}
    by_id |= {i: one["content"] for i, one in special.items()}
    tokens = [by_id.get(i, f"[UNUSED_{i}]") for i in range(max(by_id) + 1)]
    kinds = [UNUSED if i not in by_id else NORMAL for i in range(len(tokens))]
    for i, one in special.items():
        kinds[i] = UNKNOWN if one["content"] == model.get("unk_token") else CONTROL if one["special"] else USER
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    bos = {_K + "add_bos_token": _starts_with_special(data.get("post_processor"))}
    if model.get("byte_fallback"):
        for i, token in by_id.items():
            if len(token) == 6 and token.startswith("<0x"):
                kinds[i] = BYTE
        prefix = "Prepend" in json.dumps([data.get("normalizer"), data.get("pre_tokenizer")])
        ranks = {merge.replace(" ", ""): -float(i) for i, merge in reversed(list(enumerate(merges)))}
        scores = [ranks.get(token, -float(len(merges) + i)) for i, token in enumerate(tokens)]
        scores += [-float(len(merges) + i) for i in range(len(tokens), vocabulary)]
        out = _keys("llama", tokens, kinds, vocabulary)
        return out | {_K + "scores": scores, _K + "add_space_prefix": prefix, **bos}, None
    patterns = tuple(_patterns(data.get("pre_tokenizer")))
    pre = next((name for name, known in PATTERNS.items() if known == patterns), None)
    if pre is None:
        return {}, unwritten
    return _keys("gpt2", tokens, kinds, vocabulary) | {_K + "pre": pre, _K + "merges": merges, **bos}, None


def _keys(kind: str, tokens: list[str], kinds: list[int], vocabulary: int) -> dict[str, Any]:
    more = range(len(tokens), vocabulary)
    return {
        _K + "model": kind,
        _K + "tokens": [*tokens, *(f"[PAD{i}]" for i in more)],
        _K + "token_type": [*kinds, *(UNUSED for _ in more)],
    }


def _patterns(pre: Any) -> list[str]:
    """The patterns that a pre-tokenizer splits by."""
    if not isinstance(pre, dict):
        return []
    out = [found for one in pre.get("pretokenizers", ()) for found in _patterns(one)]
    if pre.get("type") == "Split":
        out.append(pre["pattern"].get("Regex", ""))
    if pre.get("type") == "Digits" and pre.get("individual_digits"):
        out.append(r"\p{N}")
    return [*out, _GPT2] if pre.get("type") == "ByteLevel" and pre.get("use_regex", True) else out


def _starts_with_special(post: Any) -> bool:
    if not isinstance(post, dict):
        return False
    if post.get("type") == "Sequence":
        return any(_starts_with_special(one) for one in post.get("processors", ()))
    single = post.get("single") or [{}]
    return post.get("type") == "TemplateProcessing" and "SpecialToken" in single[0]
