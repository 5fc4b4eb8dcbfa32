"""Record the approximate functions of an NVIDIA GPU over all 2^32 float32 inputs (needs PyTorch with CUDA and nvcc).

For every function of NAMES the outputs of each block of 2^24 inputs are hashed (`digest`). Tables over one or two
binades, and the laws (h200_functions.cu) that give every other output from them, are checked there: the device
evaluates the law on all inputs and counts, for every sign and exponent of the input, how many outputs it misses.
`squeeze` packs a table with integers alone; `qsim.tensorcore.functions`, whose data the second file is, gives it back.

    python reports/h200_functions.py OUT.npz qsim/tensorcore/functions.npz
"""

import ctypes
import json
import lzma
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

NAMES = (
    "rsqrt.approx.f32", "rsqrt.approx.ftz.f32", "ex2.approx.f32", "ex2.approx.ftz.f32", "rcp.approx.f32",
    "rcp.approx.ftz.f32", "lg2.approx.f32", "lg2.approx.ftz.f32", "sqrt.approx.f32", "sqrt.approx.ftz.f32",
    "tanh.approx.f32", "expf", "rsqrtf", "sigmoid: 1 / (1 + expf(-x))", "silu: x / (1 + expf(-x))", "__expf", "tanhf",
    "ex2.approx.ftz(x * log2(e))", "x * rsqrt.approx.ftz(x)",
)  # fmt: skip
HALVES = ("ex2.approx.ftz.bf16x2", "ex2.approx.f16x2", "tanh.approx.bf16x2", "tanh.approx.f16x2")
BLOCK = 1 << 24
TANH = range(-8, 3)  # exponents of the binades in which tanh.approx is neither the input nor 1


