"""Claims that people repeat about quantised inference, each beside what the model computes and its band."""

from __future__ import annotations

from dataclasses import dataclass

from ..prediction import predict, resolve_scheme, speedup
from ..request import predict_request
from ..timing.kernel import attention, gemm
from ..workload.architecture import get_architecture
from ..workload.footprint import model_weight_bytes


@dataclass(frozen=True, kw_only=True)
class Claim:
    """`value` with an 80 % band (equal to the value where it is a count of bytes), and what it says about the claim."""

    text: str
    case: str
    value: float
    low: float
    high: float
    unit: str
    verdict: str
    fidelity: str


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
    for device in ("a100-sxm-80gb", "h100-sxm"):
        one = predict(device, "llama-2-70b", "w4a16-g128", "decode", 1, 512, profile="trtllm")
        two = predict(device, "llama-2-70b", "bf16", "decode", 1, 512, profile="trtllm", tensor_parallel=2)
        s = speedup(one, two)
        out.append(
            Claim(
                text="4-bit 70B on one 80 GB GPU is 2-3 times faster",
                case=f"{device}: W4A16 on 1 against BF16 on 2, a GPU",
                value=2 * s.value, low=2 * s.low, high=2 * s.high, unit="x tokens/s a GPU",
                verdict=f"as latency {s.value:.2f}x: two GPUs read twice as fast", fidelity=one.fidelity,
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
                best = (s, model, seq, w8.fidelity)
    assert best is not None
    s, model, seq, fidelity = best
    out.append(
        Claim(
            text="SmoothQuant is up to 1.56 times faster", case=f"A100, {model}, prefill 4 x {seq}, best of four cases",
            value=s.value, low=s.low, high=s.high, unit="x", fidelity=fidelity,
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
    out = []
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
                          "run-time quantisation inside every product", fidelity=fp8.fidelity)
        )  # fmt: skip
        change = 100 * (fp8.ttft_s / b16.ttft_s - 1)
        wide = 100 * (spread - 1) * fp8.ttft_s / b16.ttft_s
        out.append(
            Claim(text="FP8 gives -8.5 % TTFT on an H100", case=f"the same case, {name}", value=change,
                  low=change - wide, high=change + wide, unit="%", fidelity=fp8.fidelity,
                  verdict="the claim's TTFT also holds queueing and the host, which FP8 does not touch")
        )  # fmt: skip
    return out


def _flash_attention() -> list[Claim]:
    est = attention("h100-sxm", "prefill", 1, 16384, 16, 16, 128, "sdpa_cudnn")
    flop = 4 * 16 * 128 * 16384**2 / 2 / 1e12
    low, mid, high = (flop / float(t) for t in (est.high_s, est.time_s, est.low_s))
    return [
        Claim(text="FlashAttention-3 in FP8 comes near 1.2 PFLOP/s",
              case="H100, 16k causal, head_dim 128: 16-bit attention at twice the peak, same efficiency",
              value=2 * mid / 1e3, low=2 * low / 1e3, high=2 * high / 1e3, unit="PFLOP/s", fidelity="transferred",
              verdict="the 16-bit efficiency carried to the FP8 peak; no FP8 attention was measured here")
    ]  # fmt: skip


def _int4() -> list[Claim]:
    out = []
    cases = (
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
                      value=value, low=low, high=high, unit="x", fidelity=four.kind,
                      verdict="ideal is 3.85x" if m == 1 else "the gain shrinks with the batch")
            )  # fmt: skip
    p = predict("h200", "llama-3-8b", "w4a16-g128", "decode", 1, 1024)
    s = speedup(p, predict("h200", "llama-3-8b", "bf16", "decode", 1, 1024))
    out.append(
        Claim(text="INT4 is 4 times faster", case="h200, whole decode step of Llama-3-8B, batch 1, tinygemm",
              value=s.value, low=s.low, high=s.high, unit="x", fidelity=p.fidelity,
              verdict="measured 1.47x: lm_head, attention and launches stay")
    )  # fmt: skip
    return out
