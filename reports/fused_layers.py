"""Whole layers bit for bit: every operator of recorded decoder blocks, and the functions and reductions below them.

    python reports/fused_layers.py          # prints reports/fused_layers.md

tests/golden holds what an H200 returned: h200_block.npz every activation of block 0 of the embedded model on 64 tokens
(of the FP8 and W4A16 variants the first 16 tokens, and the SHA-256 of all), h200_functions.npz hashes of functions over
all inputs, h200_model.npz the SHA-256 of every activation of all blocks, and sums and softmax of many lengths.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

import qsim
from qsim.kernels import eager
from qsim.models import EagerRun, Model, load, run_eager
from qsim.models.families import block_names
from qsim.scheme import Scheme, TensorScheme, from_codes
from qsim.tensorcore import approximate, cuda_math

F32, U32 = np.float32, np.uint32
HOME = Path(__file__).parents[1]
GOLDEN, TINY = HOME / "tests" / "golden", HOME / "qsim" / "models" / "tiny"
TOKENS = 64
KERNELS = {"bf16": None, "w4a16": "humming", "fp8": "scaled_mm"}
W4A16 = Scheme(
    weight=TensorScheme(format="int4", granularity="group(128)", scale_format="bfloat16"),
    activation=TensorScheme(format="bfloat16"),
)
SOME = (0x00, 0x2F, 0x3E, 0x3F, 0x40, 0x42, 0x7E, 0x80, 0xBF, 0xC0, 0xC2)  # of 256 blocks of 2^24 inputs


def recordings(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and notes of a file of tests/golden."""
    with np.load(GOLDEN / f"h200_{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    return arrays, json.loads(arrays.pop("notes").tobytes())


def tokens() -> np.ndarray:
    """NUL and the first bytes of the embedded test text, as the recorder took them."""
    return np.frombuffer(b"\0" + (TINY / "test.txt").read_bytes()[: TOKENS - 1], np.uint8).astype(np.int64)


def generator(*words: Any) -> np.random.Generator:
    """NumPy's PCG64 seeded by the CRC-32 of the words, as the recorders have it."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(" ".join(map(str, words)).encode())))


def sha256(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def variant(model: Model, label: str) -> Model:
    """The embedded model as the recorder quantised it: BF16 as it is, W4A16 round to nearest with the largest of 128
    over 7 as scale in BF16, FP8 with one scale per output channel."""
    if label == "bf16":
        return model
    tensors: dict[str, Any] = {}
    for name in (n for i in range(model.config.num_hidden_layers) for n in block_names(model.config, i).linears):
        weight: Any = model.tensors[f"{name}.weight"]
        if label == "fp8":
            tensors[f"{name}.weight"] = qsim.quantize(weight, "fp8-rowwise")
            continue
        groups = weight.reshape(len(weight), -1, 128)
        scale = qsim.cast(np.maximum(np.abs(groups).max(-1), F32(1e-8)) / F32(7), "bfloat16").astype(F32)
        codes = np.clip(np.rint(groups / scale[..., None]), -8, 7).astype(np.int8)
        tensors[f"{name}.weight"] = from_codes(codes.reshape(weight.shape), W4A16, scale)
    return model.replace(tensors=tensors)


def first_tokens(name: str, value: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The part of an activation that was recorded: of the first tokens, which later ones do not reach."""
    if value.shape == like.shape:
        return value
    return value[tuple(slice(size) for size in like.shape)]


def differing(label: str, run: EagerRun, arrays: dict[str, np.ndarray], digests: dict[str, str]) -> list[str]:
    """Rows of the table of one variant."""
    rows = []
    for name, value in run.activations.items():
        short = name.removeprefix("0.")
        recorded = arrays[f"block.{label}.{short}"]
        mine = first_tokens(short, value, recorded).view(recorded.dtype)
        same = "yes" if sha256(value) == digests[short] else "**no**"
        rows.append(
            f"| {label} | `{short}` | {mine.size:,} | {int((mine != recorded).sum())} | {value.size:,} | {same} |"
        )
    return rows


def check_blocks(out: list[str]) -> None:
    arrays, notes = recordings("block")
    model = load("tiny")
    out += ["| variant | activation | values compared | differ | of all 64 tokens | SHA-256 of all agrees |",
            "|---|---|---|---|---|---|"]  # fmt: skip
    for label, kernel in KERNELS.items():
        run = run_eager(variant(model, label), tokens(), kernel=kernel, blocks=1)
        out += differing(label, run, arrays, notes["block"]["sha256"][label])
    run = run_eager(model, tokens(), blocks=1, attention="math")
    recorded = arrays["sdpa.math"]
    mine = run.activations["0.attention"]
    out.append(f"| bf16, SDPA math | `attention` | {mine.size:,} | {int((mine != recorded).sum())} | {mine.size:,} | |")


def check_model(out: list[str]) -> None:
    arrays, notes = recordings("model")
    model = load("tiny")
    out += ["", "## All blocks, the final norm and the logits", "",
            "The whole embedded model on the same tokens; nothing recorded goes in.", "",
            "| variant | activations | values | SHA-256 agrees | first that differs | logits stored | differ |",
            "|---|---|---|---|---|---|---|"]  # fmt: skip
    for label, kernel in KERNELS.items():
        run = run_eager(variant(model, label), tokens(), kernel=kernel)
        digests = notes["model"]["sha256"][label]
        wrong = [name for name, value in run.activations.items() if sha256(value) != digests[name]]
        stored = arrays[f"model.{label}.logits"]
        assert run.logits is not None
        differ = int((run.logits[: len(stored)] != stored).sum())
        values = sum(value.size for value in run.activations.values())
        out.append(f"| {label} | {len(digests)} | {values:,} | {len(digests) - len(wrong)} of {len(digests)} | "
                   f"{wrong[0] if wrong else 'none'} | {stored.size:,} | {differ} |")  # fmt: skip


def check_lengths(out: list[str]) -> None:
    """More lengths and numbers of rows, by the hash of all sums."""
    notes = recordings("model")[1]["lengths"]
    wrong, seen = [], 0
    lengths = sorted({int(key.split(".")[0]) for key in notes["sums"]})
    for length in lengths:
        x = generator("few", length).standard_normal((256, length)).astype(F32)
        for key in (k for k in notes["sums"] if k.startswith(f"{length}.")):
            seen += 1
            if sha256(eager.row_sums(x[: int(key.split(".")[1])])) != notes["sums"][key]:
                wrong.append(key)
    out.append(f"| hashes of sums, 1 to 256 rows of {lengths[0]} to {lengths[-1]} | {seen} | {len(wrong)} |")
    wrong, seen = [], 0
    for key in (k for k in notes["softmax"] if int(k.split(".")[0]) <= eager.LONGEST_SOFTMAX):
        length = int(key.split(".")[0])
        x = generator("softmax", length).standard_normal((4, length)).astype(F32) * 4
        seen += 1
        given = eager.widen(eager.narrow(x)) if key.endswith("of_bf16") else x
        if sha256(eager.softmax(given)) != notes["softmax"][key]:
            wrong.append(key)
    out.append(f"| hashes of softmax, rows of 5 to {eager.LONGEST_SOFTMAX} | {seen} | {len(wrong)} |")


def check_reductions(out: list[str]) -> None:
    arrays, notes = recordings("block")
    anchors = notes["reductions"]["anchors"]
    out += ["", "## Order of reductions", "",
            "Rows of ones with 2^40 and -2^40 at two places: the sum counts what stands outside the smallest partial",
            "sum that holds both, so that all pairs together are the tree. Random rows beside them.", "",
            "| what | values compared | differ |", "|---|---|---|"]  # fmt: skip
    for what, function in (("sum", eager.row_sums), ("mean", lambda x: eager.row_means(x) * F32(x.shape[1]))):
        total = wrong = 0
        for key in (k for k in arrays if k.startswith(f"tree.{what}.")):
            length, chunk = map(int, key.split(".")[2:])
            for i, recorded in enumerate(arrays[key]):
                x = np.ones((length, length), F32)
                x[:, anchors[i]] = 2.0**40
                x[np.arange(length), np.arange(length)] = -(2.0**40)
                x[anchors[i]] = 1
                sums = np.concatenate([function(x[j : j + chunk]) for j in range(0, length, chunk)])
                wrong += int((np.rint(sums).astype(np.uint16) != recorded).sum())
                total += len(recorded)
        out.append(f"| trees of `{what}`, rows of 256 to 4096 | {total:,} | {wrong} |")
    for name in ("sum.f32", "mean_square.f32", "softmax.f32"):
        total = wrong = 0
        for length in (256, 512, 2048, 4096):
            draw = generator("rows", length)
            x = draw.standard_normal((16, length)).astype(F32)
            wide = x * np.exp2(draw.integers(-6, 7, length)).astype(F32)
            for label, values in (("normal", x), ("wide", wide)):
                codes = eager.narrow(values)
                if name == "softmax.f32" and length > eager.LONGEST_SOFTMAX:
                    continue
                mine = {
                    "sum.f32": lambda codes=codes: eager.row_sums(eager.widen(codes)),
                    "mean_square.f32": lambda codes=codes: eager.mean_squares(codes)[:, 0],
                    "softmax.f32": lambda codes=codes: eager.softmax(eager.widen(codes))[:2],
                }[name]()
                wrong += int((mine.view(U32) != arrays[f"rows.{label}.{length}.{name}"]).sum())
                total += mine.size
        out.append(f"| `{name}` of random rows | {total:,} | {wrong} |")


def check_functions(out: list[str]) -> None:
    arrays, _ = recordings("functions")
    out += ["", "## Functions of the hardware and of CUDA's library", "",
            "The hash of all outputs of a block of 2^24 inputs; blocks with NaN results, whose payloads differ, are",
            "left out. The law of each hardware function was compared with all 2^32 inputs on the device itself; here",
            "it is run for some blocks, and `expf` for all.", "",
            "| function | blocks of 2^24 inputs | hashes that differ |", "|---|---|---|"]  # fmt: skip
    evaluate = {
        **{f"{n}.approx{'.ftz' if ftz else ''}.f32": lambda x, n=n, ftz=ftz: approximate(n, x, ftz=ftz)
           for n in ("rcp", "rsqrt", "sqrt", "ex2") for ftz in (False, True)},
        "expf": cuda_math.expf,
    }  # fmt: skip
    for name, function in evaluate.items():
        seen = wrong = 0
        for number in range(256) if name == "expf" else SOME:
            x = ((U32(number) << U32(24)) + np.arange(1 << 24, dtype=U32)).view(F32)
            y = function(x)
            if np.isnan(y).any():
                continue
            seen += 1
            wrong += digest(y.view(U32)) != int(arrays[f"hash/{name}"][number])
        out.append(f"| `{name}` | {seen} | {wrong} |")


def digest(outputs: np.ndarray) -> int:
    """As `reports/h200_functions.py` has it."""
    from h200_functions import digest as recorded_digest

    return int(recorded_digest(outputs))


def main() -> None:
    from _machine import describe

    out = ["# Whole layers, bit for bit", "", *[f"* {line}" for line in describe("numpy", "numba")], "",
           "Block 0 of the embedded model on 64 tokens, from token ids to the second residual, against what PyTorch",
           "2.11 computed eagerly on an H200 with attention written out as Hugging Face does. Nothing recorded goes",
           "in: each activation is computed from those before it. `w4a16` runs its Linears on humming-kernels, `fp8`",
           "on `torch._scaled_mm` with scales of tokens and channels, `bf16` on cuBLAS.", ""]  # fmt: skip
    check_blocks(out)
    check_model(out)
    check_reductions(out)
    check_lengths(out)
    check_functions(out)
    print("\n".join(out))


if __name__ == "__main__":
    main()
