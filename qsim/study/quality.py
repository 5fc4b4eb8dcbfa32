"""The quality half: quantise the model by every method, measure what it loses, bit for bit where a device is named."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwmodels.device.device import Device
from qsim.errors import QsimError
from qsim.models import Evaluation, Model, evaluate, load, tiny_text
from qsim.models.evaluation import first_token
from qsim.notes import without
from qsim.scheme import QuantizedTensor

from .accumulator import Adder, adder, compute_format
from .hardware import devices, executed
from .method import NONE, Method
from .result import Measured
from .rows import ExactRow, QualityRow
from .spec import StudySpec


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """The model that is measured, with the texts that it is measured and calibrated on."""

    model: Model
    text: bytes
    calibration: bytes
    text_name: str
    calibration_name: str

    @property
    def fingerprint(self) -> dict[str, str]:
        """Hashes of weights and texts."""
        return {
            "model": model_hash(self.model), "text": hashlib.sha256(self.text).hexdigest(),
            "calibration": hashlib.sha256(self.calibration).hexdigest(),
        }  # fmt: skip


def subject(spec: StudySpec) -> Subject:
    """Load the model and the texts of a study.

    Raises:
        ValueError: a folder that is no checkpoint, a model without tokenizer, a text that is empty or not UTF-8.
        OSError: a file cannot be read.
    """
    q = spec.quality
    model = load(q.model)
    if model.tokenizer is None:
        raise QsimError(f"{q.model} has no tokenizer: its quality cannot be measured on a text")
    model = _as_floats(model)
    return Subject(
        model=model, text=text_of(q.text, "test"), calibration=text_of(q.calibration, "calibration"),
        text_name=(q.text and Path(q.text).name) or "the embedded test text",
        calibration_name=(q.calibration and Path(q.calibration).name) or "the embedded calibration text",
    )  # fmt: skip


def _as_floats(model: Model) -> Model:
    """The model with the float32 values of its quantised Linears: losses are then against the file as it is."""
    stored = {n: t for n, t in model.tensors.items() if isinstance(t, QuantizedTensor)}
    if not stored:
        return model
    kinds = ", ".join(sorted({t.scheme.name or t.tensor_scheme.format.name for t in stored.values()}))
    note = f"{len(stored)} weights are stored quantised ({kinds}): methods start from their values, and losses are " \
           "against those"  # fmt: skip
    return model.replace(tensors={n: t.dequantize() for n, t in stored.items()}, notes=(*model.own_notes, note))


def check_texts(spec: StudySpec) -> None:
    """Refuse a text or a calibration text that cannot be used, before anything is written.

    Raises:
        QsimError: not UTF-8, or empty.
        OSError: it cannot be read.
    """
    for path in (spec.quality.text, spec.quality.calibration):
        if path:
            text_of(path, "")


def text_of(path: str, embedded: Any) -> bytes:
    """The bytes of a text: a file, or where no path is given the embedded text of that name.

    Raises:
        QsimError: not UTF-8, or empty.
        OSError: it cannot be read.
    """
    found = tiny_text(embedded) if not path else Path(path).read_bytes()
    raw = found.encode() if isinstance(found, str) else found
    try:
        empty = not raw.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise QsimError(
            f"{path or embedded} is not UTF-8 text: byte {error.start} is 0x{raw[error.start]:02x}"
        ) from None
    if empty:
        raise QsimError(f"{path or embedded} holds no text")
    return raw


def model_hash(model: Model) -> str:
    """SHA-256 over the names and bytes of all tensors."""
    digest = hashlib.sha256()
    for name in sorted(model.tensors):
        tensor = model.tensors[name]
        digest.update(name.encode())
        parts = tensor.arrays.values() if isinstance(tensor, QuantizedTensor) else (tensor,)
        for array in parts:
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def variants(spec: StudySpec, method: Method) -> tuple[str, ...]:
    """`full`, and `weights` when a device of the study leaves the method's activations in 16 bit."""
    found = {executed(d, method.scheme, spec.speed.profile) for d in devices(spec).values()}
    return ("full", "weights") if "weights" in found else ("full",)


def quantised(subject: Subject, method: Method, spec: StudySpec) -> tuple[Model, tuple[str, ...]]:
    """The model by a method, and what the method had to do that nobody asked for (fallbacks, damping, ...)."""
    if method.algorithm == NONE:
        return subject.model, ()
    from qsim.methods import get_method, quantize_model

    searched = get_method(method.algorithm).searched
    search = {} if searched is None else searched(spec.quality.search_grid)
    found = quantize_model(
        subject.model, method.algorithm, method.scheme,
        calibration(subject, spec) if _needs_text(method) else None, **{**search, **method.options},
    )  # fmt: skip
    notes: dict[str, list[str]] = {}
    for record in found.layers:
        said = [*record.notes, *([f"fell back to {record.fallback}"] if record.fallback else [])]
        for note in said:
            notes.setdefault(note, []).append(record.layer)
    return found.model, tuple(f"{note} ({_layers(layers)})" for note, layers in notes.items())


