"""The figures of matrix accumulation, and the table of errors behind them.

python reports/tensorcore_figures.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qsim.formats import decode, encode
from qsim.plots.accumulator import ErrorCurve, accumulation_error_figure, standstill_figure, width_error_figure
from qsim.plots.style import save
from qsim.tensorcore import generic, matmul

OUT = Path(__file__).parent / "figures"
WAYS = {
    "wgmma, one chain (fast accumulation)": {"instruction": "hopper.wgmma.f32.e4m3"},
    "promoted every 128 (cuBLASLt, DeepGEMM)": {"instruction": "hopper.wgmma.f32.e4m3", "promote_every": 128},
    "promoted every 32": {"instruction": "hopper.wgmma.f32.e4m3", "promote_every": 32},
    "mma.sync on Hopper (FP16 tensor core)": {"instruction": "hopper.mma.f32.e4m3"},
}
DATA = {"zero mean, N(0, 1)": lambda rng, shape: rng.standard_normal(shape),
        "one sign, U(0, 1)": lambda rng, shape: rng.random(shape)}  # fmt: skip
ROWS = 128


def operands(kind: str, k: int) -> tuple[np.ndarray, np.ndarray]:
    """E4M3 codes of two (128, K) matrices."""
    rng = np.random.default_rng(k)
    return tuple(encode(DATA[kind](rng, (ROWS, k)).astype(np.float32), "e4m3") for _ in range(2))  # type: ignore[return-value]


def error(a: np.ndarray, b: np.ndarray, **arguments: object) -> float:
    """Relative Frobenius error of a GEMM of codes."""
    exact = decode(a, "e4m3").astype(np.float64) @ decode(b, "e4m3").astype(np.float64).T  # below 2^53 units: exact
    got = matmul(a, b, **arguments).view(np.float32)  # type: ignore[arg-type]
    return float(np.linalg.norm(got - exact) / np.linalg.norm(exact))


def against_k() -> dict[str, list[ErrorCurve]]:
    lengths = 2 ** np.arange(5, 15)
    return {
        kind: [
            ErrorCurve(label=label, x=lengths, error=np.array([error(*operands(kind, int(k)), **way) for k in lengths]))
            for label, way in WAYS.items()
        ]
        for kind in DATA
    }


def standstill() -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """A = B = 1/16; rounds of 16 chained instructions, as run on a GH200 by a third party."""
    rounds = 2 ** np.arange(0, 14)
    sums: dict[str, np.ndarray] = {}
    for label, arguments in (("wgmma, F = 13", {"instruction": "hopper.wgmma.f32.e4m3"}),
                             ("promoted every 128", {"preset": "cublaslt_fp8_precise"})):  # fmt: skip
        values = []
        for n in rounds:
            codes = np.full((1, 512 * int(n)), 0x18, np.uint8)
            values.append(matmul(codes, codes, **arguments).view(np.float32)[0, 0])  # type: ignore[arg-type]
        sums[label] = np.array(values, np.float64)
    return rounds, sums, 2.0 * rounds


def against_width() -> list[ErrorCurve]:
    widths = np.arange(7, 27)
    curves = []
    for kind in DATA:
        for k in (512, 8192):
            a, b = operands(kind, k)
            errors = [error(a, b, instruction=generic(input="e4m3", products=32, fraction_bits=int(f))) for f in widths]
            curves.append(ErrorCurve(label=f"{kind}, K = {k}", x=widths, error=np.array(errors)))
    return curves


def main() -> None:
    OUT.mkdir(exist_ok=True)
    panels = against_k()
    save(accumulation_error_figure(panels, title="FP8 (E4M3) GEMM: what the accumulator loses"),
         OUT / "tensorcore_error_k.svg")  # fmt: skip
    rounds, sums, exact = standstill()
    save(standstill_figure(rounds, sums, exact=exact), OUT / "tensorcore_standstill.svg")
    marks = {"Hopper wgmma FP8: 13": 13, "Ampere: 24": 24, "Hopper FP16/BF16: 25": 25}
    save(
        width_error_figure(against_width(), marks, title="E4M3 products, L = 32, rounded to float32 after each step"),
        OUT / "tensorcore_error_width.svg",
    )
    for kind, curves in panels.items():
        print(f"\n{kind}: relative Frobenius error, M = N = {ROWS}")
        print(f"{'K':>7}" + "".join(f"{c.label[:26]:>28}" for c in curves))
        for i, k in enumerate(curves[0].x):
            print(f"{k:>7}" + "".join(f"{c.error[i]:>28.2e}" for c in curves))
    print(
        "\nrounds of 16 x K=32, operands 1/16:", dict(zip(rounds.tolist(), sums["wgmma, F = 13"].tolist(), strict=True))
    )


if __name__ == "__main__":
    main()
