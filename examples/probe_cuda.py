"""What does this GPU's matrix multiply compute? Probe it through torch, and check whole GEMMs against the emulator.

    python examples/probe_cuda.py                      # everything, on the current CUDA device
    python examples/probe_cuda.py --json result.json   # where the machine-readable result goes
    python examples/probe_cuda.py --emulate            # no GPU: the emulator plays the device, to try the script

Needs torch with CUDA and numpy. The bit-for-bit check and the naming of table rows need numba as well; without it they
are left out, and the output says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from qsim.tensorcore import probe

KINDS = {
    # name: (input a, input b, what to call)
    "bf16": ("bf16", "bf16", "torch.mm, float32 output"),
    "f16": ("f16", "f16", "torch.mm, float32 output"),
    "f16_f16acc": ("f16", "f16", "torch.mm, allow_fp16_accumulation"),
    "tf32": ("tf32", "tf32", "torch.mm, allow_tf32"),
    "f32": ("f32", "f32", "torch.mm, no TF32"),
    "e4m3_fast": ("e4m3", "e4m3", "torch._scaled_mm, use_fast_accum=True"),
    "e4m3_slow": ("e4m3", "e4m3", "torch._scaled_mm, use_fast_accum=False"),
    "e5m2_fast": ("e5m2", "e4m3", "torch._scaled_mm, use_fast_accum=True"),
    "e5m2_slow": ("e5m2", "e4m3", "torch._scaled_mm, use_fast_accum=False"),
    "s8": ("s8", "s8", "torch._int_mm"),
}

# what the emulator should run, by compute capability (major, minor) -> kind
RULES: dict[tuple[int, int], dict[str, dict[str, Any]]] = {
    (9, 0): {
        "bf16": {"preset": "cublaslt_bf16"},
        "f16": {"preset": "cublaslt_fp16"},
        "tf32": {"instruction": "hopper.wgmma.f32.tf32"},
        "e4m3_fast": {"preset": "cublaslt_fp8_fast"},
        "e4m3_slow": {"preset": "cublaslt_fp8_precise"},
        "e5m2_fast": {"preset": "cublaslt_fp8_fast", "instruction": "hopper.wgmma.f32.e5m2.e4m3"},
        "e5m2_slow": {"preset": "cublaslt_fp8_precise", "instruction": "hopper.wgmma.f32.e5m2.e4m3"},
        "s8": {"instruction": "hopper.wgmma.s32.s8"},
    },
    (8, 0): {
        "bf16": {"instruction": "ampere.mma.f32.bf16"},
        "f16": {"instruction": "ampere.mma.f32.f16"},
        "tf32": {"instruction": "ampere.mma.f32.tf32"},
        "s8": {"instruction": "ampere.mma.s32.s8"},
    },
    (8, 9): {
        "bf16": {"instruction": "ada.mma.f32.bf16"},
        "f16": {"instruction": "ada.mma.f32.f16"},
        "tf32": {"instruction": "ada.mma.f32.tf32"},
        "e4m3_fast": {"instruction": "ada.mma.f32.e4m3"},
        "e5m2_fast": {"instruction": "ada.mma.f32.e5m2.e4m3"},
        "s8": {"instruction": "ada.mma.s32.s8"},
    },
}
RULES[8, 6] = RULES[8, 0]

# none of these is among the recordings in tests/golden, nor is their K
SHAPES = (
    (48, 80, 96),
    (64, 64, 1024),
    (128, 256, 384),
    (256, 128, 768),
    (96, 208, 2048),
    (512, 512, 4096),
    (1024, 1024, 640),
)
DISTRIBUTIONS = ("normal", "wide", "positive")


class TorchDevice:
    """The calls of torch on one CUDA device, NumPy in and out."""

    def __init__(self) -> None:
        import torch

        if not torch.cuda.is_available():
            raise SystemExit("torch sees no CUDA device; use --emulate to try the script without one")
        self.torch = torch
        self.capability: tuple[int, int] = torch.cuda.get_device_capability()
        self.name = torch.cuda.get_device_name()
        self.types = {
            "bf16": torch.bfloat16,
            "f16": torch.float16,
            "tf32": torch.float32,
            "f32": torch.float32,
            "e4m3": getattr(torch, "float8_e4m3fn", None),
            "e5m2": getattr(torch, "float8_e5m2", None),
            "s8": torch.int8,
        }

    def describe(self) -> dict[str, Any]:
        t = self.torch
        return {
            "device": self.name,
            "capability": f"{self.capability[0]}.{self.capability[1]}",
            "torch": t.__version__,
            "cuda": t.version.cuda,
            "driver": _driver(),
        }

    def tensor(self, values: np.ndarray, text: str) -> Any:
        t = self.torch.from_numpy(np.ascontiguousarray(values))
        return t.to(self.types[text]).cuda()

    def codes(self, tensor: Any) -> np.ndarray:
        t = self.torch
        size = tensor.element_size()
        if tensor.dtype == t.int8:
            return tensor.cpu().numpy()
        words = {1: t.uint8, 2: t.int16, 4: t.int32}[size]
        return tensor.contiguous().view(words).cpu().numpy().view({1: np.uint8, 2: np.uint16, 4: np.uint32}[size])

    def multiply(self, kind: str, a: Any, b: Any, scale_a: Any = 1.0, scale_b: Any = 1.0, out: str = "f32") -> Any:
        """a (M, K) times b (N, K), transposed, as `KINDS` says."""
        t = self.torch
        matmul = t.backends.cuda.matmul
        if kind == "s8":
            return t._int_mm(a, b.t())
        if kind.startswith(("e4m3", "e5m2")):
            scales = [t.as_tensor(s, dtype=t.float32, device="cuda") for s in (scale_a, scale_b)]
            if scales[0].ndim:  # one per row of x and of w
                scales = [scales[0].reshape(-1, 1), scales[1].reshape(1, -1)]
            dtype = t.float32 if out == "f32" else t.bfloat16
            return t._scaled_mm(a, b.t(), *scales, out_dtype=dtype, use_fast_accum=kind.endswith("fast"))
        matmul.allow_tf32 = kind == "tf32"
        if hasattr(matmul, "allow_bf16_reduced_precision_reduction"):
            matmul.allow_bf16_reduced_precision_reduction = False
            matmul.allow_fp16_reduced_precision_reduction = False
        if kind in ("tf32", "f32"):
            return t.mm(a, b.t())
        if kind == "f16_f16acc":
            matmul.allow_fp16_accumulation = True
            try:
                return t.mm(a, b.t())
            finally:
                matmul.allow_fp16_accumulation = False
        if out == "bf16":
            return t.mm(a, b.t())
        return t.mm(a, b.t(), out_dtype=t.float32)

    def kernels(self, kind: str, a: Any, b: Any) -> list[str]:
        """Names of the GPU kernels of one call; empty where the profiler does not work."""
        try:
            activity = self.torch.profiler.ProfilerActivity.CUDA
            with self.torch.profiler.profile(activities=[activity]) as profile:
                self.multiply(kind, a, b)
                self.torch.cuda.synchronize()
            names = {
                e.key for e in profile.key_averages() if "memcpy" not in e.key.lower() and "memset" not in e.key.lower()
            }
            return sorted(n.split("(")[0] for n in names if not n.startswith(("cuda", "cuLaunch", "Activity")))
        except Exception:
            return []

    def random(self, shape: tuple[int, int], seed: int) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)

    def result(self, tensor: Any) -> np.ndarray:
        return tensor.float().cpu().numpy() if tensor.dtype == self.torch.bfloat16 else tensor.cpu().numpy()


class EmulatedDevice(TorchDevice):
    """The emulator in the place of a Hopper GPU: the script's own test."""

    def __init__(self) -> None:
        self.capability = (9, 0)
        self.name = "emulated Hopper"

    def describe(self) -> dict[str, Any]:
        return {"device": self.name, "capability": "9.0"}

    def tensor(self, values: np.ndarray, text: str) -> Any:
        from qsim.formats import encode

        if text == "s8":
            return values.astype(np.int8)
        names = {"f16": "float16", "f32": "float32"}
        return encode(values, names.get(text, text))

    def codes(self, tensor: Any) -> np.ndarray:
        return np.asarray(tensor)

    def multiply(self, kind: str, a: Any, b: Any, scale_a: Any = 1.0, scale_b: Any = 1.0, out: str = "f32") -> Any:
        from qsim.tensorcore import generic, matmul

        rules = {
            **RULES[9, 0],
            "f16_f16acc": {"instruction": "hopper.wgmma.f16.f16"},
            "f32": {"instruction": generic(input="f32", arithmetic="fma")},
        }
        scales = {} if kind in ("s8", "f16_f16acc") else {"scale_a": scale_a, "scale_b": scale_b}
        more = {"out_format": "bf16"} if out == "bf16" else {}
        return matmul(a, b, **rules[kind], **scales, **more)

    def kernels(self, kind: str, a: Any, b: Any) -> list[str]:
        return []

    def result(self, tensor: Any) -> np.ndarray:
        return (
            tensor if tensor.dtype == np.int32 else tensor.view(np.float32 if tensor.dtype == np.uint32 else np.float16)
        )


