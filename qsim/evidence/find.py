"""Looking rows up: by model, method, numbers and metric, with models that are near."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

from qsim.errors import QsimError, nearest
from qsim.scheme import Scheme

from .identity import KnownModel, canonical, find_model, known_models, model_from_name
from .precision import Precision, cache_word, of_scheme
from .table import Row, method_of, shipped

Nearness: TypeAlias = Literal["same", "sibling", "kin"]
SIBLING, KIN = 1.2, 12.0
"""Factors of size: siblings are the same generation and size (a chat model, Llama-3 and 3.1), kin the generation."""


def identity(name: str | KnownModel, rows: Sequence[Row] = ()) -> KnownModel | None:
    """What is known of a model: from the shipped list, from a name that says a generation of the list, or from a row
    that says its size; None where nothing is."""
    found = find_model(name)
    if found is not None or isinstance(name, KnownModel):
        return found
    word = canonical(name)
    size = next((r.parameters_b for r in rows if r.model == word and r.parameters_b is not None), None)
    named = model_from_name(word)
    if named is not None:
        return named if size is None else replace(named, parameters_b=size)
    return None if size is None else KnownModel(name=word, family=word, generation=word, parameters_b=size)


def nearness(target: KnownModel, other: KnownModel) -> Nearness | None:
    """How near two models are: `same`, `sibling`, `kin`, or None."""
    if target.name == other.name:
        return "same"
    if target.generation != other.generation:
        return None
    ratio = max(target.parameters_b, other.parameters_b) / min(target.parameters_b, other.parameters_b)
    return "sibling" if ratio <= SIBLING else "kin" if ratio <= KIN else None


def find(
    model: str | KnownModel | None = None, method: str | None = None, *, bits: float | None = None,
    scheme: str | Scheme | None = None, kv: str | None = None, metric: str | None = None, near: bool = False,
    rows: Sequence[Row] | None = None,
) -> tuple[Row, ...]:  # fmt: skip
    """The rows of evidence that answer a question, each with its citation.

    Arguments:
        model: a model's name in any spelling (`llama-3-8b`, `meta-llama/Meta-Llama-3-8B`); None for all.
        method: as `awq`; sources' own names (`SmoothQuant W8A8`) are understood.
        bits: of the weights; 16 for rows that quantise activations or the cache alone.
        scheme: rows in exactly its numbers.
        kv: numbers of the KV cache: `fp8`, `int8`, `int4`, or `none`.
        metric: a metric's name.
        near: also siblings, models of the same generation and size (a chat model; Llama 3 and 3.1), after the model's
            own.
        rows: where to look; the shipped table by default, which `shipped() + read_rows("my.csv")` extends.

    Returns:
        The rows, those of the model itself first.

    Raises:
        QsimError: a model or method that no row is about, or an unknown scheme.
    """
    pool = shipped() if rows is None else tuple(rows)
    found: Sequence[Row] = pool
    if model is not None:
        target = identity(model, pool)
        own = [r for r in pool if r.model == (canonical(model) if isinstance(model, str) else model.name)]
        if target is None and not own:
            raise QsimError(unknown_model(str(model)))
        others = [r for r in pool if near and target and _is_sibling(target, r, pool)]
        found = [*own, *others]
    if method is not None:
        name = method_of(method)
        if all(r.method != name for r in pool):
            raise QsimError(nearest("method of the evidence", method, {r.method for r in pool}))
        found = [r for r in found if r.method == name]
    cache = None if kv is None else cache_word(kv, {r.precision.kv for r in pool})
    wanted: Precision | None = None if scheme is None else of_scheme(scheme)
    return tuple(
        r for r in found
        if (bits is None or r.precision.bits == bits) and (wanted is None or matches(wanted, r.precision))
        and (cache is None or r.precision.kv == cache) and (metric is None or r.metric.name == metric)
    )  # fmt: skip


def unknown_model(name: str) -> str:
    """The sentence for a model that no evidence is about."""
    return (f"{nearest('model of the evidence', name, known_models())}; nothing is known of what it loses: measure it "
            "with qsim study --model FOLDER")  # fmt: skip


def _is_sibling(target: KnownModel, row: Row, rows: Sequence[Row]) -> bool:
    other = identity(row.model, rows)
    return other is not None and nearness(target, other) == "sibling"


def matches(wanted: Precision, have: Precision) -> bool:
    """Whether a row runs in the numbers of a scheme; how activations are scaled may be unstated in the row."""
    if (wanted.weight, wanted.activation, wanted.kv) != (have.weight, have.activation, have.kv):
        return False
    if wanted.region != have.region and have.region != "unstated":
        return False
    return wanted.scaling == have.scaling or have.scaling == "unstated"