def _layers(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more layers"


def _needs_text(method: Method) -> bool:
    """Whether a method looks at inputs: it solves for them, smooths them, or stores a scale of them."""
    from qsim.methods.kv import stores_kv
    from qsim.methods.registry import get_recipe

    recipe = get_recipe(method.algorithm, method.scheme, method.options)
    return recipe.needs_calibration or stores_kv(recipe.scheme)


def calibration(subject: Subject, spec: StudySpec) -> Any:
    """The windows that methods are shown, spread evenly over the calibration text (`qsim.methods.Calibration`).

    Raises:
        ValueError: a text shorter than one window.
    """
    from qsim.methods import calibration_of

    window = window_of(spec, subject.model)
    count = max(1, spec.quality.calibration_tokens // window)
    return calibration_of(subject.model, subject.calibration, window=window, windows=count)


def in_sixteen_bit(model: Model) -> Model:
    """Every product sees BF16 inputs where its scheme does not quantise them: what a 16-bit tensor core is given.

    Weights are dequantised once and multiplied by BLAS, which takes half the time of packed ones for thousands of
    tokens; the values that are multiplied are the same, and sums are float32 either way.
    """
    settings: dict[str, dict[str, str]] = {}
    for name, linear in {**model.linears(), model.head_name: model.lm_head}.items():
        quantised = isinstance(linear.weight, QuantizedTensor) and linear.weight.scheme.activation.is_quantized
        settings[name] = {"engine": "dequantized", **({} if quantised else {"activation": "bfloat16"})}
    return model.replace(linear_settings={**model.linear_settings, **settings})


def weights_only(model: Model) -> Model:
    """The same codes, multiplied by activations that stay in 16 bit: what a device without the product executes."""
    tensors = {
        name: dataclasses.replace(t, scheme=t.scheme.replace(activation="bfloat16", compute=None), input_scale=None)
        for name, t in model.tensors.items()
        if isinstance(t, QuantizedTensor) and t.scheme.activation.is_quantized
    }
    return model.replace(tensors=tensors)


def model_bits(model: Model) -> float:
    """Bits per weight of the decoder's Linears, scales and zero points included; 16 where nothing is quantised."""
    bits = elements = 0
    for linear in model.linears().values():
        size = linear.out_features * linear.in_features
        bits += 8 * linear.weight.nbytes if linear.is_quantized else 16 * size
        elements += size
    return bits / elements


def measure(
    spec: StudySpec, subject: Subject, method: Method, reference: Any
) -> tuple[tuple[QualityRow, ...], tuple[ExactRow, ...], tuple[str, ...]]:
    """Quality of one method in every variant that a device executes, and the sample through each device's adder.

    Arguments:
        reference: `qsim.models.Reference` of the 16-bit model, shared by all methods.

    Returns:
        The rows, the sample's rows, and what was assumed or fell back, each note once.
    """
    model, notes = quantised(subject, method, spec)
    built = {"full": reference.model if method.algorithm == NONE else in_sixteen_bit(model)}
    if "weights" in variants(spec, method):
        built["weights"] = in_sixteen_bit(weights_only(model))
    noted = [_quality(spec, subject, method, variant, m, reference, notes) for variant, m in built.items()]
    exact: tuple[ExactRow, ...] = ()
    if spec.quality.exact_bytes and method in exact_methods(spec):
        exact = tuple(_through_devices(spec, subject, method, built))
    rows, said = zip(*noted, strict=True)
    return rows, exact, tuple(dict.fromkeys(note for notes in said for note in notes))


def _quality(
    spec: StudySpec, subject: Subject, method: Method, variant: str, model: Model, reference: Any, notes: Sequence[str]
) -> tuple[QualityRow, tuple[str, ...]]:
    q = spec.quality
    most = q.max_bytes if variant == "full" or not q.least_bytes else min(q.max_bytes or q.least_bytes, q.least_bytes)
    found = evaluate(model, subject.text, window=window_of(spec, model), reference=reference, max_bytes=most or None,
                     first=first_token(subject.model),
                     enough=lambda so_far: is_settled(spec, method, so_far))  # fmt: skip
    same = method.algorithm == NONE
    assert found.bits_per_byte is not None
    assert found.bits_per_byte_delta is not None
    said = tuple(dict.fromkeys([*notes, *without(found.notes, "reference")]))
    row = QualityRow(
        method=method.name, variant=variant, bits_per_byte=found.bits_per_byte,
        bits_per_byte_se=found.bits_per_byte_se or 0.0, loss=0.0 if same else found.bits_per_byte_delta,
        loss_se=0.0 if same else found.bits_per_byte_delta_se or 0.0, perplexity=found.perplexity,
        kl=found.kl, kl_se=found.kl_se, top1_agreement=found.top1_agreement, bytes_scored=found.bytes or 0,
        model_bits=model_bits(model), notes="; ".join(said),
    )  # fmt: skip
    return row, said


SURE = 4.0
"""Standard errors by which a loss must lie on one side of the limit before a method is scored no further."""


def is_settled(spec: StudySpec, method: Method, so_far: Evaluation) -> bool:
    """Whether more text would change no answer: see `Quality.least_bytes`."""
    from qsim.scheme import get_scheme

    q, weight = spec.quality, get_scheme(method.scheme).weight
    if not q.least_bytes or (so_far.bytes or 0) < q.least_bytes - q.window or method.algorithm == NONE:
        return False
    loss, se = so_far.bits_per_byte_delta, so_far.bits_per_byte_delta_se
    if loss is None or se is None:
        return False
    return (weight.bits >= 8 and loss + SURE * se < q.max_loss) or (weight.bits < 4 and loss - SURE * se > q.max_loss)


def window_of(spec: StudySpec, model: Model) -> int:
    """Tokens of a window: as asked, or the model's context (less its first token) where that is shorter."""
    return min(spec.quality.window, model.config.max_position_embeddings - (first_token(model) is not None))


# --- through each device's own instruction ---------------------------------------------------------------------


def exact_methods(spec: StudySpec) -> tuple[Method, ...]:
    """One method for each kind of product: 16 bit, weight-only, INT8, FP8; the better algorithm where there are two."""
    from qsim.formats import BlockFormat, IntFormat
    from qsim.methods import METHODS
    from qsim.scheme import get_scheme

    ranks = {NONE: 0} | {m.name: m.rank for m in METHODS.values()}
    kinds: dict[str, Method] = {}
    for m in sorted(spec.methods, key=lambda m: (ranks[m.algorithm], m.scheme != "fp8-rowwise")):
        scheme = get_scheme(m.scheme)
        fmt = scheme.weight.format
        if isinstance(fmt, BlockFormat) or scheme.kv_cache.is_quantized:
            continue
        kind = (
            "16 bit" if not scheme.weight.is_quantized
            else "weight-only" if not scheme.activation.is_quantized
            else "int8" if isinstance(fmt, IntFormat) else "fp8"
        )  # fmt: skip
        kinds.setdefault(kind, m)
    return tuple(m for m in spec.methods if m in kinds.values())


def _through_devices(spec: StudySpec, subject: Subject, method: Method, built: dict[str, Model]) -> Iterable[ExactRow]:
    given = {d.title: d.accumulator for d in spec.speed.devices}
    done: dict[tuple[str, str], ExactRow] = {}
    for title, device in devices(spec).items():
        variant = executed(device, method.scheme, spec.speed.profile)
        main = adder(device, given[title], compute_format(method.scheme, variant))
        head = adder(device, given[title], "bfloat16")
        if main is None or head is None:
            continue
        key = (variant, f"{main.instruction}{head.instruction}")
        if key not in done:
            done[key] = _exact_row(spec, subject, method, device, built[variant], main, head)
        yield dataclasses.replace(done[key], device=title)


def _exact_row(
    spec: StudySpec, subject: Subject, method: Method, device: Device, fast: Model, main: Adder, head: Adder
) -> ExactRow:
    settings = {name: {"engine": "exact", "instruction": main.instruction} for name in fast.linears()}
    settings[fast.head_name] = {"engine": "exact", "instruction": head.instruction}
    merged = {name: {**dict(fast.linear_settings.get(name, {})), **more} for name, more in settings.items()}
    exact = fast.replace(linear_settings=merged)
    found = evaluate(exact, subject.text, window=window_of(spec, fast), reference=fast,
                     max_bytes=spec.quality.exact_bytes, first=first_token(subject.model))  # fmt: skip
    assert found.bits_per_byte is not None
    assert found.bits_per_byte_delta is not None
    assert found.kl is not None
    assert found.top1_agreement is not None
    return ExactRow(
        device=device.name, method=method.name, instruction=main.instruction.name, parameters=main.parameters,
        status=main.status, bytes_scored=found.bytes or 0, bits_per_byte=found.bits_per_byte,
        fast_bits_per_byte=found.bits_per_byte - found.bits_per_byte_delta, difference=found.bits_per_byte_delta,
        kl=found.kl, flips=round((1 - found.top1_agreement) * found.tokens), tokens=found.tokens,
    )  # fmt: skip


def measured(spec: StudySpec, subject: Subject, base: QualityRow) -> Measured:
    """What was measured, for the head of the report."""
    model, prints = subject.model, subject.fingerprint
    linears = model.linears().values()
    widest = max(x.in_features for x in linears)
    return Measured(
        model=model.name or spec.quality.model, parameters=model.parameters,
        linear_parameters=sum(x.in_features * x.out_features for x in linears), model_sha256=prints["model"],
        text=subject.text_name, text_sha256=prints["text"], calibration=subject.calibration_name,
        calibration_sha256=prints["calibration"], base_bits_per_byte=base.bits_per_byte,
        base_bits_per_byte_se=base.bits_per_byte_se, base_perplexity=base.perplexity, widest_k=widest,
        notes=tuple(model.notes),
    )  # fmt: skip
