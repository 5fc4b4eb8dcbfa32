"""How the rows of the published table name things: their words for devices, models, schemes and engines as ours."""

from __future__ import annotations

import re
from typing import Any

DEVICES = (
    (r"^A100-PCIe-80", "a100-pcie-80gb"), (r"^A100-PCIe", "a100-pcie-40gb"), (r"40GB", "a100-sxm-40gb"),
    (r"^A100", "a100-sxm-80gb"), (r"^A6000", "rtx-a6000"), (r"^A10", "a10"), (r"^RTX4090", "rtx-4090"),
    (r"^RTX3090", "rtx-3090"), (r"^RTX6000Ada", "rtx-6000-ada"), (r"^L40S", "l40s"), (r"^L4$", "l4"),
    (r"^JetsonOrin", "jetson-agx-orin"), (r"^H100-PCIe", "h100-pcie"), (r"^H[18]00", "h100-sxm"),
    (r"^G?H200", "h200"), (r"SN40L", "sn40l-like"), (r"^Gaudi2", "gaudi2"),
)  # fmt: skip
MODELS = (
    (r"llama-?3\.?1?-8b", "llama-3-8b"), (r"llama-?3-70b", "llama-3-70b"), (r"llama-?v?-?2?-?70b", "llama-2-70b"),
    (r"llama-?v?-?2?-?13b", "llama-2-13b"), (r"llama-?v?-?2?-?7b", "llama-2-7b"), (r"mistral-7b", "mistral-7b"),
    (r"gpt-?j", "gpt-j-6b"), (r"qwen-2\.5-7b", "qwen2.5-7b"), (r"opt-([\d.]+)b", r"opt-\1b"),
)  # fmt: skip
SCHEMES = (
    (r"unfused", "w8a8-channel-token"), (r"smoothquant|w8a8$|int8 dynamic", "w8a8-channel-token"),
    (r"fp8 w8a8 \+ fp8 kv|fp8 weights\+acts\+kv", "fp8-tensor-kvfp8"), (r"emulated fp8 kv", "bf16-kvfp8"),
    (r"int8 weights \+ int8 kv", "w8a16-channel-kvint8"), (r"^fp8", "fp8-tensor"), (r"int4-g32", "w4a16-g32"),
    (r"int4-g64", "w4a16-g64"),
    (r"q4_k_m", "q4_k_m"), (r"exl2 3", "w3a16-g128"), (r"exl2 5", "w5a16-g128"),
    (r"exl2 4|gptq-w4|awq|w4a16|exllama", "w4a16-g128"),
    (r"w3", "w3a16-g128"), (r"w8a16|int8 weight-only", "w8a16-channel"), (r"fp16|bf16", "bf16"),
)  # fmt: skip
OUTSIDE = (
    (r"SN40L", "a cloud endpoint: a service figure"), (r"-kv8-", "emulated FP8 cache on a device without FP8"),
    (r"SQ-PT|SQ-FT", "2022 kernels: about a third of the INT8 peak"), (r"LC-.*-pp", "llama.cpp prefill of 2023"),
    (r"MLC-A100|GF-.*tp", "tensor parallel of an engine whose collectives are not modelled"),
    (r"awq-b|exllamav2-b", "kernel without a family here"), (r"A10base", "base clock of 885 MHz assumed"),
    (r"GPTQ", "research code: layers spread over devices, W3 kernel"),
    (r"ANL.*b64|GPTJ.*b64|TRT5.*b64", "scheduler at large batch"),
    (r"DG-64|DG-128", "DeepGEMM keeps fewer tokens busier than TensorRT-LLM's kernel"),
    (r"ML-", "Marlin priced with TensorRT-LLM's weight-only efficiency"),
    (r"TRT5|TRT6|TRT-", "TensorRT-LLM 0.5/0.6 of 2023; the kernels are those of 1.x"),
    (r"TC-4090|Orin", "transferred from an A100"),
)  # fmt: skip
"""Row -> the likely reason when it lies outside its band."""


def match(table: Any, text: str) -> str | None:
    """The name of the first pattern that is found in the text."""
    for pattern, name in table:
        found = re.search(pattern, text, re.I)
        if found:
            return str(found.expand(name)) if "\\" in name else str(name)
    return None


def number(text: Any, default: float = 0.0) -> float:
    """The first number in a text."""
    found = re.search(r"\d+(\.\d+)?", str(text))
    return float(found.group()) if found else default


def engine_of(row: Any) -> str:
    """The software whose times a row holds."""
    text = f"{row.source} {row.method}".lower()
    for name in ("gpt-fast", "ao torchao", "exllamav2", "llama.cpp", "mlc", "baseten", "gptq arxiv", "2605.30571"):
        if name in text:
            return name
    if "tinychat" in text:
        return "hf-eager" if "eager" in text else "tinychat"
    return "vllm" if "vllm" in text else "sambaflow" if "sambaflow" in text else "tensorrt-llm"
