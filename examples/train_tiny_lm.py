"""Train the language model that qsim carries: a byte-level Llama on the source of the Python standard library.

    python examples/train_tiny_lm.py corpus build/corpus             # with the Python whose library it is
    python examples/train_tiny_lm.py train build/corpus build/tiny   # one GPU; build/corpus can be copied there
    python examples/train_tiny_lm.py card build/tiny                 # README.md and its figure

`corpus` lists the library's files with their SHA-256, splits them by file into training, validation, calibration and
test, and writes the splits (`tiny_lm/corpus.py` says how test text is kept out of training). `train` keeps the weights
with the best validation loss, rounds them to bfloat16, evaluates what it rounded, and writes a Hugging Face folder.
Defaults are the recipe of the committed model, which came from CPython 3.11.7. Without a GPU, `--steps 20 --batch 4`
shows that it works.

Needs torch, numpy and safetensors. The model is in `tiny_lm/llama.py`, the optimizer in `tiny_lm/muon.py`.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_lm import corpus, evaluation, files
from tiny_lm.llama import Config, Llama
from tiny_lm.muon import Muon
from torch import Tensor


def load_split(folder: Path, name: str, device: str) -> Tensor:
    return torch.from_numpy(np.fromfile(folder / name, np.uint8)).to(device)


def batches(data: Tensor, context: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches (size, context + 1) of windows that tile the data, in a new order and phase every epoch."""
    offsets = torch.arange(context + 1, device=data.device)
    while True:
        phase = int(torch.randint(context, (), generator=generator))
        count = (len(data) - phase - 1) // context
        starts = phase + context * torch.randperm(count, generator=generator).to(data.device)
        for chunk in starts.split(size):
            if len(chunk) == size or count < size:
                yield data[chunk[:, None] + offsets]


def learning_rate(step: int, progress: float, args: argparse.Namespace) -> float:
    """Linear warm-up, then a cosine down to zero at progress 1."""
    return args.lr * min(1.0, (step + 1) / args.warmup) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


class Optimizer:
    """Muon for the block matrices, or AdamW for all; AdamW for embedding, head and norms. Norms do not decay."""

    def __init__(self, model: Llama, args: argparse.Namespace) -> None:
        self.parameters = list(model.parameters())
        matrices = [p for name, p in model.named_parameters() if name.endswith("proj.weight")]
        ends = [model.model.embed_tokens.weight, model.lm_head.weight]
        norms = [p for p in self.parameters if p.ndim == 1]
        self.muon = Muon(matrices, weight_decay=args.weight_decay) if args.optimizer == "muon" else None
        groups = [
            {"params": ends if self.muon else ends + matrices, "weight_decay": args.weight_decay},
            {"params": norms, "weight_decay": 0.0},
        ]
        fused = self.parameters[0].is_cuda
        self.adam = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=fused)
        self.adam_factor = args.adam_factor

    def step(self, lr: float) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.adam.param_groups:
            group["lr"] = lr * self.adam_factor
        self.adam.step()
        if self.muon:
            self.muon.step(lr)
        for parameter in self.parameters:
            parameter.grad = None


