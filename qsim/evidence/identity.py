"""Which model is meant: one name for every spelling, and what evidence needs to know of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from qsim.errors import QsimError, nearest
from qsim.files import read_csv


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A model that evidence is about.

    Attributes:
        name: the public name, in lower case, without its publisher: `llama-3.1-8b-instruct`.
        family: `llama`, `qwen`, `opt`, ...
        generation: models trained alike: `llama-3` holds 3, 3.1, 3.2 and 3.3.
        parameters_b: all parameters, in billions.
        training_tokens_t: tokens of its training, in trillions (public model cards); None where nobody said.
        context: tokens that it was trained to read.
        tuned: whether it is a chat or instruction model.
    """

    name: str
    family: str
    generation: str
    parameters_b: float
    training_tokens_t: float | None = None
    context: int | None = None
    tuned: bool = False


@lru_cache(maxsize=1)
def known_models() -> dict[str, KnownModel]:
    """Every model of the shipped table, by name."""
    header, rows = read_csv(Path(__file__).parent / "models.csv")
    out = {}
    for row in rows:
        f = dict(zip(header, row, strict=True))
        out[f["model"]] = KnownModel(
            name=f["model"], family=f["family"], generation=f["generation"], parameters_b=float(f["parameters_b"]),
            training_tokens_t=float(f["training_tokens_t"]) if f["training_tokens_t"] else None,
            context=int(f["context"]), tuned=f["tuned"] == "yes",
        )  # fmt: skip
    return out


def canonical(name: str) -> str:
    """One spelling of a model's name: lower case, no publisher, `meta-llama/Meta-Llama-3-8B` is `llama-3-8b`."""
    word = re.sub(r"[\s_]+", "-", name.strip().lower().rsplit("/", 1)[-1])
    word = word.removeprefix("meta-").removesuffix("-hf")
    word = re.sub(r"^llama-?([23](?:\.\d)?)-", r"llama-\1-", word)
    word = re.sub(r"^llama-1-", "llama-", word)
    return re.sub(r"-(it|instruct)(-v0\.1)?$", "-instruct", word)


def find_model(name: str | KnownModel) -> KnownModel | None:
    """The model of that name, or None where the table has none."""
    return name if isinstance(name, KnownModel) else known_models().get(canonical(name))


def get_model(name: str | KnownModel) -> KnownModel:
    """The model of that name.

    Raises:
        QsimError: a model that the table does not know.
    """
    found = find_model(name)
    if found is None:
        raise QsimError(nearest("model of the evidence", str(name), known_models()))
    return found
