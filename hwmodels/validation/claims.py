"""Claims that people repeat about quantised inference, each beside what the model computes and its band."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from ..predicted import speedup
from ..prediction import predict, resolve_scheme
from ..request import predict_request
from ..timing.attention_kernel import attention
from ..timing.families import get_attention, get_family
from ..timing.kernel import gemm
from ..workload.architecture import get_architecture
from ..workload.footprint import model_weight_bytes


@dataclass(frozen=True, kw_only=True)
class Claim:
    """`value` with an 80 % band (equal to the value where it is a count of bytes), and what it says about the claim.

    `generation` names the kernels that the value is of, "" where it is a count of bytes.
    """

    text: str
    case: str
    value: float
    low: float
    high: float
    unit: str
    verdict: str
    fidelity: str
    generation: str = ""


def _generation(*kernels: str) -> str:
    """Engine, version and year of kernel families, each once."""
    return " against ".join(dict.fromkeys(get_family(name).generation for name in kernels))


def seed_claims() -> list[Claim]:
    """The claims the project set out with."""
    return [*_memory(), *_four_bit_70b(), *_smoothquant(), *_fp8(), *_flash_attention(), *_int4()]


def _memory() -> list[Claim]:
    arch = get_architecture("llama-2-70b")
    out = []
    for name, claimed in (("bf16", 140.0), ("w4a16-g128", 35.0)):
        gb = model_weight_bytes(arch, resolve_scheme(name)) / 1e9
        off = gb / claimed - 1
        out.append(
            Claim(
                text=f"70B weights take {claimed:.0f} GB in {'16 bit' if name == 'bf16' else '4 bit'}",
                case=f"Llama-2-70B, {name}, with lm_head and embedding in 16 bit and scales", value=gb, low=gb, high=gb,
                unit="GB", fidelity="exact",
                verdict=f"{100 * off:+.1f} %" + ("" if name == "bf16" else ": group scales, zeros and 16-bit ends"),
            )
        )  # fmt: skip
    return out


def _four_bit_70b() -> list[Claim]:
    """4-bit on one 80 GB GPU against 16 bit on the two that it needs, per GPU and as latency."""
    out = []
    for device, stack in itertools.product(("a100-sxm-80gb", "h100-sxm"), ("trtllm-1.x", "vllm-2026")):
        how: dict[str, Any] = {"profile": "trtllm", "stack": stack}
        one = predict(device, "llama-2-70b", "w4a16-g128-sym", "decode", 1, 512, **how)
        two = predict(device, "llama-2-70b", "bf16", "decode", 1, 512, tensor_parallel=2, **how)
        s = speedup(one, two)
        out.append(
            Claim(
                text="4-bit 70B on one 80 GB GPU is 2-3 times faster",
                case=f"{device}, {stack}: W4A16 on 1 against BF16 on 2, per GPU",
                value=2 * s.value, low=2 * s.low, high=2 * s.high, unit="x tokens/s per GPU",
                verdict=f"as latency {s.value:.2f}x: two GPUs read twice as fast", fidelity=one.fidelity,
                generation=_generation(one.kernel, two.kernel),
            )
        )  # fmt: skip
    return out


def _smoothquant() -> list[Claim]:
    out = []
    best = None
    for model in ("opt-13b", "opt-30b"):
        for seq in (256, 1024):
            w8 = predict("a100", model, "w8a8-channel-token", "prefill", 4, seq, profile="trtllm")
            b16 = predict("a100", model, "bf16", "prefill", 4, seq, profile="trtllm")
            s = speedup(w8, b16)
            if best is None or s.value > best[0].value:
                best = (s, model, seq, w8)
    assert best is not None
    s, model, seq, w8 = best
    out.append(
        Claim(
            text="SmoothQuant is up to 1.56 times faster", case=f"A100, {model}, prefill 4 x {seq}, best of four cases",
            value=s.value, low=s.low, high=s.high, unit="x", fidelity=w8.fidelity, generation=_generation(w8.kernel),
            verdict="today's INT8 kernels allow more than the kernels of 2022 gave",
        )
    )  # fmt: skip
    arch = get_architecture("opt-30b")
    ratio = model_weight_bytes(arch, resolve_scheme("bf16")) / model_weight_bytes(
        arch, resolve_scheme("w8a8-channel-token")
    )
    out.append(
        Claim(text="SmoothQuant halves memory", case="OPT-30B weights", value=ratio, low=ratio, high=ratio, unit="x",
              verdict="lm_head and embedding stay in 16 bit", fidelity="exact")
    )  # fmt: skip
    return out


def _fp8() -> list[Claim]:
    how = {"batch": 32, "prompt": 80, "new_tokens": 100, "profile": "trtllm"}
    generation, out = _generation("trtllm_fp8"), []
    for name in ("fp8-tensor", "fp8-static"):
        fp8 = predict_request("h100-sxm", "mistral-7b", name, **how)  # type: ignore[arg-type]
        b16 = predict_request("h100-sxm", "mistral-7b", "bf16", **how)  # type: ignore[arg-type]
        value = fp8.output_tokens_per_s / b16.output_tokens_per_s
        spread = ((fp8.high_s / fp8.low_s) ** 0.5 * (b16.high_s / b16.low_s) ** 0.5) ** 0.5
        out.append(
            Claim(text="FP8 gives +33 % tokens/s on an H100",
                  case=f"Mistral-7B, 32 requests of 80 + 100 tokens, {name}",
                  value=100 * (value - 1), low=100 * (value / spread - 1), high=100 * (value * spread - 1), unit="%",
                  verdict="static scales fuse away the quantisation" if "static" in name else
                          "run-time quantisation inside every product", fidelity=fp8.fidelity, generation=generation)
        )  # fmt: skip
        change = 100 * (fp8.ttft_s / b16.ttft_s - 1)
        wide = 100 * (spread - 1) * fp8.ttft_s / b16.ttft_s
        out.append(
            Claim(text="FP8 gives -8.5 % TTFT on an H100", case=f"the same case, {name}", value=change,
                  low=change - wide, high=change + wide, unit="%", fidelity=fp8.fidelity, generation=generation,
                  verdict="the claim's TTFT also holds queueing and the host, which FP8 does not touch")
        )  # fmt: skip
    return out


def _flash_attention() -> list[Claim]:
    flop, out = 4 * 16 * 128 * 16384**2 / 2 / 1e15, []
    for device in ("h100-sxm", "h200"):
        est = attention(device, "prefill", 1, 16384, 16, 16, 128, "cudnn_fp8")
        low, mid, high = (flop / float(t) for t in (est.high_s, est.time_s, est.low_s))
        out.append(
            Claim(text="FlashAttention-3 in FP8 comes near 1.2 PFLOP/s",
                  case=f"{device}, 16k causal, head_dim 128: cuDNN's FP8 attention", value=mid, low=low, high=high,
                  unit="PFLOP/s", fidelity=est.kind, generation=get_attention("cudnn_fp8").generation,
                  verdict="recorded on an H200: 0.98 PFLOP/s, 1.03 with heads of 256")
        )  # fmt: skip
    return out


def _int4() -> list[Claim]:
    out = []
    cases = (
        ("h200", "humming_w4a16_g128"),
        ("a10", "marlin_int4"),
        ("h200", "tinygemm_int4"),
        ("h200", "trtllm_int4_wo"),
        ("a100", "trtllm_int4_wo"),
        ("l40s", "trtllm_int4_wo"),
    )
    for device, kernel in cases:
        for m in (1, 16):
            four = gemm(device, m, 28672, 4096, kernel)
            base = gemm(device, m, 28672, 4096, "cublas_bf16")
            value = float(base.time_s / four.time_s)
            low, high = float(base.low_s / four.high_s), float(base.high_s / four.low_s)
            out.append(
                Claim(text="INT4 is 4 times faster", case=f"{device}, {kernel}, one 28672 x 4096 layer, M = {m}",
                      value=value, low=low, high=high, unit="x", fidelity=four.kind, generation=_generation(kernel),
                      verdict="ideal is 3.85x" if m == 1 else "the gain shrinks with the batch")
            )  # fmt: skip
    for stack, verdict in (("pytorch-2.11", "measured 1.47x: lm_head, attention and launches stay"),
                           ("best", "lm_head, attention and launches stay")):  # fmt: skip
        p = predict("h200", "llama-3-8b", "w4a16-g128-sym", "decode", 1, 1024, stack=stack)
        s = speedup(p, predict("h200", "llama-3-8b", "bf16", "decode", 1, 1024, stack=stack))
        out.append(
            Claim(text="INT4 is 4 times faster",
                  case=f"h200, whole decode step of Llama-3-8B, batch 1, stack {stack}, {p.kernel}", value=s.value,
                  low=s.low, high=s.high, unit="x", fidelity=p.fidelity, generation=_generation(p.kernel),
                  verdict=verdict)
        )  # fmt: skip
    return out