def fit(model: Llama, folder: Path, args: argparse.Namespace) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Trains, and returns the averaged weights with the best validation loss, and the record of the run."""
    device = args.device
    train, validation = (load_split(folder, f"{split}.bin", device) for split in ("train", "validation"))
    optimizer = Optimizer(model, args)
    averaged = copy.deepcopy(model).eval().requires_grad_(False)
    loss_of = torch.compile(model.loss) if args.compile else model.loss
    stream = batches(train, args.context, args.batch, torch.Generator().manual_seed(args.seed))
    autocast = torch.autocast(device, torch.bfloat16, enabled=device == "cuda")

    curve: list[dict[str, float]] = []
    best, best_state = math.inf, {}
    recent: list[Tensor] = []
    begin = schedule_begin = time.perf_counter()
    step, progress = 0, 0.0
    while progress < 1:
        if step == 1:
            schedule_begin = time.perf_counter()  # the first step compiles, and must not move the schedule
        elapsed = time.perf_counter() - schedule_begin
        progress = max((step + 1) / args.steps, elapsed / (60 * args.minutes))  # whichever limit comes first
        with autocast:
            loss = loss_of(next(stream))
        loss.backward()
        optimizer.step(learning_rate(step, progress, args))
        # The average starts short and grows to its full length, so that it forgets the random start.
        decay = min(args.average, step / (step + 10))
        torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)
        recent.append(loss.detach())
        step += 1
        if step % args.evaluate_every == 0 or progress >= 1:
            with autocast:
                bits, _ = evaluation.bits_per_byte(averaged, validation, window=args.context)
            train_bits = float(torch.stack(recent).mean()) / math.log(2)
            recent.clear()
            seconds = time.perf_counter() - begin
            epoch = step * args.batch * args.context / len(train)
            curve.append({"step": step, "epoch": epoch, "seconds": seconds, "train": train_bits, "validation": bits})
            kept = bits < best
            if kept:
                best, best_state = bits, {name: t.clone() for name, t in averaged.state_dict().items()}
            print(
                f"step {step:6}  epoch {epoch:6.2f}  {seconds:6.1f} s  lr {learning_rate(step, progress, args):.1e}  "
                f"train {train_bits:.4f}  validation {bits:.4f} bits/byte{'  *' if kept else ''}",
                flush=True,
            )
    seconds = time.perf_counter() - begin
    bytes_seen = step * args.batch * args.context
    print(f"{bytes_seen / seconds / 1e6:.2f} MB/s; best validation {best:.4f} bits/byte", flush=True)
    record = {"steps": step, "seconds": seconds, "bytes_seen": bytes_seen, "best_validation": best, "curve": curve}
    return best_state, record


def evaluate(folder: Path, texts: Path, device: str) -> None:
    """Fills in what `training.json` lacks: bits per byte of the rounded weights, with quantised ones too, and samples.

    In float32. What was measured before stays, so that an interrupted evaluation goes on.
    """
    model = files.read_model(folder, device)
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    context = model.config.max_position_embeddings
    results = record.setdefault("results", [])
    done = [{key: row[key] for key in row if key not in ("bits_per_byte", "standard_error")} for row in results]

    def measure(of: Llama, text: str, protocol: str, stride: int | None = None, weights: str = "bfloat16") -> None:
        row = {"text": text, "weights": weights, "protocol": protocol, "window": context, "stride": stride}
        if row in done:
            return
        mean, error = evaluation.bits_per_byte(
            of, load_split(texts, text, device), window=context, protocol=protocol, stride=stride
        )
        results.append({**row, "bits_per_byte": mean, "standard_error": error})
        files.write_json(folder / "training.json", record)
        print(f"{text:15} {protocol:8} {stride or '':4} {weights:40} {mean:.4f} ± {error:.4f} bits/byte", flush=True)

    for protocol, stride in (("gptq", None), ("windows", None), ("sliding", context // 2)):
        measure(model, "test.txt", protocol, stride)
    measure(model, "test.bin", "gptq")
    measure(model, "calibration.txt", "gptq")
    for weights, quantise in evaluation.QUANTISERS.items():
        measure(evaluation.quantised(model, quantise), "test.txt", "gptq", weights=weights)
    if "samples" not in record:
        record["samples"] = [
            {"prompt": prompt, "temperature": temperature, "seed": 0, "text": text}
            for prompt in evaluation.SAMPLE_PROMPTS
            for temperature in (0.0, 0.7)
            for text in [evaluation.generate(model, prompt, 400, temperature=temperature)]
        ]
        files.write_json(folder / "training.json", record)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("highest")  # evaluation is in float32, not TF32
    config = Config(
        hidden_size=args.hidden,
        num_attention_heads=args.hidden // 64,
        intermediate_size=args.ffn,
        num_hidden_layers=args.layers,
        max_position_embeddings=args.context,
    )
    model = Llama(config, args.dropout).to(args.device).train()
    parameters = sum(p.numel() for p in model.parameters())
    where = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or "CPU"
    print(f"{parameters / 1e6:.2f} M parameters; {where}; torch {torch.__version__}", flush=True)

    state, run = fit(model, args.corpus, args)
    args.out.mkdir(parents=True, exist_ok=True)
    files.write_json(args.out / "config.json", config.to_hugging_face())
    files.write_weights(state, args.out)
    files.write_tokenizer(args.out, args.context)
    for name in ("calibration.txt", "test.txt", "corpus.csv"):
        shutil.copyfile(args.corpus / name, args.out / name)
    record = {
        "recipe": {key: value for key, value in vars(args).items() if isinstance(value, int | float | str)},
        "parameters": parameters,
        "device": where,
        "torch": torch.__version__,
        "corpus": json.loads((args.corpus / "corpus.json").read_text()),
        **run,
        "files": {path.name: files.sha256(path) for path in sorted(args.out.iterdir()) if path.name != "training.json"},
    }
    files.write_json(args.out / "training.json", record)
    evaluate(args.out, args.corpus, args.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    make = commands.add_parser("corpus", help="split the standard library and write the splits")
    make.add_argument("out", type=Path)
    make.add_argument("--library", type=Path, help="folder of the standard library (default: of the running Python)")

    fitting = commands.add_parser("train", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    fitting.add_argument("corpus", type=Path, help="folder that `corpus` wrote")
    fitting.add_argument("out", type=Path, help="folder for the model")
    fitting.add_argument("--minutes", type=float, default=14.0, help="time limit; the schedule ends there if it must")
    fitting.add_argument("--steps", type=int, default=8400)
    fitting.add_argument("--batch", type=int, default=128, help="windows per step")
    fitting.add_argument("--context", type=int, default=512, help="bytes per window")
    fitting.add_argument("--hidden", type=int, default=384)
    fitting.add_argument("--layers", type=int, default=8)
    fitting.add_argument("--ffn", type=int, default=768)
    fitting.add_argument("--optimizer", choices=["muon", "adamw"], default="muon")
    fitting.add_argument("--lr", type=float, default=4e-3, help="peak learning rate")
    fitting.add_argument("--adam-factor", type=float, default=1.0, help="AdamW's learning rate over --lr")
    fitting.add_argument("--warmup", type=int, default=200, help="steps")
    fitting.add_argument("--weight-decay", type=float, default=0.5)
    fitting.add_argument("--dropout", type=float, default=0.25)
    fitting.add_argument("--average", type=float, default=0.998, help="decay of the exponential average of weights")
    fitting.add_argument("--evaluate-every", type=int, default=300, help="steps")
    fitting.add_argument("--seed", type=int, default=0)
    fitting.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    fitting.add_argument("--compile", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available())

    measuring = commands.add_parser("evaluate", help="fill in what training.json lacks")
    measuring.add_argument("corpus", type=Path, help="folder that `corpus` wrote")
    measuring.add_argument("folder", type=Path, help="folder of the model")
    measuring.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")

    describe = commands.add_parser("card", help="write README.md from training.json")
    describe.add_argument("folder", type=Path)

    args = parser.parse_args()
    if args.command == "corpus":
        record = corpus.save(args.out, args.library)
        print(json.dumps({key: record[key] for key in ("python", "sha256", "splits")}, indent=1))
    elif args.command == "train":
        train(args)
    elif args.command == "evaluate":
        evaluate(args.folder, args.corpus, args.device)
    else:
        from tiny_lm import card  # needs matplotlib and qsim, which a machine that only trains may lack

        card.write(args.folder)


if __name__ == "__main__":
    main()
