"""Memory and time of checkpoint conversion, on a made-up checkpoint with the layer sizes of Llama-3-70B.

    python reports/checkpoints.py --write        # reports/checkpoints.md; about 10 GB of disk for a few minutes

Every conversion runs in a process of its own. Its peak is the resident memory beyond what the same process held after
a conversion of a tiny checkpoint (imports, compiled loops). The requirement is the largest layer plus 1 GiB, where the
largest layer is one Linear as stored, in the source or the target, whichever is larger.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _machine import describe

from qsim.checkpoints.folder import ShardWriter, write_json
from qsim.models import ModelConfig
from qsim.models.checks import quantizable
from qsim.models.families import expected_tensors
from qsim.safetensors import Stored, integers, open_folder

HERE = Path(__file__).resolve().parent
GIB = 1 << 30
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672,
    "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 4096, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False, "hidden_act": "silu",
    "torch_dtype": "float16",
}  # fmt: skip
GROUP = 128


SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4,
         "vocab_size": 64}  # fmt: skip


def make(folder: Path, layout: str, layers: int, **changes: int) -> None:
    """Random words under the right names and shapes, one tensor at a time."""
    rng = np.random.default_rng(0)
    data = {**CONFIG, **changes, "num_hidden_layers": layers}
    config = ModelConfig.from_dict(data)
    folder.mkdir(parents=True)
    shards = ShardWriter(folder)
    linears = quantizable(config)
    for name, shape in expected_tensors(config).items():
        layer = name.removesuffix(".weight")
        if name not in linears or layer == "lm_head":
            shards.add(name, Stored(dtype="F16", bits=np.full(shape, 0.01, np.float16)))
            continue
        n, k = shape
        if layout == "gptq":
            groups = k // GROUP
            words = rng.integers(0, 1 << 32, (k // 8, n), dtype=np.uint32)
            shards.add(f"{layer}.qweight", Stored(dtype="I32", bits=words.view(np.int32)))
            zeros = np.full((groups, n // 8), 0x77777777, np.uint32).view(np.int32)
            shards.add(f"{layer}.qzeros", Stored(dtype="I32", bits=zeros))
            shards.add(f"{layer}.scales", Stored(dtype="F16", bits=np.full((groups, n), 0.002, np.float16)))
            shards.add(f"{layer}.g_idx", integers(np.arange(k) // GROUP, "I32"))
        else:
            codes = rng.integers(0, 0x78, shape, dtype=np.uint8)
            shards.add(f"{layer}.weight", Stored(dtype="F8_E4M3", bits=codes))
            blocks = (-(-n // 128), -(-k // 128))
            shards.add(f"{layer}.weight_scale_inv", Stored(dtype="F32", bits=np.full(blocks, 2e-4, np.float32)))
    shards.close()
    if layout == "gptq":
        how = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False}
    else:
        how = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    write_json(folder / "config.json", {**data, "quantization_config": how})


CODE = """
import json, sys, time
from qsim.checkpoints import convert

def status(key):
    line = next(x for x in open("/proc/self/status") if x.startswith(key + ":"))
    return int(line.split()[1])

source, warm, target, layout, dequantize = sys.argv[1:]
options = {"dequantize": True} if dequantize == "yes" else {}
convert(warm, target + ".warm", layout, **options)
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts anew; what exec inherits is not counted
before = status("VmRSS")
start = time.perf_counter()
written = convert(source, target, layout, **options)
seconds = time.perf_counter() - start
peak = status("VmHWM") - before
print(json.dumps({"peak": peak * 1024, "seconds": seconds, "bytes": written.total_bytes}))
"""


def largest_layer(folder: Path) -> int:
    """Bytes of the largest Linear (or embedding) as stored, its scales included."""
    sizes: dict[str, int] = {}
    for name, entry in open_folder(folder).items():
        layer = name.rpartition(".")[0]
        sizes[layer] = sizes.get(layer, 0) + entry.nbytes
    return max(sizes.values())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="write reports/checkpoints.md")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where to make the checkpoints")
    args = parser.parse_args()
    base = Path(tempfile.mkdtemp(dir=args.folder))
    rows = []
    try:
        for layout, targets in {
            "gptq": [("compressed-tensors", "no"), ("awq", "no"), ("gptq_v2", "no"), ("plain", "yes")],
            "fp8": [("compressed-tensors", "no")],
        }.items():
            make(base / layout, layout, args.layers)
            make(base / f"{layout}-small", layout, 1, **SMALL)
            total = open_folder(base / layout).nbytes
            for target, dequantize in targets:
                out = base / "out"
                command = [sys.executable, "-c", CODE, base / layout, base / f"{layout}-small", out, target, dequantize]
                result = subprocess.run([str(c) for c in command], cwd=HERE.parent, text=True, capture_output=True,
                                        check=True)  # fmt: skip
                got = json.loads(result.stdout)
                largest = max(largest_layer(base / layout), largest_layer(out))
                start = time.perf_counter()
                copied = 0
                for path in (base / layout).glob("*.safetensors"):  # what a copy of the source costs, in this run
                    shutil.copyfile(path, base / "copy")
                    copied += path.stat().st_size
                copy_seconds = time.perf_counter() - start
                (base / "copy").unlink()
                limit = largest + GIB
                rows.append(
                    f"| {layout} to {target}{' (values)' if dequantize == 'yes' else ''} | {total / GIB:.2f} | "
                    f"{got['bytes'] / GIB:.2f} | {largest / GIB:.2f} | {got['peak'] / GIB:.2f} | {limit / GIB:.2f} | "
                    f"{'yes' if got['peak'] < limit else 'NO'} | {got['seconds']:.1f} | "
                    f"{total / got['seconds'] / 1e6:.0f} | {total / copy_seconds / 1e6:.0f} |"
                )
                print(rows[-1], flush=True)
                shutil.rmtree(out)
                shutil.rmtree(f"{out}.warm")
            shutil.rmtree(base / layout)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    text = "\n".join(
        [
            "# Conversion of checkpoints",
            "",
            *(f"{line}  " for line in describe("numpy", "numba")),
            "",
            f"{args.layers} blocks of Llama-3-70B (hidden 8192, FFN 28672; group 128, or blocks of 128x128), "
            "vocabulary 4096.",
            "Peak: resident memory of the converting process beyond imports. Limit: the largest layer plus 1 GiB.",
            "Copy: the source's files copied by the file system in the same run.",
            "",
            "| conversion | source GiB | target GiB | largest layer GiB | peak GiB | limit GiB | within | s | "
            "source MB/s | copy MB/s |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
    if args.write:
        (HERE / "checkpoints.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
