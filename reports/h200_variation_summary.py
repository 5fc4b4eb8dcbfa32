"""What `h200_variation.py` measured, as Markdown: power limit, recovery, repeats, chains, correlation, kernels.

python reports/h200_variation_summary.py > reports/h200_variation.md
"""

from pathlib import Path

import numpy as np
import pandas as pd

from hwmodels.fitting import sources
from hwmodels.fitting.fit import held_out

DATA = Path(__file__).parent / "h200_variation"


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(c) for c in line) + " |" for line in lines)


def throttle():
    t = pd.read_csv(DATA / "throttle.csv")
    rows = []
    for (fmt, n, k, m), g in t.groupby(["fmt", "N", "K", "M"], sort=False):
        us = g.call_s * 1e6
        cold = us[(g.replay > 0) & (g.elapsed_s < 0.034)].median()
        hot = us[g.elapsed_s > 0.3].median()
        past = g[(g.call_s * 1e6 > (cold + hot) / 2) & (g.replay > 0)].elapsed_s
        onset = f"{1e3 * past.iloc[0]:.0f}" if hot / cold > 1.02 else ""
        rows.append([fmt, f"{n} x {k}", m, f"{cold:.1f}", f"{hot:.1f}", f"{hot / cold:.2f}", onset])
    return table(["format", "layer N x K", "M", "first 30 ms, us", "after 300 ms, us", "ratio", "onset, ms"], rows)


def recovery():
    """The same kernel with the same grid takes the same time at every M up to 128: the order of measuring shows."""
    k = pd.read_csv(DATA / "kernels.csv")
    k = k[k.fmt == "fp8_row"].groupby(["N", "K", "M"]).agg({"kernel": "+".join, "grid": "+".join}).agg("/".join, axis=1)
    t = sources.own_table("gemm_settled")
    t = t[(t.fmt == "fp8_row") & ~t.run.str.startswith("repeat")].set_index(["N", "K", "M"]).median_us
    rows = []
    for m in (1, 2, 4, 8, 16):
        ratio = [
            t[n, kk, m] / t[n, kk, 32]
            for n, kk in {(i[0], i[1]) for i in t.index}
            if (n, kk, m) in k.index and k[n, kk, m] == k[n, kk, 32]
        ]
        rows.append([m, len(ratio), f"{np.median(ratio):.2f}", f"{max(ratio):.2f}"])
    return table(["M (order of measuring)", "layers", "time over that at M = 32, median", "largest"], rows)


def repeats():
    rows = []
    for fmt, kernel in sources.OWN_FORMATS.items():
        low, high = sources.repeat_band(fmt)
        rows.append([kernel, f"{100 * (low - 1):+.1f} % to {100 * (high - 1):+.1f} %"])
    return table(["kernel", "80 % of repeats in another process"], rows)


def chains():
    c = pd.read_csv(DATA / "chain.csv")
    p = c.pivot_table(index=["model", "fmt", "M"], columns="product", values="call_s")
    ratio = p["four in turn"] / p[["qkv", "o", "gate_up", "down"]].sum(axis=1)
    low, mid, high = np.quantile(ratio, [0.1, 0.5, 0.9])
    return f"{len(ratio)} chains: median {mid:.3f}, 80 % between {low:.3f} and {high:.3f}."


def correlation():
    rows, every = [], []
    for fmt, kernel in sources.OWN_FORMATS.items():
        data, t = sources.own_gemm_rows(fmt)
        guess, _, _ = held_out(data, kernel, sources.OWN_SETTINGS[kernel], 132)
        t = t.assign(error=np.log(data.time_s / guess))
        t[["model", "op"]] = t.layer.str.split(".", expand=True)
        t = t[t.op.isin(["qkv", "o", "gate_up", "down"]) & ~t.run.str.startswith("repeat")]
        pairs = t.pivot_table(index=["model", "M"], columns="op", values="error").corr(min_periods=10).to_numpy()
        every.append(float(np.nanmean(pairs[np.triu_indices(4, 1)])))
        rows.append([kernel, f"{every[-1]:.2f}"])
    return table(["kernel", "mean correlation"], [*rows, ["mean", f"{np.mean(every):.2f}"]])


def steps():
    s = pd.read_csv(DATA / "step.csv")
    rows = []
    for (model, fmt, phase, seq), g in s.groupby(["model", "fmt", "phase", "seq"], sort=False):
        whole = g[g.kernel.str.startswith("whole")].mean_us.iloc[0]
        g = g[~g.kernel.str.startswith("whole")]
        busy = float((g.calls * g.mean_us).sum())
        count = int(g.calls.sum())
        gap = (whole - busy) / count
        rows.append([model, fmt, phase, seq, f"{count / 8:.0f}", f"{whole / 8:.0f}", f"{busy / 8:.0f}", f"{gap:.2f}"])
    head = ["model", "format", "phase", "tokens", "kernels per layer", "layer, us", "kernels, us", "gap, us"]
    return table(head, rows)


def kernels():
    k = pd.read_csv(DATA / "kernels.csv")
    lines = []
    for fmt, g in k.groupby("fmt", sort=False):
        names = g.kernel.value_counts()
        short = ", ".join(f"`{n}` ({c})" for n, c in names.head(4).items())
        lines.append([fmt, len(names), short])
    return table(["format", "kernels", "the most frequent"], lines)


if __name__ == "__main__":
    print(f"""# Why measurements of one GPU differ

Produced by `python reports/h200_variation_summary.py` from `reports/h200_variation/*.csv` and
`hwmodels/measurements/gemm_settled.csv`: one H200 SXM each of two runs, PyTorch 2.11, CUDA 13.0, driver 580.159, power
limit 700 W, clocks not locked (1980 MHz at most).

## The power limit

One product in a loop after a pause. Products reach the power limit (`nvidia-smi` names it as the reason) after 30 to
60 ms and the clock falls from 1980 to between 1410 and 1560 MHz; loads that wait for memory stay as they are.

{throttle()}

## Recovery

After such a load the clock needs a tenth of a second to come back. Kernels that wait for latency show it: FP8 with
scales per row launches the same kernel with the same grid for M = 1 to 128, and yet the sizes that were measured first,
just after another format's M = 8192, take longer.

{recovery()}

So "row-wise FP8 has a slower kernel at M <= 2" was mostly an effect of the order: of the recorded layers only
28672 x 4096 has another kernel there (M <= 4). The two earlier campaigns have the effect throughout.

## Repeats

The same layers in other processes, settled.

{repeats()}

## Chains

The four products of a layer in turn, over the sum of each alone: what composing kernels leaves out.

{chains()}

## Correlation of held-out errors

Between the layers of one model at the same M.

{correlation()}

## Kernels inside a compiled step

Eight layers, one CUDA graph.

{steps()}

## Kernels by format

{kernels()}

For M >= 512 FP8 with one scale per tensor launches the tiles that bf16 launches at half the K (same bytes, same
instructions): its correction is borrowed from there.""")
