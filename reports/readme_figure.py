"""The first figure of the README: what low precision gains in decode, against the batch.

python reports/readme_figure.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import hwmodels
from hwmodels.predicted import Prediction, Speedup, speedup
from qsim.plots.speedup import Curve, speedup_figure
from qsim.plots.style import save

OUT = Path(__file__).parent / "figures" / "decode_speedup.svg"
DEVICE, MODEL, CONTEXT = "l40s", "llama-3-8b", 1024
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
SCHEMES = {
    "w4a16-g128": "W4A16: 4-bit weights in groups of 128",
    "fp8-rowwise": "FP8: weights and activations",
    "fp8-rowwise-kvfp8": "FP8, and an FP8 KV cache",
}


def gain(scheme: str, batch: int) -> Speedup:
    """How many times faster than BF16, with its 80 % band."""
    return speedup(predicted(scheme, batch), predicted("bf16", batch))


def predicted(scheme: str, batch: int) -> Prediction:
    made = hwmodels.predict(DEVICE, MODEL, scheme, "decode", batch, CONTEXT)
    assert made.fits, f"{scheme}, batch {batch}: the figure shows only what fits on one {DEVICE}"
    return made


def main() -> None:
    curves = []
    for scheme, label in SCHEMES.items():
        gains = [gain(scheme, b) for b in BATCHES]
        value, low, high = (np.array([float(getattr(g, part)) for g in gains]) for part in ("value", "low", "high"))
        curves.append(Curve(label=label, x=np.array(BATCHES, float), value=value, low=low, high=high))
        print(scheme, *(f"{b}: {v:.2f}x" for b, v in zip(BATCHES, value, strict=True)), sep="  ")
    title = f"Llama-3-8B on an L40S: decode, {CONTEXT} tokens of context"
    save(speedup_figure({"": curves}, title=title, ylabel="speed-up over BF16 (x)"), OUT)
    print(f"wrote reports/figures/{OUT.name}")


if __name__ == "__main__":
    main()
