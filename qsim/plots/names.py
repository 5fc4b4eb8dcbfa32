"""How people write what programs name: models, devices, schemes, formats, operators and rates."""

from __future__ import annotations

import re
from collections.abc import Sequence

FORMATS = {
    "float32": "FP32", "tf32": "TF32", "bfloat16": "BF16", "float16": "FP16", "float8_e4m3fn": "FP8",
    "float8_e4m3fnuz": "FP8", "float8_e5m2": "FP8", "float4_e2m1fn": "FP4", "int8": "INT8", "int4": "INT4",
    "nvfp4": "NVFP4", "mxfp4": "MXFP4", "mxfp8_e4m3": "MXFP8", "mxfp6_e2m3": "MXFP6", "vector": "vector units",
}  # fmt: skip
"""Number formats of the matrix units, by their names in `qsim.formats`."""

OPERATORS = {
    "qkv": "QKV", "o": "output", "gate_up": "gate+up", "fc1": "FC1", "fc2": "FC2", "lm_head": "LM head",
    "qkv_a": "QKV latent", "q_b": "Q from latent", "shared_gate_up": "shared gate+up", "shared_down": "shared down",
    "dense_gate_up": "dense gate+up", "dense_down": "dense down",
}  # fmt: skip
"""Operators whose name is not already an English word."""

_FAMILIES = {"llama": "Llama", "qwen": "Qwen", "mistral": "Mistral", "mixtral": "Mixtral", "gemma": "Gemma",
             "deepseek": "DeepSeek", "phi": "Phi", "opt": "OPT", "gpt": "GPT"}  # fmt: skip
_VENDORS = ("NVIDIA GeForce ", "NVIDIA ", "AMD Instinct ", "AMD ", "Intel ", "Google ", "Parametric ")
_WORDS = {"tensor": "tensor", "rowwise": "row-wise", "static": "static", "channel": "channel", "token": "token",
          "sym": "symmetric", "only": "only", "weight": "weight"}  # fmt: skip


def format_title(name: str) -> str:
    """`float8_e4m3fn` as `FP8`; an accumulator given with the format stays: `float16-acc16` is `FP16 (acc16)`."""
    stem, _, accumulator = name.partition("-")
    title = FORMATS.get(stem, stem)
    return f"{title} ({accumulator})" if accumulator else title


def model_title(name: str) -> str:
    """`llama-3-70b` as `Llama-3 70B`: the size stands apart, families are written as their makers do."""
    family: list[str] = []
    sizes: list[str] = []
    for part in name.split("-"):
        if re.fullmatch(r"(\d+x)?a?\d+(\.\d+)?[bm]", part):
            sizes.append(part.replace("b", "B").replace("m", "M").replace("a", "A"))
        elif sizes:
            sizes.append(part)
        else:
            stem = re.match(r"[a-z]*", part)
            found = _FAMILIES.get(stem[0]) if stem else None
            if family and len(part) <= 2:  # a version: DeepSeek-V3, GPT-J
                part = part.upper()
            family.append(part if found is None else found + part[len(stem[0]) :])  # type: ignore[index]
    return " ".join(part for part in ("-".join(family), *sizes) if part) or name


def device_titles(titles: Sequence[str]) -> list[str]:
    """Names of devices as people say them: `NVIDIA H100 SXM5 80 GB` is `H100 SXM`.

    The size of the memory and words in brackets stay only where two devices would otherwise have one name; devices that
    still share a name are numbered.
    """
    longer = [_without_vendor(title) for title in titles]
    short = [re.sub(r"(SXM|PCIe)\d", r"\1", re.sub(r" \d+ GB\b| \(.*\)| Generation\b", "", name)) for name in longer]
    found = [s if short.count(s) == 1 else name for s, name in zip(short, longer, strict=True)]
    return [name if found.count(name) == 1 else f"{name} #{found[: i + 1].count(name)}" for i, name in enumerate(found)]


