"""Which model is meant: one name for every spelling, and what evidence needs to know of it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

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
    """One spelling of a model's name: lower case, no publisher, `meta-llama/Meta-Llama-3-8B` is `llama-3-8b`.

    A first version is the model itself (`mistral-7b-v0.1`), and `bloom-7b1` has 7.1 billion parameters.
    """
    word = re.sub(r"[\s_:]+", "-", name.strip().lower().rstrip("/").rsplit("/", 1)[-1])
    word = word.removeprefix("meta-").removesuffix("-hf").removesuffix("-v0.1")
    word = re.sub(r"-(\d+)b(\d)(?=-|$)", r"-\1.\2b", word)
    word = re.sub(r"^qwen-(\d(?:\.\d)?)-(?=\d)", r"qwen\1-", word)
    word = re.sub(r"^llama-?([23](?:\.\d)?)-", r"llama-\1-", word)
    word = re.sub(r"^llama-1-", "llama-", word)
    return re.sub(r"-it$", "-instruct", word)


def find_model(name: str | KnownModel) -> KnownModel | None:
    """The model of that name, or None where the table has none."""
    return name if isinstance(name, KnownModel) else known_models().get(canonical(name))


_SIZED = re.compile(
    r"(?P<stem>.+?)-(?P<size>(?:(?P<experts>\d+)x)?\d+(?:\.\d+)?[bm])(?:-a\d+(?:\.\d+)?b)?"
    r"(?P<rest>(?:-(?:base|pt|chat|instruct|v\d+(?:\.\d+)?|\d{4}))*)"
)


def model_from_name(name: str) -> KnownModel | None:
    """A model that the table does not have, where its name says a generation of the table and a size.

    `qwen3-4b` is of the generation of `qwen3-8b`; `gemma-2-9b` is not of `gemma-3`'s, and `qwen2.5-coder-7b` was
    trained on something else: None. Training tokens are those of the nearest size.
    """
    word = canonical(name)
    found = _SIZED.fullmatch(word)
    if found is None:
        return None
    kin = [(m, match) for m in known_models().values()
           if (match := _SIZED.fullmatch(m.name)) is not None and match["stem"] == found["stem"]]  # fmt: skip
    if not kin or bool(found["experts"]) != bool(kin[0][1]["experts"]):
        return None
    size = next((m.parameters_b for m, match in kin if match["size"] == found["size"]), _size_b(found["size"]))
    if not size > 0:
        return None
    like = min((m for m, _ in kin), key=lambda m: abs(math.log(m.parameters_b / size)))
    return replace(like, name=word, parameters_b=size, tuned="chat" in found["rest"] or "instruct" in found["rest"])


def _size_b(word: str) -> float:
    """Billions of parameters that `7b`, `270m` or `8x7b` say; experts share their attention, which the last ignores."""
    count, _, each = word.rpartition("x")
    return float(count or 1) * float(each[:-1]) * (1 if word.endswith("b") else 1e-3)