def _driver() -> str:
    try:
        import subprocess

        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.split("\n")[0].strip()
    except Exception:
        return "unknown"


def attempt(say: Callable[[str], None], what: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run one part; an error is a result too."""
    start = time.perf_counter()
    try:
        found = work()
    except Exception as error:
        sentence = " ".join(str(error).split())[:300]
        say(f"  {what}: not done, {type(error).__name__}: {sentence}")
        return {"error": f"{type(error).__name__}: {sentence}", "traceback": traceback.format_exc()[-2000:]}
    found["seconds"] = round(time.perf_counter() - start, 2)
    return found


def probe_kind(device: TorchDevice, kind: str, match: bool) -> dict[str, Any]:
    a_type, b_type, _ = KINDS[kind]

    def function(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return device.result(device.multiply(kind, device.tensor(a, a_type), device.tensor(b, b_type)))

    found = probe(function, input=a_type, input_b=b_type, match=match)
    record = dataclasses.asdict(found)
    record["k_order"] = found.k_order
    record["order"] = [list(group) for group in found.order[:6]]
    record["summary"] = found.summary()
    return record


def operands(device: TorchDevice, kind: str, shape: tuple[int, int, int], distribution: str) -> tuple[Any, Any]:
    m, n, k = shape
    x, w = device.random((m, k), 1), device.random((n, k), 2)
    if distribution == "wide":
        x = np.ldexp(x, np.random.default_rng(3).integers(-5, 6, k)[None, :]).astype(np.float32)
    elif distribution == "positive":
        x, w = np.abs(x), np.abs(w)
    if kind == "tf32":  # exact in TF32: libraries differ in how they round a float32 operand to it
        x, w = ((v.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) for v in (x, w))
    if kind == "s8":
        x, w = (np.clip(np.rint(v * 40), -128, 127).astype(np.int8) for v in (x, w))
    return device.tensor(x, KINDS[kind][0]), device.tensor(w, KINDS[kind][1])


def alternatives(rule: dict[str, Any], k: int) -> dict[str, dict[str, Any]]:
    """What else a library might have done, tried when the rule does not fit."""
    tries: dict[str, dict[str, Any]] = {}
    for split in (2, 3, 4, 5, 6, 8, 12, 16):
        tries[f"split_k={split}"] = {**rule, "split_k": split}
    base = {key: v for key, v in rule.items() if key != "preset"}
    if "preset" in rule:
        from qsim.tensorcore import get_preset

        base.setdefault("instruction", get_preset(rule["preset"]).instruction)
    for every in (32, 64, 128, 256, 512):
        if every < k:
            tries[f"promote_every={every}"] = {**base, "promote_every": every}
    tries["one chain"] = base
    for every in (16, 32, 64):
        for split in (2, 3, 4, 5, 6, 8, 12, 16):
            tries[f"promote_every={every}, split_k={split}"] = {**base, "promote_every": every, "split_k": split}
    return tries


def check_gemm(
    device: TorchDevice, kind: str, rule: dict[str, Any], shape: tuple[int, int, int], distribution: str
) -> dict[str, Any]:
    from qsim.tensorcore import matmul

    a, b = operands(device, kind, shape, distribution)
    expected = device.codes(device.multiply(kind, a, b))
    x, w = device.codes(a), device.codes(b)
    if expected.dtype == np.uint32 and kind == "s8":
        expected = expected.view(np.int32)
    mismatches = int((matmul(x, w, **rule) != expected).sum())
    record: dict[str, Any] = {
        "mismatches": mismatches,
        "outputs": int(expected.size),
        "kernels": device.kernels(kind, a, b),
    }
    if mismatches:
        tried = {}
        for name, other in alternatives(rule, shape[2]).items():
            try:
                tried[name] = int((matmul(x, w, **other) != expected).sum())
            except ValueError:
                continue
        record["alternatives"] = tried
        record["best"] = min(tried, key=lambda name: tried[name]) if tried else None
    return record


def check_scales(device: TorchDevice, rule: dict[str, Any], kind: str) -> dict[str, Any]:
    """In which order scales that are no powers of two meet the result: one scale per tensor, then one per row."""
    from qsim.tensorcore import matmul

    shape = (128, 256, 384)
    a, b = operands(device, kind, shape, "normal")
    rng = np.random.default_rng(4)
    found: dict[str, Any] = {}
    for name, sa, sb in (
        ("per_tensor", np.float32(0.0137), np.float32(0.0291)),
        ("per_row", rng.uniform(0.01, 1, 128).astype(np.float32), rng.uniform(0.01, 1, 256).astype(np.float32)),
    ):

        def call(sa: Any = sa, sb: Any = sb) -> dict[str, Any]:
            expected = device.codes(device.multiply(kind, a, b, sa, sb))
            x, w = device.codes(a), device.codes(b)
            return {
                order: int((matmul(x, w, **rule, scale_a=sa, scale_b=sb, scale_order=order) != expected).sum())
                for order in ("product_first", "a_first", "b_first")
            } | {"outputs": int(expected.size)}

        found[name] = attempt(lambda _: None, name, call)
    return found


def check_bf16_output(device: TorchDevice, kind: str, rule: dict[str, Any]) -> dict[str, Any]:
    from qsim.tensorcore import matmul

    a, b = operands(device, kind, (128, 256, 384), "normal")
    expected = device.codes(device.multiply(kind, a, b, out="bf16"))
    got = matmul(device.codes(a), device.codes(b), **rule, out_format="bf16")
    return {"mismatches": int((got != expected).sum()), "outputs": int(expected.size)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("probe_cuda.json"), help="where the result goes")
    parser.add_argument("--emulate", action="store_true", help="let the emulator play the device")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS), help="only these")
    parser.add_argument("--quick", action="store_true", help="fewer shapes")
    arguments = parser.parse_args()
    say: Callable[[str], None] = lambda text: print(text, flush=True)  # noqa: E731

    device = EmulatedDevice() if arguments.emulate else TorchDevice()
    report: dict[str, Any] = {
        "environment": {**device.describe(), "python": platform.python_version(), "numpy": np.__version__}
    }
    try:
        import numba

        report["environment"]["numba"] = numba.__version__
        emulator = True
    except ImportError:
        emulator = False
        say("numba is not installed: table rows are not named and GEMMs are not checked (pip install numba)")
    say("  ".join(f"{key} {value}" for key, value in report["environment"].items()))

    say("\nPROBES: parameters found from outputs alone")
    report["probes"] = {}
    for kind in arguments.kinds:
        say(f"\n{kind}: {KINDS[kind][2]}")
        found = attempt(say, kind, lambda kind=kind: probe_kind(device, kind, emulator))  # type: ignore[misc]
        report["probes"][kind] = found
        if "summary" in found:
            say("  " + found["summary"].replace("\n", "\n  "))

    rules = RULES.get(device.capability, {})
    report["gemms"], total, wrong = {}, 0, 0
    if emulator and rules:
        say("\nWHOLE GEMMS against the emulator, bit for bit (mismatches of outputs)")
        for kind in arguments.kinds:
            if kind not in rules:
                continue
            for shape in SHAPES[: 2 if arguments.quick else None]:
                for distribution in DISTRIBUTIONS[: 1 if kind == "s8" else None]:
                    name = f"{kind} {'x'.join(map(str, shape))} {distribution}"
                    record = attempt(
                        say, name, lambda k=kind, s=shape, d=distribution: check_gemm(device, k, rules[k], s, d)
                    )  # type: ignore[misc]
                    report["gemms"][name] = record
                    if "error" in record:
                        continue
                    total, wrong = total + record["outputs"], wrong + record["mismatches"]
                    if record["mismatches"] == 0:
                        say(f"  {name}: 0 of {record['outputs']}")
                        continue
                    best = record["best"]
                    other = f"; best of the alternatives: {best} with {record['alternatives'][best]}" if best else ""
                    say(f"  {name}: {record['mismatches']} of {record['outputs']}{other}  kernels: {record['kernels']}")
        for kind in ("e4m3_fast", "e4m3_slow"):
            if kind in arguments.kinds and kind in rules:
                record = attempt(say, f"{kind} scales", lambda k=kind: check_scales(device, rules[k], k))  # type: ignore[misc]
                report[f"{kind}_scales"] = record
                say(f"  {kind} scales, mismatches by order: {record}")
        for kind in ("e4m3_fast", "bf16"):
            if kind in arguments.kinds and kind in rules:
                record = attempt(say, f"{kind} bf16", lambda k=kind: check_bf16_output(device, k, rules[k]))  # type: ignore[misc]
                report[f"{kind}_bf16_output"] = record
                say(f"  {kind}, bf16 output: {record}")
        say(f"\nTOTAL: {wrong} mismatches of {total} outputs (without the checks of scales and bf16 output)")
        report["total"] = {"mismatches": wrong, "outputs": total}
    elif emulator:
        say(f"\nno rules for compute capability {device.capability}: GEMMs are not checked")
    arguments.json.write_text(json.dumps(report, indent=1, default=str))
    say(f"\nwritten: {arguments.json}")


if __name__ == "__main__":
    main()