def _without_vendor(title: str) -> str:
    for vendor in _VENDORS:
        if title.startswith(vendor):
            rest = title[len(vendor) :]
            return rest[:1].upper() + rest[1:]
    return title


_CHIP = re.compile(r"(?:[a-z]{1,2}\d{1,3}[a-z]?|rtx|sxm|nvl|asic|gpu|tpu|agx|\d{3,4})")
_CHIP_WORDS = {"pcie": "PCIe", "ada": "Ada", "jetson": "Jetson", "orin": "Orin", "pro": "PRO", "groq": "Groq",
               "gaudi2": "Gaudi 2", "gaudi3": "Gaudi 3", "v5e": "v5e", "v6e": "v6e"}  # fmt: skip


def chip_title(name: str) -> str:
    """A device by its name alone, as people write it: `h100-sxm` is `H100 SXM`, `a100-sxm-80gb` `A100 SXM 80 GB`.

    Names without a word that chips are called by, as those that a user gives, stay as they are.
    """
    parts = name.split("-")
    if not any(_CHIP.fullmatch(part) or part in _CHIP_WORDS for part in parts):
        return name
    words = [_CHIP_WORDS.get(part, part.upper() if _CHIP.fullmatch(part) else part) for part in parts]
    words = [re.sub(r"^(\d+)gb$", r"\1 GB", word) for word in words]
    return " ".join(words).replace(" like", "-like")


def scheme_title(name: str) -> str:
    """`w4a16-g128` as `W4A16 g128`, `fp8-rowwise-kvfp8` as `FP8 row-wise, FP8 KV`."""
    head, *rest = name.split("-")
    key_value = [part for part in rest if part.startswith("kv")]
    words = [_words(part) for part in rest if part not in key_value]
    title = " ".join([re.sub(r"(\d)XFP", r"\1 x FP", head.upper()), *words])
    return title + "".join(f", {(part[2:] or head).upper()} KV" for part in key_value)


def _words(part: str) -> str:
    block = re.fullmatch(r"block(\d+)", part)
    return f"block {block[1]}" if block else _WORDS.get(part, part)


_UNITS = (("_gbytes_per_s_per_direction", "GB/s each way"), ("_gbytes_per_s", "GB/s"), ("_gbytes", "GB"),
          ("_mbytes", "MB"), ("_tflops", "TFLOP/s"), ("_us", "us"), ("_mhz", "MHz"), ("_w", "W"))  # fmt: skip


def field_title(key: str) -> str:
    """A field of a device as people name it: `memory.bandwidth_gbytes_per_s` is `memory bandwidth (GB/s)`."""
    for suffix, unit in _UNITS:
        if key.endswith(suffix):
            key = f"{key.removesuffix(suffix)} ({unit})"
            break
    *room, last = key.removeprefix("compute.").split(".")
    words = [FORMATS.get(part, part.replace("_", " ")) for part in (*room, last)]
    return " ".join(words).replace("on chip", "on-chip")


def operator_title(name: str) -> str:
    """`gate_up` as `gate+up`; other names stay as they are."""
    return OPERATORS.get(name, name)


def rate_title(bytes_per_s: float) -> str:
    """A bandwidth with three digits: `3.35 TB/s`, `864 GB/s`."""
    return f"{bytes_per_s / 1e12:.3g} TB/s" if bytes_per_s >= 1e12 else f"{bytes_per_s / 1e9:.3g} GB/s"


def peak_title(flop_per_s: float, integers: bool = False) -> str:
    """A peak as `989 TFLOP/s`; of integers as `TOP/s`."""
    tera = flop_per_s / 1e12
    number = f"{tera:,.0f}" if tera >= 99.5 else f"{tera:.3g}"
    return f"{number} {'TOP/s' if integers else 'TFLOP/s'}"


def three_digits(value: float) -> str:
    """`1,234`, `12.3`, `0.0123`: three digits, whole from a thousand on."""
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"


def and_list(words: Sequence[str]) -> str:
    """Words as a sentence lists them: `a, b and c`."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