def digest(outputs):
    """The 64-bit hash of a block of outputs (uint32): the sum of splitmix64((i + 1) golden ^ output), modulo 2^64."""
    total = np.zeros(1, np.uint64)
    for first in range(0, len(outputs), 1 << 16):  # pieces that stay in the cache of a processor
        part = outputs[first : first + (1 << 16)]
        z = np.arange(first + 1, first + 1 + len(part), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z ^= part.astype(np.uint64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        total += (z ^ (z >> np.uint64(31))).sum(dtype=np.uint64)
    return int(total[0])


def _predicted(base, coefficients, segment):
    """Whole parts and fractions (24 bits) of the quadratics a 2^-24 + b 2^-32 j + c 2^-44 j^2 of every segment."""
    j = np.arange(segment, dtype=np.int64)
    a, b, c = (coefficients[:, i : i + 1].astype(np.int64) for i in range(3))
    value = a + ((b * j) >> 8) + ((c * (j * j)) >> 20) + (1 << 23)
    return (base[:, None].astype(np.int64) + (value >> 24)).reshape(-1), (value & 0xFFFFFF).reshape(-1)


def _order(fraction):
    """Elements by the fraction of their prediction: what rounding missed then stands together and packs well."""
    return np.argsort((fraction >> 12).astype(np.uint16), kind="stable")


def squeeze(table, segment=1 << 12):
    """Pack a smooth table of uint32, a whole number of segments: a quadratic in integers for each, and what it misses.

    Returns {repeat: every entry stands that many times in the table, base: uint32 [segments], coefficients: int64
    [segments, 3], residual: bytes of an LZMA stream of int8 in the order of `_order`}. Raises ValueError where a
    residual is beyond int8.
    """
    repeat = 1
    while len(table) > segment and (table[::2] == table[1::2]).all():
        table, repeat = table[::2], repeat * 2
    rows = table.reshape(-1, segment).astype(np.int64)
    j = np.arange(segment, dtype=np.int64)
    centre = (j - segment / 2) / segment
    design = np.stack((np.ones(segment), centre, centre * centre), 1)
    base = rows[:, 0]
    fit = np.linalg.lstsq(design, (rows - base[:, None]).T.astype(np.float64), rcond=None)[0]
    a, b, c = fit
    powers = np.stack((a - b / 2 + c / 4, (b - c) / segment, c / segment**2), 1)
    coefficients = np.rint(powers * np.array([2.0**24, 2.0**32, 2.0**44])).astype(np.int64)
    whole, fraction = _predicted(base.astype(np.uint32), coefficients, segment)
    residual = rows.reshape(-1) - whole
    if np.abs(residual).max() > 127:
        raise ValueError("the table is not smooth: a quadratic of each segment misses entries by more than 127")
    packed = lzma.compress(residual[_order(fraction)].astype(np.int8).tobytes(), preset=6)
    return {
        "repeat": np.array(repeat),
        "base": base.astype(np.uint32),
        "coefficients": coefficients,
        "residual": np.frombuffer(packed, np.uint8),
    }


def half(file, name):
    """Outputs (uint16) of a 16-bit function for all 65,536 input codes; the file holds their differences."""
    return np.cumsum(file[f"half/{name}"], dtype=np.uint16)


# name of the table: (function, first input, inputs)
TABLES = {
    "rcp": (5, 0x3F800000, 1 << 23),  # [1, 2)
    "rsqrt": (1, 0x3F800000, 1 << 24),  # [1, 4)
    "sqrt": (9, 0x3F800000, 1 << 24),
    "lg2": (7, 0x3F800000, 1 << 23),  # [1, 2)
    "lg2_below": (7, 0x3F000000, 1 << 23),  # [0.5, 1)
    **{f"tanh.{e}": (10, (127 + e) << 23, 1 << 23) for e in TANH},
}
# function: the law it follows, as (law, kind, flush, table); law and kind as in h200_functions.cu
LAWS = {
    0: (0, 1, 0, "rsqrt"), 1: (0, 1, 1, "rsqrt"), 2: (1, 0, 0, "ex2"), 3: (1, 0, 1, "ex2"), 4: (0, 0, 0, "rcp"),
    5: (0, 0, 1, "rcp"), 6: (2, 0, 0, "lg2"), 7: (2, 0, 1, "lg2"), 8: (0, 2, 0, "sqrt"), 9: (0, 2, 1, "sqrt"),
    10: (3, 0, 0, "tanh"),
}  # fmt: skip


def build(folder):
    source, library = Path(__file__).with_name("h200_functions.cu"), Path(folder) / "functions.so"
    target = "-gencode=arch=compute_90a,code=sm_90a"
    subprocess.run(["nvcc", "-O3", target, "-shared", "-Xcompiler", "-fPIC", source, "-o", library], check=True)
    return ctypes.CDLL(str(library))


def pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


class Device:
    """The compiled functions on tensors of this machine's GPU."""

    def __init__(self, library):
        import torch

        self.torch, self.library = torch, library
        self.total = torch.zeros(1, dtype=torch.int64, device="cuda")
        self.buffer = torch.empty(BLOCK, dtype=torch.int32, device="cuda")

    def check(self, error):
        if error:
            raise RuntimeError(f"CUDA error {error}")

    def evaluate(self, which, start, count, out=None):
        out = self.buffer[:count] if out is None else out
        self.check(self.library.evaluate(which, ctypes.c_uint(start), ctypes.c_ulonglong(count), pointer(out)))
        return out

    def power_at(self, inputs):
        """ex2.approx.ftz at float32 inputs."""
        out = self.torch.empty(inputs.numel(), dtype=self.torch.int32, device="cuda")
        self.check(self.library.evaluate_at(3, pointer(inputs), ctypes.c_ulonglong(inputs.numel()), pointer(out)))
        return out

    def digest(self, out):
        self.check(self.library.digest(pointer(out), ctypes.c_ulonglong(out.numel()), pointer(self.total)))
        return int(self.total.item()) & (2**64 - 1)

    def numpy(self, out):
        return out.cpu().numpy().view(np.uint32).copy()

    def follow(self, law, kind, flush, table, out, start, misses, examples):
        count = ctypes.c_ulonglong(out.numel())
        self.check(
            self.library.follow(law, kind, flush, pointer(table), pointer(out), ctypes.c_uint(start), count,
                                pointer(misses), pointer(examples))
        )  # fmt: skip


def record(out_path, tables_path):
    import torch
    from _gpu import guarded

    from qsim.tensorcore.functions import NAMES as KEPT
    from qsim.tensorcore.functions import unpacked

    store, notes = {}, {"torch": torch.__version__, "cuda": torch.version.cuda, "device": torch.cuda.get_device_name()}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(8) as pool:
        device = Device(build(folder))
        tables = {}
        for name, (which, start, count) in TABLES.items():
            tables[name] = device.evaluate(which, start, count, torch.empty(count, dtype=torch.int32, device="cuda"))
        tables["ex2"] = device.power_at((torch.arange(1 << 23, dtype=torch.float64, device="cuda") * 2.0**-23).float())
        jobs = {name: pool.submit(squeeze, device.numpy(tables[name])) for name in KEPT}
        laws = dict(tables)
        laws["lg2"] = torch.cat((tables["lg2"], tables["lg2_below"]))
        laws["tanh"] = torch.cat([tables[f"tanh.{e}"] for e in TANH])
        for which, name in enumerate(NAMES):
            hashes = np.zeros(256, np.uint64)
            misses = torch.zeros(512, dtype=torch.int64, device="cuda")
            examples = torch.zeros(1024, dtype=torch.int32, device="cuda")
            for block in range(256):
                out = device.evaluate(which, block << 24, BLOCK)
                hashes[block] = device.digest(out)
                if which in LAWS:
                    *law, table = LAWS[which]
                    device.follow(*law, laws[table], out, block << 24, misses, examples)
            store[f"hash/{name}"] = hashes
            if which in LAWS:
                store[f"misses/{name}"] = misses.cpu().numpy().astype(np.uint32)
                bins = [int(b) for b in misses.nonzero().view(-1).tolist()]
                seen = [hex(int(v) & 0xFFFFFFFF) for b in bins[:4] for v in examples[2 * b : 2 * b + 2]]
                print(name, "misses", int(misses.sum()), "in", bins[:8], "for example", seen, flush=True)
        for which, name in enumerate(HALVES):
            out = torch.empty(65536, dtype=torch.int16, device="cuda")
            device.check(device.library.halves(which, pointer(out)))
            store[f"half/{name}"] = np.diff(out.cpu().numpy().view(np.uint16), prepend=np.uint16(0))
        guarded("PyTorch", of_torch, device, store, notes)
        packed = {name: job.result() for name, job in jobs.items()}
        for name, parts in packed.items():
            same = np.array_equal(unpacked(parts), device.numpy(tables[name]))
            print(name, "repeat", int(parts["repeat"]), "packed to", len(parts["residual"]), "bytes, restored", same,
                  flush=True)  # fmt: skip
            if not same:
                raise RuntimeError(f"the packed table {name} does not give back the recorded one")
        np.savez_compressed(tables_path, **{f"{n}/{key}": v for n, parts in packed.items() for key, v in parts.items()})
    store["notes"] = np.frombuffer(json.dumps(notes).encode(), np.uint8)
    np.savez_compressed(out_path, **store)
    print("done", f"{Path(out_path).stat().st_size} bytes", flush=True)


def of_torch(device, store, notes):
    """What PyTorch's float32 and 16-bit functions give: on how many of 2^32 inputs they differ from those of NAMES."""
    import torch

    functions = {
        "rsqrt": torch.rsqrt, "exp": torch.exp, "exp2": torch.exp2, "log2": torch.log2, "reciprocal": torch.reciprocal,
        "sqrt": torch.sqrt, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "silu": torch.nn.functional.silu,
    }  # fmt: skip
    candidates = {"rsqrt": (0, 1, 12), "exp": (11, 15, 17), "exp2": (2, 3), "log2": (6, 7), "reciprocal": (4, 5),
                  "sqrt": (8, 9, 18), "tanh": (10, 16), "sigmoid": (13,), "silu": (14,)}  # fmt: skip
    notes["differences"] = {}
    for name, function in functions.items():
        hashes = np.zeros(256, np.uint64)
        differ = dict.fromkeys(candidates[name], 0)
        for block in range(256):
            first = block << 24
            codes = torch.arange(first, first + BLOCK, device="cuda", dtype=torch.int64)
            x = torch.where(codes >= 2**31, codes - 2**32, codes).to(torch.int32).view(torch.float32)
            y = function(x).view(torch.int32)
            hashes[block] = device.digest(y)
            for which in differ:
                z = device.evaluate(which, first, BLOCK)
                both = ((y & 0x7FFFFFFF) > 0x7F800000) & ((z & 0x7FFFFFFF) > 0x7F800000)
                differ[which] += int(((y != z) & ~both).sum())
        store[f"hash/torch.{name}"] = hashes
        notes["differences"][name] = {NAMES[w]: n for w, n in differ.items()}
        print("torch", name, notes["differences"][name], flush=True)
    codes = torch.arange(65536, device="cuda", dtype=torch.int32)
    for kind, dtype in (("bf16", torch.bfloat16), ("f16", torch.float16)):
        x = codes.to(torch.int16).view(dtype)
        for name, function in (
            ("exp", torch.exp), ("silu", torch.nn.functional.silu), ("sigmoid", torch.sigmoid), ("rsqrt", torch.rsqrt),
            ("gelu_tanh", lambda v: torch.nn.functional.gelu(v, approximate="tanh")),
            ("gelu", torch.nn.functional.gelu), ("tanh", torch.tanh),
        ):  # fmt: skip
            y = function(x).view(torch.int16).cpu().numpy().view(np.uint16)
            store[f"half/torch.{name}.{kind}"] = np.diff(y, prepend=np.uint16(0))


if __name__ == "__main__":
    record(sys.argv[1], sys.argv[2])
