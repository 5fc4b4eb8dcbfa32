"""The model card: `README.md` (from `card.md`) and `learning_curve.svg`, with the numbers of the model's own files."""

from __future__ import annotations

import json
import lzma
import sys
import textwrap
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from matplotlib.figure import Figure

from qsim.plots import style

Record = dict[str, Any]

TEMPLATE = Path(__file__).with_name("card.md")


def row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def recipe_text(record: Record) -> str:
    r = record["recipe"]
    epochs = record["curve"][-1]["epoch"]
    optimizer = (
        "Muon for the matrices of the blocks, AdamW (0.9, 0.95) for the rest" if r["optimizer"] == "muon" else "AdamW"
    )
    text = (
        f"{r['steps']} steps of {r['batch']} windows of {r['context']} bytes: {record['bytes_seen'] / 1e6:.0f} MB, "
        f"{epochs:.1f} epochs. {optimizer}; learning rate {r['lr']:g}, {r['warmup']} steps of warm-up, cosine to zero; "
        f"weight decay {r['weight_decay']:g}; dropout {r['dropout']:g} of the embedding and of every branch; gradient "
        f"norm clipped at 1. Weights, optimizer, norms and loss in float32, matrix products in bfloat16 (autocast). "
        f"What is evaluated and kept is an exponential average of the weights (decay {r['average']:g}), at its best "
        f"validation loss. Seed {r['seed']}, torch {record['torch']}. {record.get('note', '')}"
    )
    return textwrap.fill(text, 120, break_on_hyphens=False)


def excerpts_text(name: str, excerpts: list[Record]) -> str:
    files = [
        f"`{e['path']}`" + ("" if e["length"] == e["file_bytes"] else f" (its first {e['length']} bytes)")
        for e in excerpts
    ]
    return textwrap.fill(f"`{name}.txt`: {', '.join(files)}", 120, break_on_hyphens=False, break_long_words=False)


def learning_curve(record: Record, trials: list[Record]) -> Figure:
    """Validation bits per byte of the run and of its trials against epochs, and the run's training loss."""
    with style.styled():
        figure = style.new_figure(3.6)
        axes = figure.subplots()
        axes.grid(True, axis="y")
        for i, run in enumerate([record, *trials]):
            r = run["recipe"]
            name = {"muon": "Muon", "adamw": "AdamW"}[r["optimizer"]]
            label = f"{name}, weight decay {r['weight_decay']:g}, dropout {r['dropout']:g}"
            axes.plot(
                [point["epoch"] for point in run["curve"]],
                [point["validation"] for point in run["curve"]],
                color=style.CYCLE[i],
                linestyle=style.DASHES[i],
                linewidth=2.2 if i == 0 else 1.4,
                label=label + (" (this model)" if i == 0 else ""),
            )
        axes.plot(
            [point["epoch"] for point in record["curve"]],
            [point["train"] for point in record["curve"]],
            color=style.GREY,
            linewidth=1.0,
            label="this model's training loss, with dropout",
        )
        axes.set_xlabel("epochs of the training text")
        axes.set_ylabel("bits per byte")
        axes.set_xlim(0, record["curve"][-1]["epoch"])
        axes.set_ylim(0.65, 1.2)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_title("Validation loss of the tiny model and of its trials")
        axes.legend(loc="upper right")
    return figure


def write(folder: Path) -> None:
    """Writes the card of a model folder beside it."""
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    trials_file = folder / "trials.json"
    trials = json.loads(trials_file.read_text(encoding="utf-8")) if trials_file.exists() else []
    style.save(learning_curve(record, trials), folder / "learning_curve.svg")

    corpus, results = record["corpus"], record["results"]
    sizes = {f"{name}.txt": text["bytes"] for name, text in corpus["texts"].items()}
    sizes["test.bin"] = corpus["splits"]["test"]["bytes"]
    names = {"test.bin": "whole test split", "test.txt": "`test.txt`", "calibration.txt": "`calibration.txt`"}
    plain = [r for r in results if r["weights"] == "bfloat16"]
    base = next(r for r in plain if r["text"] == "test.txt" and r["protocol"] == "gptq")
    headline = next(r for r in plain if r["text"] == "test.txt" and r["protocol"] == "windows")
    uses = {
        "train": "weights",
        "validation": "choice of the recipe, and of the step that is kept",
        "calibration": "`calibration.txt`: for GPTQ, AWQ, SmoothQuant",
        "test": "`test.txt`: for evaluation",
    }
    warm = [s for s in record["samples"] if s["temperature"] > 0]
    samples = [warm[0], warm[-1]]
    every = max(1, len(record["curve"]) // 9)
    curve = [p for i, p in enumerate(record["curve"]) if i % every == 0 or i == len(record["curve"]) - 1]
    compressed = lzma.compress((folder / "test.txt").read_bytes(), preset=9 | lzma.PRESET_EXTREME)
    card = TEMPLATE.read_text(encoding="utf-8").format(
        parameters=record["parameters"] / 1e6,
        megabytes=record["parameters"] * 2 / 1e6,
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        ffn=config["intermediate_size"],
        rope=config["rope_theta"],
        context=config["max_position_embeddings"],
        half=config["max_position_embeddings"] // 2,
        test=headline["bits_per_byte"],
        test_se=headline["standard_error"],
        protocol_windows=f"windows of {headline['window']} bytes",
        train_mb=corpus["splits"]["train"]["bytes"] / 1e6,
        train_files=corpus["splits"]["train"]["files"],
        python=corpus["python"],
        minutes=record["seconds"] / 60,
        device=record["device"],
        xz=8 * len(compressed) / sizes["test.txt"],
        quality="\n".join(
            row(
                names[r["text"]],
                sizes[r["text"]],
                f"`{r['protocol']}`" + (f", stride {r['stride']}" if r["stride"] else ""),
                f"{r['bits_per_byte']:.4f} ± {r['standard_error']:.4f}",
            )
            for r in plain
        ),
        validation=record["best_validation"],
        quantised="\n".join(
            row(r["weights"], f"{r['bits_per_byte']:.4f}", f"{r['bits_per_byte'] - base['bits_per_byte']:.4f}")
            for r in [base, *(r for r in results if r["weights"] != "bfloat16")]
        ),
        samples="\n\n".join(f"```python\n{s['text'].rstrip()}\n```" for s in samples),
        all_files=sum(split["files"] for split in corpus["splits"].values()),
        all_mb=sum(split["bytes"] for split in corpus["splits"].values()) / 1e6,
        corpus=corpus["sha256"],
        splits="\n".join(row(name, s["files"], s["bytes"], uses[name]) for name, s in corpus["splits"].items()),
        overlap=100 * corpus["texts"]["test"]["grams_in_training"],
        excerpts="\n\n".join(excerpts_text(name, text["excerpts"]) for name, text in corpus["texts"].items()),
        recipe=recipe_text(record),
        curve="\n".join(
            row(f"{p['epoch']:.1f}", f"{p['seconds']:.0f}", f"{p['train']:.3f}", f"{p['validation']:.4f}")
            for p in curve
        ),
        best_step=min(record["curve"], key=lambda p: p["validation"])["step"],
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
