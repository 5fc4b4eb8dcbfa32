"""A figure of every kind from made-up data, as large and with as long names as they come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from qsim.formats import get_format
from qsim.plots import (
    accumulator,
    amounts,
    bars,
    formats,
    layers,
    losses,
    measured,
    outliers,
    serving,
    speedup,
    tensors,
)
from qsim.plots.marks import Mark
from qsim.plots.style import CYCLE, MARKERS
from qsim.plots.tradeoff import Tradeoff, pareto_figure, tradeoff_figure

LONG = ("BF16", "FP8 row-wise, FP8 KV", "W4A16 g128 symmetric", "NVFP4", "MXFP4 x FP8 block 128", "W8A8 token")
DEVICES = ("H100 SXM", "SN40L-like dataflow part", "RTX PRO 6000 Blackwell", "Inference ASIC", "MI300X", "L40S")


def _marks(count: int) -> list[Mark]:
    return [Mark(label=LONG[i], color=CYCLE[i], marker=MARKERS[i], filled=bool(i % 2)) for i in range(count)]


def time_bar(n: int, size: str) -> Figure:
    parts = {name: [0.01 / (i + 1)] * n for i, name in enumerate(("gate+up", "down", "attention", "QKV", "LM head"))}
    return bars.breakdown_figure(
        "Llama-3.1 405B on RTX PRO 6000 Blackwell, decode, batch 16", LONG[:n], parts, size=size
    )


def tornado(n: int, size: str) -> Figure:
    fields = [f"link bandwidth (GB/s each way) {i}" for i in range(n)] + ["batch", "context"]
    low, high = np.r_[np.full(n, 8.0), 10, 10], np.r_[np.full(n, 12.0), 10, 10]
    title = "Mixtral 8x22B W4A16 g128 on Inference ASIC, decode, \N{PLUS-MINUS SIGN}20 %"
    return bars.tornado_figure(title, fields, low, high, 10.0, xlabel="time of a step (ms)", size=size)


def host(n: int, size: str) -> Figure:
    labels = [f"{name}\n11008x4096, M={i}" for i, name in enumerate(LONG[:n])]
    allowed, reached = np.arange(n) + 2.0, np.arange(n) + 1.5
    return bars.measured_figure("Speed-up over float32 on this computer", labels, allowed, reached, size=size)


def pareto(n: int, size: str) -> Figure:
    x = np.concatenate([np.geomspace(2, 80, 8) * (i + 1) for i in range(n)])
    labels = [f"{DEVICES[i // 8]} {LONG[i // 8]} b{2 ** (i % 8)}" for i in range(8 * n)]
    title, rate = "Llama-3 70B: latency against throughput (b: batch)", 1000 * x**0.7 / (x / x.min()) ** 0.2
    return pareto_figure(title, x, rate, labels, np.arange(8 * n) < 8, xlabel="time of a step (ms)", ylabel="tokens/s",
                         size=size)  # fmt: skip


def timeline(n: int, size: str) -> Figure:
    t = np.linspace(0, 40, 200 * n)
    return serving.timeline_figure(np.column_stack([t, 60 + 4 * np.sin(t), 3 + np.cos(t), 0.1 + t / 100]),
                                   title="Llama-3 70B W4A16 g128 on 4 replicas of tp2 of H200", size=size)  # fmt: skip


def frontier(n: int, size: str) -> Figure:
    x = np.geomspace(10, 400, 12)
    data = {d: {s: (x, 6000 * np.exp(-x / (60 + 20 * i))) for i, s in enumerate(LONG[:4])} for d in DEVICES[:n]}
    return serving.frontier_figure(data, title="Llama-3 70B, 1024 tokens in and 256 out", user_at_least=50.0, size=size)


def outlier(n: int, size: str) -> Figure:
    kinds = ("qkv", "o", "gate_up", "down", "q_b", "shared_gate_up")[:n]
    rows = [{"kind": k, "block": b, "channel_ratio": 10.0 + b, "peak_ratio": 200.0 + b, "row_range": 5.0 + b}
            for k in kinds for b in range(32)]  # fmt: skip
    return outliers.outlier_figure("opt-13b-like", rows, size=size)


def record(n: int, size: str) -> Figure:
    rows = [{"layer": f"model.layers.{b}.mlp.{k}_proj", "output_error": 0.01 + 0.001 * b, "rtn_output_error": 0.02,
             "weight_mse": 1.0, "rtn_weight_mse": 1.0, "fallback": b == 3}
            for b in range(8 * n) for k in ("q", "o", "gate", "down")]  # fmt: skip
    return layers.record_figure("Llama-3 8B, GPTQ W4A16 g128", rows, size=size)


def number_line(n: int, size: str) -> Figure:
    fmt = get_format(("e4m3", "e2m1", "int8", "e8m0", "nf4", "e5m2")[n - 1])
    edge = fmt.smallest_normal if getattr(fmt, "has_subnormals", False) else None
    return formats.format_figure(fmt.name, fmt.values, smallest_normal=edge, size=size)


def binade(n: int, size: str) -> Figure:
    first = np.exp2(np.arange(-20.0, 4.0 * n))
    return formats.binade_figure("bfloat16", first, 2 * first * (1 - 2**-8), first * 2**-7, smallest_normal=2.0**-14,
                                 size=size)  # fmt: skip


def error(n: int, size: str) -> Figure:
    x = np.exp2(np.arange(-14.0, 8.0))
    series = [formats.ErrorSeries(label=f"int8 (scaled: max = 448) {i}", magnitude=x, worst=0.1 / (i + 1) + 0 * x,
                                  rms=0.05 / (i + 1) + 0 * x, max=512.0) for i in range(n)]  # fmt: skip
    return formats.error_figure(series, size=size)


SIZED: dict[str, Callable[[int, str], Figure]] = {
    f.__name__: f for f in (time_bar, tornado, host, pareto, timeline, frontier, outlier, record, number_line, binade,
                            error)
}  # fmt: skip
"""Kinds that come in every size: functions of how many series, panels or rows (1 to 6), and of the size."""


def against_batch(n: int) -> Figure:
    x = np.exp2(np.arange(9.0))
    curves = [speedup.Curve(label=s, x=x, value=3 - 0.1 * i - x / 200, low=2 - x / 200, high=4 - x / 200, turns_at=64)
              for i, s in enumerate(LONG[:4])]  # fmt: skip
    return speedup.speedup_figure(dict.fromkeys(DEVICES[:n], curves), title="Decode, 1024 tokens of context")


def quality_speed(n: int) -> Figure:
    points = [Tradeoff(mark=m, loss=0.5 * i, loss_low=0.4 * i, loss_high=0.7 * i, rate=100.0 + 20 * i,
                       low=90.0, high=200.0) for i, m in enumerate(_marks(6))]  # fmt: skip
    return tradeoff_figure(dict.fromkeys(DEVICES[:n], points), limit=1.0, ylabel="tokens/s", title="Quality and speed")


def load(n: int) -> Figure:
    x = np.geomspace(10, 4000, 8)
    curve = serving.LoadCurve(rate=x, token_s=x * 1e-5, low_s=x * 8e-6, high_s=x * 1.2e-5, measured_rate=x,
                              measured_s=x * 1e-5, other_rate=x, other_s=x * 2e-5)  # fmt: skip
    return serving.load_figure({f"Llama-3.3 70B {d}": [curve] for d in DEVICES[:n]}, title="TPOT", other="another tool")


def predicted(n: int) -> Figure:
    t = np.geomspace(1e-5, 1e-1, 100)
    groups = [measured.Compared(label=s, measured_s=t, predicted_s=1.05 * t, low_s=0.9 * t, high_s=1.2 * t)
              for s in LONG[:n]]  # fmt: skip
    return measured.comparison_figure(groups, title="Predicted and measured")


def lost(n: int) -> Figure:
    return losses.loss_figure([losses.Loss(mark=m, loss=0.02 * i, loss_se=0.002, weights_only=0.01 * i)
                               for i, m in enumerate(_marks(n))], limit=0.02, title="Loss of each method")  # fmt: skip


def quality(n: int) -> Figure:
    points = [losses.QualityPoint(section=f"section {i}", name=f"{m} on section {i}", method=m, loss=0.02 * i,
                                  error=0.001) for i in range(n) for m in LONG[:5]]  # fmt: skip
    return losses.quality_figure(points)


def histogram(n: int) -> Figure:
    low = np.linspace(-1, 1, 40)
    mine = {s: (low, np.exp(-(low**2) * (i + 1)) / 40) for i, s in enumerate(LONG[:4])}
    return tensors.histogram_figure({f"down, block {i}": mine for i in range(n)}, title="Rounding errors of tensors")


def sqnr(n: int) -> Figure:
    mine = {s: (4.0 + i + 0.25, 20.0 + 5 * i) for i, s in enumerate(LONG)}
    return tensors.sqnr_figure({f"down, block {i}": {k: (b, v + i) for k, (b, v) in mine.items()} for i in range(n)},
                               title="Signal to noise against bits")  # fmt: skip


def channel(n: int) -> Figure:
    x = np.geomspace(0.1, 100, 200 * n)
    return tensors.channel_figure(x, x**0.5, x, x**0.7, title="Channels before and after smoothing")


def salient(n: int) -> Figure:
    kept = np.array([0, 0.5, 1, 2, 5, 10, 20, 50.0])
    return tensors.salient_figure({f"{s}, largest": (kept, 0.1 / (1 + kept + i)) for i, s in enumerate(LONG[:n])},
                                  title="Channels that matter")  # fmt: skip


def capacity(n: int) -> Figure:
    sizes = {s: 140.0 / (i + 1) for i, s in enumerate(LONG)}
    memories = dict(zip(DEVICES, (80.0, 64.0, 96.0, 96.0, 192.0, 48.0), strict=True))
    return amounts.capacity_figure({f"Llama-3 {i}0B": sizes for i in range(1, n + 1)}, memories, title="What fits")


def grouped(n: int) -> Figure:
    groups = {f"method {i}": {f"{d} {i}": 10.0 ** -(i + 1) if d != "L40S" else 0.0 for d in DEVICES} for i in range(n)}
    return amounts.grouped_figure(groups, xlabel="difference", title="Accumulators")


def accumulation(n: int) -> Figure:
    k = np.exp2(np.arange(5.0, 16.0))
    curves = [accumulator.ErrorCurve(label=f"Hopper FP8, promoted every {i} products", x=k,
                                     error=1e-4 * k ** (0.2 * i)) for i in range(1, 5)]  # fmt: skip
    return accumulator.accumulation_error_figure(
        {f"data {i}": curves for i in range(min(n, 3))}, title="Error against K"
    )


def width(n: int) -> Figure:
    f = np.arange(8.0, 26.0)
    curves = [
        accumulator.ErrorCurve(label=f"normal data, K = {4096 * i}", x=f, error=2.0**-f * i) for i in range(1, n + 1)
    ]
    return accumulator.width_error_figure(curves, {"Hopper FP8": 13, "Blackwell FP8": 25}, title="Error against width")


def standstill(n: int) -> Figure:
    rounds = np.exp2(np.arange(1.0, 8.0))
    return accumulator.standstill_figure(rounds, {"Hopper FP8": np.minimum(2 * rounds, 64)}, exact=2.0 * rounds)


PLAIN: dict[str, Callable[[int], Figure]] = {
    f.__name__: f for f in (against_batch, quality_speed, load, predicted, lost, quality, histogram, sqnr, channel,
                            salient, capacity, grouped, accumulation, width, standstill)
}  # fmt: skip
"""Kinds for a page: functions of how many series, panels or rows (1 to 6)."""


def every_figure() -> list[tuple[str, dict[str, Any]]]:
    """A name for every sample, and what to make it with."""
    sized = [(kind, {"n": n, "size": size}) for kind in SIZED for n in (1, 3, 6)
             for size in ("page", "column", "slide", "square")]  # fmt: skip
    return sized + [(kind, {"n": n}) for kind in PLAIN for n in (1, 2, 4, 6)]
