"""How far W4A16 kernels are from each other: in BF16 outputs, and in what the embedded model loses.

    python reports/fused_distance.py        # prints reports/fused_distance.md, draws reports/fused_distance.svg

Every kernel gets the same INT4 codes, BF16 scales of groups of 128, and BF16 activations, and returns BF16.

* humming (vLLM): each code times its scale is rounded to BF16, one chain over K of Hopper's `wgmma`;
* cuBLASLt: a GEMM of BF16 weights that were dequantised beforehand, by a kernel that does not split K;
* Triton: as humming, in `mma` instructions of 16 elements and another order of K;
* tinygemm (PyTorch): zero points are folded into an offset that is rounded to BF16, K is cut into eight slices, and
  every `mma` is added in float32;
* BF16 weights, exact: products of the same rounded weights as humming's, added in float64, then rounded to BF16 once;
* exact: the same with code times scale not rounded.

Two outputs are n ULP apart when n - 1 BF16 numbers lie between them. Outputs near zero, where large terms cancel, are
far apart by this measure however small their difference is: a distance of about 31,000 is another sign.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from _machine import describe

import qsim
from qsim.kernels.fused_gemm import epilogue, sums
from qsim.kernels.operands import bf16_codes, weight_operand
from qsim.kernels.pipelines import get_pipeline
from qsim.plots import style
from qsim.plots.distance import Change, distance_figure

F32, F64 = np.float32, np.float64
TOKENS, FEATURES, GROUP, SHOWN = 32, 256, 128, 4096
SIZES = (512, 2048, SHOWN)
BYTES = 8192
EXACT, ROUNDED, PLAIN = "exact", "BF16 weights, exact", "float32, not quantised"
ROWS = {k: get_pipeline(f"{k.lower()}.{'bf16' if k == 'cuBLASLt' else 'w4a16'}")
        for k in ("humming", "cuBLASLt", "Triton", "tinygemm")}  # fmt: skip
NAMES = (EXACT, ROUNDED, *ROWS)
WEIGHTS = {"symmetric": "int4", "zero points": "uint4"}


def to_bf16(values: np.ndarray) -> np.ndarray:
    """Float32 values that are BF16 numbers, one rounding to nearest even."""
    return np.asarray(qsim.cast(values, "bfloat16"), F32)


def weight(w: np.ndarray, element: str) -> qsim.QuantizedTensor:
    scheme = qsim.get_scheme("W4A16" if element == "int4" else "W4A16_ASYM")
    return qsim.quantize(w, scheme.replace(weight=replace(scheme.weight, scale_format="bfloat16")))


def engines(q: qsim.QuantizedTensor) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Name to a function of float32 x (M, K) that gives the BF16 outputs (M, N) of these weights, as float32."""
    values = q.dequantize().astype(F64)  # exact: a code less its zero point has 5 bits, a scale has 8
    wide = {EXACT: values, ROUNDED: to_bf16(values).astype(F64)}

    def in_float64(name: str) -> Callable[[np.ndarray], np.ndarray]:
        return lambda x: to_bf16(to_bf16(x).astype(F64) @ wide[name].T)

    def fused(name: str) -> Callable[[np.ndarray], np.ndarray]:
        row = ROWS[name]
        b, offset = weight_operand(row, q)
        return lambda x: epilogue(row, sums(row, bf16_codes(x, x.shape[1]), b, None, q), None, q, offset)

    return {**{name: in_float64(name) for name in wide}, **{name: fused(name) for name in ROWS}}


def ulps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many BF16 numbers apart, for float32 values that are finite BF16 numbers; both zeros are one number."""
    places = []
    for v in (a, b):
        code = (v.view(np.uint32) >> 16).astype(np.int64)
        places.append(np.where(code & 0x8000, -(code & 0x7FFF), code))
    return np.abs(places[0] - places[1])


def inputs(kind: str, k: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 x (TOKENS, k) and w (FEATURES, k) from a seed. `positive`: magnitudes of both. `outlier`: one column of x
    in 64 is 50 times larger."""
    draw = np.random.default_rng(k)
    x, w = (draw.standard_normal((rows, k)).astype(F32) for rows in (TOKENS, FEATURES))
    if kind == "positive":
        x, w = np.abs(x), np.abs(w)
    if kind == "outlier":
        x[:, ::64] *= 50
    return x, w


