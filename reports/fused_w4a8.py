"""What it costs that a W4A8 kernel feeds INT4 codes as subnormal E4M3 numbers, and what normal ones would give.

    python reports/fused_w4a8.py        # prints reports/fused_w4a8.md

`humming.w4a8_fp8` moves the three magnitude bits of a code into the mantissa of an E4M3 number: code c becomes
c * 2^-9, and all codes but -8 are subnormal. Hopper's tensor core keeps 13 fraction bits below the largest exponent of
a step and does not normalise subnormals: each has the exponent of the smallest normal number, whatever its value. Here
the same codes are also fed as c * 2^-6, where every code but 0 is normal. Both are exact operands, multiplied by a
power of two afterwards; only what the accumulator keeps of the products differs.
"""

from __future__ import annotations

import numpy as np
from _machine import describe

import qsim
from qsim.kernels.fused_gemm import epilogue, sums
from qsim.kernels.operands import quantized, weight_operand
from qsim.kernels.pipelines import get_pipeline
from qsim.tensorcore import Preset, matmul

F32 = np.float32
ROW = get_pipeline("humming.w4a8_fp8")
TOKENS, FEATURES, GROUP = 32, 256, 128
SIZES = (512, 2048, 4096, 8192)
BYTES = 16384


def activations(kind: str, k: int) -> np.ndarray:
    """float32 (TOKENS, k) from a seed. `wide`: columns times 2^-6..6. `positive`: magnitudes. `outlier`: one column in
    64 is 50 times larger."""
    draw = np.random.default_rng(k)
    x = draw.standard_normal((TOKENS, k)).astype(F32)
    if kind == "wide":
        x *= np.exp2(draw.integers(-6, 7, k)).astype(F32)
    if kind == "positive":
        x = np.abs(x)
    if kind == "outlier":
        x[:, ::64] *= 50
    return x


def weight(w: np.ndarray) -> qsim.QuantizedTensor:
    part = qsim.scheme.TensorScheme(format="int4", granularity=f"group({GROUP})", scale_format="bfloat16")
    return qsim.quantize(w, qsim.get_scheme("W4AFP8").replace(weight=part))


def placed(a: np.ndarray, q: qsim.QuantizedTensor, power: int) -> np.ndarray:
    """The kernel's float32 registers when code c is the E4M3 number c * 2^power."""
    b = qsim.encode(np.ldexp(q.integers.astype(F32), power), "float8_e4m3fn")
    how = Preset(name="placed", instruction=ROW.instruction, promote_every=GROUP, promotion="ffma", block=(1, 1, GROUP))
    left = np.full((len(a), q.shape[1] // GROUP), 2.0**-power, F32)
    return matmul(a, b, preset=how, scale_a=left, scale_b=q.scales).view(F32)


def error(y: np.ndarray, exact: np.ndarray) -> float:
    """Relative Frobenius error."""
    return float(np.linalg.norm(y - exact) / np.linalg.norm(exact))


def gemms() -> None:
    heads = ("x", "K", "error, subnormal", "error, normal", "times larger", "bias, subnormal", "bias, normal",
             "BF16 outputs that differ", "wrong BF16, subnormal", "wrong BF16, normal")  # fmt: skip
    print(f"| {' | '.join(heads)} |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for kind in ("normal", "wide", "positive", "outlier"):
        for k in SIZES:
            q = weight(np.random.default_rng(1).standard_normal((FEATURES, k)).astype(F32))
            if kind == "positive":
                q = weight(np.abs(np.random.default_rng(1).standard_normal((FEATURES, k))).astype(F32))
            a, scales = quantized(ROW, activations(kind, k), q.scheme.activation, k, None)
            given = qsim.decode(a, "float8_e4m3fn", dtype=np.float64)
            exact = given @ q.dequantize().astype(np.float64).T
            subnormal, normal = placed(a, q, -9), placed(a, q, -6)
            b, offset = weight_operand(ROW, q)
            np.testing.assert_array_equal(subnormal, sums(ROW, a, b, scales, q))  # it is the kernel's row
            out = [epilogue(ROW, r, scales, q, offset) for r in (subnormal, normal, exact.astype(F32))]
            differ = np.mean(out[0] != out[1])
            wrong = [np.mean(o != out[2]) for o in out[:2]]
            errors = [error(r, exact) for r in (subnormal, normal)]
            bias = [float(np.sum((r - exact) * np.sign(exact)) / np.sum(np.abs(exact))) for r in (subnormal, normal)]
            print(
                f"| {kind} | {k} | {errors[0]:.2e} | {errors[1]:.2e} | {errors[0] / errors[1]:.1f} | {bias[0]:+.1e} | "
                f"{bias[1]:+.1e} | {100 * differ:.1f} % | {100 * wrong[0]:.1f} % | {100 * wrong[1]:.1f} % |",
                flush=True,
            )


def model() -> None:
    """The embedded model with every linear layer, the head included, by each placement."""
    float_model = qsim.load("tiny")
    text = qsim.models.tiny_text("test")
    packed: dict[str, qsim.QuantizedTensor] = {}

    def engine(power: int | None):
        def run(layer, x):
            if layer.name not in packed:
                packed[layer.name] = weight(layer.weight)
            q = packed[layer.name]
            a, scales = quantized(ROW, x, q.scheme.activation, x.shape[1], None)
            if power is None:  # products and sums in float64
                given = qsim.decode(a, "float8_e4m3fn", dtype=np.float64)
                registers = (given @ q.dequantize().astype(np.float64).T).astype(F32)
            else:
                registers = placed(a, q, power)
            return epilogue(ROW, registers, scales, q, 0)

        return run

    print("| operands | bits per byte |")
    print("|---|---|")
    found = []
    for what, power in (("subnormal, as the kernel", -9), ("normal", -6), ("exact sums", None)):
        changed = float_model.replace(linear_settings={"*": {"engine": engine(power)}})
        found.append(qsim.evaluate(changed, text, max_bytes=BYTES).bits_per_byte)
        print(f"| {what} | {found[-1]:.6f} |", flush=True)
    print(f"| unquantised model | {qsim.evaluate(float_model, text, max_bytes=BYTES).bits_per_byte:.6f} |")
    between = min(found[:2]) <= found[2] <= max(found[:2])
    print(
        f"\nThe placements differ by {abs(found[0] - found[1]):.1e} bits per byte; exact sums lie "
        f"{'between them: what the accumulator drops acts as noise here, not as a loss' if between else 'outside'}."
    )


def main() -> None:
    print("# INT4 codes as subnormal E4M3 numbers: what the W4A8 kernel loses\n")
    print(*(f"* {line}" for line in describe("numpy", "numba")), sep="\n")
    print()
    assert __doc__ is not None
    print(__doc__.split("\n\n", 2)[2])
    print("Errors of the float32 registers before the output is rounded, relative to exact sums of the same operands;")
    print(
        f"M = {TOKENS}, N = {FEATURES}. Bias: mean error away from zero relative to the mean magnitude. Wrong: not the"
    )
    print("BF16 number that exact sums give.\n")
    gemms()
    print(f"\nThe embedded model, {BYTES} bytes of its held-out text, every linear layer, the head included:\n")
    model()


if __name__ == "__main__":
    main()
