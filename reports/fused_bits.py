"""Every row of `qsim/kernels/pipelines.toml` against what an H200 returned: how many outputs differ.

    python reports/fused_bits.py --data DIR [--golden OUT.npz]      # prints reports/fused_bits.md

DIR holds humming_bits_512.npz, humming_bits_4096.npz and humming_bits.json, with the layout that
`../shared/reference/fused.md` describes; tests/golden holds a part of them, which --golden writes anew, and all of
h200_kernels.npz, which stores the first rows of each output and the SHA-256 of the whole.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from _machine import describe

import qsim
from qsim.kernels.operands import quantized
from qsim.kernels.pipelines import Pipeline, get_pipeline, list_pipelines
from qsim.kernels.stream_k import MOST_PARTS, partial_outputs, possible_outputs

F32 = np.float32
HOME = Path(__file__).parents[1]
SHAPES = {512: "256x512", 4096: "384x4096"}
FORMATS = {  # of the recording: scheme, bits of a code, row
    "w4a16_g128": ("W4A16", 4, "humming.w4a16"),
    "w4a16_g128_zp": ("W4A16", 4, "humming.w4a16"),
    "w3a16_g128": ("w3a16-g128-sym", 3, "humming.w3a16"),
    "w2a16_g128": ("w2a16-g128-sym", 2, "humming.w2a16"),
    "w8a16_ch": ("W8A16", 8, "humming.w8a16"),
    "mxfp4_a16": ("MXFP4A16", 4, "humming.mxfp4_a16"),
    "nvfp4_a16": ("NVFP4A16", 4, "humming.nvfp4_a16"),
    "w4a8_fp8": ("W4AFP8", 4, "humming.w4a8_fp8"),
    "mxfp4_fp8": ("mxfp4-fp8", 4, "humming.mxfp4_fp8"),
    "w4a8_int8": ("W4A8", 4, "humming.w4a8_int8"),
    "w8a8_fp8": ("fp8-rowwise", 8, "humming.w8a8_fp8"),
    "w8a8_int8": ("w8a8-channel-token", 8, "humming.w8a8_int8"),
}


def unpacked(words: np.ndarray, bits: int) -> np.ndarray:
    """Codes (rows, K) of words (rows, K * bits / 32) whose fields lie along K, least significant bits first."""
    rows = words.shape[0]
    flags = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    return np.packbits(flags.reshape(rows, -1, bits), axis=2, bitorder="little")[..., 0]


def weight(data: Any, name: str, shape: str) -> qsim.QuantizedTensor:
    """The weight of a recorded format, as its arrays hold it."""
    scheme, bits, _ = FORMATS[name]
    key = f"{name}.{shape}"
    zeros = data[f"{key}.zero_point"] if f"{key}.zero_point" in data else None
    more: dict[str, Any] = {}
    if zeros is not None:  # packed along N
        more["zero_points"] = np.ascontiguousarray(unpacked(np.ascontiguousarray(zeros.T), bits).T)
    if f"{key}.weight_scale_2" in data:
        more["tensor_scale"] = data[f"{key}.weight_scale_2"].view(F32)
    codes = unpacked(data[f"{key}.weight"], bits)
    return qsim.quantize.from_codes(codes, scheme, data[f"{key}.weight_scale"], **more)


def codes_of(values: np.ndarray) -> np.ndarray:
    """BF16 codes of float32 values that are BF16 numbers."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def schedule(config: str, k: int) -> dict[str, int]:
    """The arguments of `partial_outputs` that a recorded tile configuration means: with stream-K each block of threads
    has four steps of its tile; warps share the tile's K."""
    tile, warp = (int(re.findall(rf"{what}_shape.: .\d+, \d+, (\d+)", config)[0]) for what in ("block", "warp"))
    parts = "'use_stream_k': True" in config or '"use_stream_k": true' in config
    return {"length": 4 * tile if parts else k, "warps": tile // warp, "stretch": warp}


def count_humming(data: Any, configs: dict[str, Any], counts: dict[str, np.ndarray]) -> None:
    """Outputs compared and different of each format: batch-invariant, default scheduling where repeatable, and codes of
    activations."""
    for key in data:
        parts = key.split(".")
        if parts[0] == "x" or parts[-1] != "yi":
            continue
        name, shape, m, distribution, _ = parts
        row = FORMATS[name][2]
        packed = qsim.pack(weight(data, name, shape))
        x = data[f"x.{packed.shape[1]}.{m}.{distribution}"]
        y = codes_of(qsim.linear(x, packed, exact=True, kernel="humming"))
        stem = key.removesuffix(".yi")
        counts[f"{name} yi"] += count(y, data[key])
        if f"{stem}.y" in data:
            how = schedule(configs[f"{name}.{shape}.{m}"]["config"], packed.shape[1])
            values = possible_outputs(partial_outputs(x, packed, "humming", **how))
            assert len(values) == 1
            counts[f"{name} y"] += count(codes_of(values[0]), data[f"{stem}.y"])
        if f"{stem}.q" in data:
            how = packed.scheme.activation
            q, scale = quantized(get_pipeline(row), x, how, packed.shape[1], None)
            counts[f"{name} activations"] += count(q.view(np.uint8), data[f"{stem}.q"])
            counts[f"{name} activations"] += count(scale.view(np.uint32), data[f"{stem}.qs"].reshape(-1))
            given = (data[f"{stem}.q"], data[f"{stem}.qs"].view(F32))
            again = codes_of(qsim.linear(given, packed, exact=True, kernel="humming"))
            counts[f"{name} yi"] += count(again, data[f"{stem}.yi"])


def count(got: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    assert got.shape == recorded.shape
    return np.array([got.size, int((got != recorded).sum())])


# ---- h200_kernels.npz: inputs are made again from their seeds, outputs are compared with their rows and their hashes


def recorder() -> Any:
    """The script that recorded it."""
    path = HOME / "reports" / "h200_fused_record.py"
    spec = importlib.util.spec_from_file_location("h200_fused_record", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


KINDS = {  # of h200_kernels: kernel, scheme
    "tinygemm": ("tinygemm", "W4A16"),
    "triton": ("triton", "W4A16"),
    "scaled.tensor": ("scaled_mm", "fp8-tensor"),
    "scaled.row": ("scaled_mm", "fp8-rowwise"),
    "scaled.tensor.slow": ("scaled_mm_precise", "fp8-tensor"),
    "scaled.row.slow": ("scaled_mm_precise", "fp8-rowwise"),
    "scaled.block.slow": ("scaled_mm_precise", "fp8-block128"),
    "scaled.group.slow": ("scaled_mm_precise", "fp8-group128"),
}


def scheme_of(name: str) -> qsim.Scheme:
    """A scheme by name, and the one that has none: one scale for each row and 128 of K of both operands."""
    if name != "fp8-group128":
        return qsim.get_scheme(name)
    block = qsim.get_scheme("fp8-block128")
    part = qsim.scheme.TensorScheme(format="e4m3", granularity="group(128)")
    return block.replace(weight=part)


def run_kind(kind: str, made: dict[str, np.ndarray]) -> tuple[Pipeline, np.ndarray]:
    """The row that runs a recorded kernel, and its BF16 codes."""
    kernel, name = KINDS[kind]
    x: Any = made["x"]
    if name == "W4A16":
        q = qsim.quantize.from_codes(made["codes"], name, made["scale"], zero_points=made["zero"])
    else:
        scale, xs = {
            "tensor": (made["w_scale"][:1, 0], made["x_scale"][:1]),
            "row": (made["w_scale"], made["x_scale"]),
            "block": (made["w_blocks"], made["x_blocks"]),
            "group": (made["w_groups"], made["x_blocks"]),
        }[kind.split(".")[1]]
        q = qsim.quantize.from_codes(made["we"], scheme_of(name), scale)
        x = (made["xe"], xs)
    packed = qsim.pack(q)
    from qsim.kernels.pipelines import choose

    y = qsim.linear(x, packed, exact=True, kernel=kernel)
    return choose(kernel, packed.scheme, len(y)), codes_of(y)


def count_kernels(counts: dict[str, np.ndarray], hashes: dict[str, np.ndarray]) -> None:
    record = recorder()
    with np.load(HOME / "tests" / "golden" / "h200_kernels.npz") as file:
        data = {key: file[key] for key in file.files}
    notes = json.loads(data["notes"].tobytes())
    for key, case in notes["kernels"]["cases"].items():
        kind, shape, m, distribution = key.rsplit(".", 3)
        n, k = map(int, shape.split("x"))
        row, y = run_kind(kind, record.inputs(n, k, int(m), distribution))
        counts[row.name] += count(y[: len(data[key])], data[key])
        hashes[row.name] += [1, hashlib.sha256(y.tobytes()).hexdigest() == case["sha256"]]
    for key, case in notes["stream_k"].items():
        name, shape, m = key.split(".")
        n, k = map(int, shape.split("x"))
        made, _ = record.fused_inputs(name, n, k, int(m))
        zeros = {"zero_points": made["zero"]} if "zero" in made else {}
        q = qsim.quantize.from_codes(made["codes"], FORMATS[name][0], made["weight_scale"], **zeros)
        y = codes_of(qsim.linear(made["x"], qsim.pack(q), exact=True, kernel="humming"))
        kept = data[f"stream_k.{key}.invariant"]
        counts[f"{FORMATS[name][2]} again"] += count(y[: len(kept)], kept)
        hashes[f"{FORMATS[name][2]} again"] += [
            1,
            hashlib.sha256(y.tobytes()).hexdigest() == case["sha256_of_invariant"],
        ]


COLUMNS, FEW_COLUMNS = 128, 4  # of the stored rows whose orders are followed: up to 8 parts, and more


def stream_k() -> None:
    """Which of the outputs that were seen with stream-K are in the set of possible ones."""
    record = recorder()
    with np.load(HOME / "tests" / "golden" / "h200_kernels.npz") as file:
        data = {key: file[key] for key in file.files}
    print("| case | parts of K | warps that share a part | values seen | not possible | elements with one answer |")
    print("|---|---|---|---|---|---|")
    for key, case in json.loads(data["notes"].tobytes())["stream_k"].items():
        name, shape, m = key.split(".")
        n, k = map(int, shape.split("x"))
        how = schedule(json.dumps(case["schedule"]).replace("[", "(").replace('\\"', '"'), k)
        count_of = -(-k // how["length"])
        head = f"| {key} | {count_of} of {how['length']} | {how['warps']}"
        if count_of > MOST_PARTS:
            print(f"{head} | {len(case['counts'])} outputs | orders not followed | |")
            continue
        made, _ = record.fused_inputs(name, n, k, int(m))
        zeros = made["zero"] if name.endswith("_zp") else None
        q = qsim.quantize.from_codes(made["codes"], FORMATS[name][0], made["weight_scale"], zeros)
        columns = COLUMNS if count_of <= 8 else FEW_COLUMNS
        parts = partial_outputs(made["x"][:2], qsim.pack(q), "humming", **how)[..., :columns]
        values = possible_outputs(parts)
        seen = (data[f"stream_k.{key}.seen"][:, :columns].astype(np.uint32) << 16).view(F32)
        distinct = [seen[..., i] for i in range(seen.shape[-1])]
        outside = sum(int((~(values == y[None]).any(axis=0)).sum()) for y in distinct)
        unique = float((values[0] == values[-1]).mean())
        print(f"{head} | {seen.size} | {outside} | {100 * unique:.0f} % |", flush=True)


# ---- the part that the tests keep

KEPT_ROWS = {512: 64, 4096: 32}
KEPT_DEFAULT = ("w4a16_g128", "w8a16_ch", "nvfp4_a16")  # of which outputs with the default scheduling are kept
KEPT_TOKENS = {512: ("1", "16", "72"), 4096: ("1", "16")}


def golden(data: dict[str, np.ndarray], k: int) -> dict[str, np.ndarray]:
    """The first rows of the weights and what belongs to them. MXFP4's largest block exponent must be among them."""
    kept, rows = {}, KEPT_ROWS[k]
    for key, array in data.items():
        parts = key.split(".")
        if parts[0] == "x":
            keep = parts[2] in KEPT_TOKENS[k]
        elif len(parts) == 3:
            keep = True
            if parts[2] == "zero_point":  # eight rows of codes to a word
                array = array[: rows // 8]
            elif parts[2] != "weight_scale_2":
                array = array[:rows]
        else:
            keep = parts[2] in KEPT_TOKENS[k] and (parts[4] != "y" or parts[0] in KEPT_DEFAULT)
            if parts[4] in ("y", "yi"):
                array = array[:, :rows]
        if keep:
            kept[key] = array
    full, part = data[f"mxfp4_fp8.{SHAPES[k]}.weight_scale"], kept[f"mxfp4_fp8.{SHAPES[k]}.weight_scale"]
    assert full.max() == part.max()
    return kept


def table(counts: dict[str, np.ndarray], hashes: dict[str, np.ndarray]) -> None:
    print("| row | takes | status | outputs compared | differ | whole outputs whose hash agrees |")
    print("|---|---|---|---|---|---|")
    by_row: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2, np.int64))
    for key, pair in counts.items():
        name = FORMATS[key.split()[0]][2] if key.split()[0] in FORMATS else key.split()[0]
        by_row[name] += pair
    for row in list_pipelines():
        compared, differ = by_row[row.name]
        agree = hashes.get(row.name, hashes.get(f"{row.name} again"))
        hashed = "" if agree is None else f"{agree[1]} of {agree[0]}"
        shown = (f"{compared:,}", f"{differ}") if compared else ("", "")
        print(f"| `{row.name}` | {row.takes} | {row.status} | {shown[0]} | {shown[1]} | {hashed} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--golden", type=Path)
    arguments = parser.parse_args()
    counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2, np.int64))
    hashes: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2, np.int64))
    kept: dict[str, np.ndarray] = {}
    for k in SHAPES:
        with np.load(arguments.data / f"humming_bits_{k}.npz") as file:
            data = {key: file[key] for key in file.files}
        count_humming(data, json.loads((arguments.data / "humming_bits.json").read_text(encoding="utf-8")), counts)
        kept |= golden(data, k)
    if arguments.golden is not None:
        np.savez_compressed(arguments.golden, **kept)  # type: ignore[arg-type]
    count_kernels(counts, hashes)
    print("# The bits of fused kernels: every row and how it is known\n")
    lines = [line for line in describe("numpy", "numba") if not line.startswith("Command")]
    print(*(f"* {line}" for line in lines), "* Command: python reports/fused_bits.py --data DIR", "", sep="\n")
    table(counts, hashes)
    print("\n## By recording\n")
    print(
        "`yi` is batch-invariant scheduling; `y` the default one where it is repeatable. Outputs of 8-bit activations"
    )
    print("are compared twice: from BF16, and from the recorded codes and scales.\n")
    print("| recording | compared | differ |")
    print("|---|---|---|")
    for key, (compared, differ) in counts.items():
        print(f"| {key} | {compared:,} | {differ} |")
    total = sum(counts.values(), np.zeros(2, np.int64))
    print(f"\nAll together {total[0]:,} values, {total[1]} differ.")
    print("\n## Stream-K: outputs that are possible\n")
    print(
        "Parts of K are rounded to BF16 and added in BF16 in the order in which they finish. 64 runs of each case; of"
    )
    print(
        f"the first two rows and {COLUMNS} columns of outputs ({FEW_COLUMNS} where there are more than 8 parts), every"
    )
    print("value seen.\n")
    stream_k()


if __name__ == "__main__":
    main()