def written(apart: np.ndarray) -> str:
    return f"{100 * np.mean(apart > 0):.2f} % / {100 * np.mean(apart > 1):.2f} % / {apart.max()}"


def gemms() -> dict[str, np.ndarray]:
    """Prints the table; gives the shares that differ at K = SHOWN of normal x, for each kind of weight."""
    pairs = ((ROUNDED, EXACT), ("humming", ROUNDED), ("Triton", ROUNDED), ("tinygemm", ROUNDED),
             ("humming", "Triton"), ("humming", "tinygemm"), ("humming", "cuBLASLt"))  # fmt: skip
    print(f"| weights | x | K | {' | '.join(f'{a} and {b}' for a, b in pairs)} |")
    print(f"|---|---|---|{'---|' * len(pairs)}")
    panels = {}
    for what, element in WEIGHTS.items():
        for kind in ("normal", "positive", "outlier"):
            for k in SIZES:
                x, w = inputs(kind, k)
                out = {name: run(x) for name, run in engines(weight(w, element)).items()}
                cells = " | ".join(written(ulps(out[a], out[b])) for a, b in pairs)
                print(f"| {what} | {kind} | {k} | {cells} |", flush=True)
                if kind == "normal" and k == SHOWN:
                    panels[what] = np.array([[np.mean(ulps(out[a], out[b]) > 0) for b in NAMES] for a in NAMES])
    return panels


def model(element: str) -> list[Change]:
    """The embedded model with every linear layer of its blocks by each kernel."""
    float_model, text = qsim.load("tiny"), qsim.models.tiny_text("test")
    made: dict[str, dict[str, Callable[[np.ndarray], np.ndarray]]] = {}

    def by(name: str) -> qsim.models.Model:
        def run(layer: qsim.models.Linear, x: np.ndarray) -> np.ndarray:
            if layer.name not in made:
                made[layer.name] = engines(weight(layer.weight, element))
            return made[layer.name][name](x)

        return float_model.replace(linear_settings={"model.layers.*": {"engine": run}})

    reference = qsim.models.Reference(by(EXACT))
    print("| kernel | bits per byte | above exact | standard error | KL, nats per token | same likeliest token |")
    print("|---|---|---|---|---|---|")
    changes = []
    for name in (*NAMES, PLAIN):
        if name == "cuBLASLt":  # its operands and its instruction are humming's, and so were its outputs above
            continue
        run = float_model if name == PLAIN else by(name)
        found = qsim.evaluate(run, text, max_bytes=BYTES, reference=reference)
        delta, error = found.bits_per_byte_delta, found.bits_per_byte_delta_se
        assert delta is not None and error is not None and found.top1_agreement is not None  # noqa: PT018
        print(
            f"| {name} | {found.bits_per_byte:.6f} | {delta:+.1e} | {error:.1e} | {found.kl:.1e} | "
            f"{100 * found.top1_agreement:.2f} % |",
            flush=True,
        )
        if name not in (EXACT, PLAIN):
            label = "humming, cuBLASLt" if name == "humming" else name
            changes.append(Change(label=label, bits_per_byte=delta, error=error))
    return changes


def main() -> None:
    print("# How far W4A16 kernels are from each other\n")
    print(*(f"* {line}" for line in describe("numpy", "numba")), sep="\n")
    print("\n![shares of outputs that differ, and what the model loses](fused_distance.svg)\n")
    assert __doc__ is not None
    print(__doc__.split("\n\n", 2)[2])
    print(f"M = {TOKENS}, N = {FEATURES}. Each cell: outputs that differ / by more than one ULP / largest distance in")
    print("ULP.\n")
    panels = gemms()
    print(f"\nThe embedded model, {BYTES} bytes of its held-out text, weights with zero points, every linear layer of")
    print("its blocks by the kernel; the rest of the model is float32. cuBLASLt gets the operands of humming.\n")
    changes = model("uint4")
    figure = distance_figure(
        NAMES, {f"{what}, K = {SHOWN}": shares for what, shares in panels.items()}, changes,
        title="The same INT4 weights by other kernels",
    )  # fmt: skip
    style.save(figure, Path(__file__).with_suffix(".svg"))


if __name__ == "__main__":
    main()
