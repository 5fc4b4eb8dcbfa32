"""What does this fused kernel compute? Every step from codes to outputs of a black box, from its outputs alone.

Two batches of designed inputs are run. Single products show which operand the weight becomes, where each scale comes in
and what is rounded: an accumulator that holds one product is exact. Sums that cancel show the rest: which instruction,
over which part of K, in which order. Of all combinations of what a kernel may do at each place (`alternatives`), those
remain that give every bit; where several remain, they are told, as are the rows of `pipelines.toml` among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from qsim.errors import QsimError
from qsim.scheme import QuantizedTensor, Scheme, get_scheme

from . import designed
from .alternatives import PLACES, beside, differing, of_products, of_sums
from .linear import linear
from .packing import PackedWeight, pack
from .pipelines import Pipeline, list_pipelines

Kernel: TypeAlias = Callable[[Any, QuantizedTensor], Any]
"""(x, weight) to outputs (M, N), floats or BF16 codes. x is (M, K) float32 that holds BF16 values, or for 8-bit
activations a tuple of codes and float32 scales, as `linear(..., exact=True, kernel=...)` takes them."""
_BATCH, _SEEDS = 96, 4  # rows of x in each batch; weights of the first one, for scales that a whole tensor shares
_OF_PRODUCTS, _OF_SUMS = (
    ("operand", "scales and roundings", "output"), ("instruction", "promotion", "order of K", "parts of K")
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PipelineProbe:
    """What `probe_pipeline` found.

    Attributes:
        scheme: of the weight and activation that the kernel was given.
        pipelines: one combination that gives every bit of the kernel's outputs, and those that differ from it at one
            place and give them too: the inputs do not tell them apart. Empty when none does.
        rows: names of the rows of `pipelines.toml` that give every bit.
        unknown: places at which nothing that is known gives the kernel's bits.
        nearest: the row that differs at the fewest places, or "" without a row for the scheme.
        differs: the places at which the kernel differs from `nearest`.
        outputs: how many were compared.
    """

    scheme: Scheme
    pipelines: tuple[Pipeline, ...]
    rows: tuple[str, ...]
    unknown: tuple[str, ...]
    nearest: str
    differs: tuple[str, ...]
    outputs: int

    def at(self, place: str) -> tuple[Any, ...]:
        """What fits at a place of `PLACES`: one value when it is known, several when they cannot be told apart.

        Raises:
            QsimError: no such place.
        """
        if place not in PLACES:
            raise QsimError(f"a place must be one of {', '.join(PLACES)}: got {place!r}")
        fields = PLACES[place]
        found = [tuple(getattr(row, name) for name in fields) for row in self.pipelines]
        return tuple(dict.fromkeys(value[0] if len(value) == 1 else value for value in found))

    def summary(self) -> str:
        """A line for each place, then the rows."""
        lines = [f"{place:<21} {self._words(place)}" for place in PLACES]
        lines.append(f"{'same bits as':<21} {', '.join(self.rows) or '-'}")
        if not self.rows and self.nearest:
            lines.append(f"{'nearest':<21} {self.nearest}, which differs in: {', '.join(self.differs)}")
        return "\n".join(lines)

    def _words(self, place: str) -> str:
        if place in self.unknown:
            return "unknown: nothing here gives these bits"
        return " or ".join(_word(place, value) for value in self.at(place)) or "not reached"


def _word(place: str, value: Any) -> str:
    if place == "promotion":
        return f"every {value[0]} of K by {value[1]}" if value[0] else "one chain"
    if place == "parts of K":
        return "one" if value[0] == 1 else f"{value[0]}, in turns of {value[1]}"
    if place == "order of K":
        return "ascending" if not value else "".join(f"{v} " for v in value).strip()
    return "; ".join(value) if isinstance(value, tuple) else str(value)


def probe_pipeline(kernel: Kernel, scheme: str | Scheme, *, tokens: int = 16) -> PipelineProbe:
    """Recover the pipeline of a black-box fused kernel: operand, instruction, promotion, order and parts of K, scales
    and roundings, output.

    Arguments:
        kernel: called with designed activations and weights; see `Kernel`.
        scheme: of the weight and activation that it takes. Its group size is what is probed; a kernel that needs more
            columns than 2048 is not known.
        tokens: M of every call.

    Returns:
        What fits. Where the scheme cannot show a difference (a fused multiply-add of zero points without zero points,
        instructions of two generations with the same model, all integer instructions), all that fit are named.

    Raises:
        QsimError: a scheme without alternatives; tokens below 1; outputs of another shape.

    Source: the idea of Fasi, Higham, Mikaitis and Pranesh (2021), carried from instructions to whole kernels.
    """
    how = get_scheme(scheme)
    if tokens < 1:
        raise QsimError(f"tokens must be at least 1: got {tokens}")
    ways = list(of_products(how))
    first = _Batch(kernel, how, tokens, designed.products, _SEEDS)
    shown = list(first.fitting(ways))
    if not shown:
        return _unexplained(how, tokens, first, None, [])
    second = _Batch(kernel, how, tokens, designed.sums, 1)
    known = next(iter(second.fitting(of_sums(shown))), None)
    if known is None:
        return _unexplained(how, tokens, first, second, shown)
    found = [known, *second.fitting(beside(known, shown))]
    rows, nearest, differs = _compared(how, found, tokens, (first, second))
    return PipelineProbe(scheme=how, pipelines=tuple(found), rows=rows, unknown=(), nearest=nearest, differs=differs,
                         outputs=first.size + second.size)  # fmt: skip


class _Batch:
    """Designed inputs of some seeds, and what the black box made of them."""

    def __init__(self, kernel: Kernel, scheme: Scheme, tokens: int, design: Callable[..., Any], seeds: int) -> None:
        self.calls: list[tuple[Any, PackedWeight, np.ndarray]] = []
        self.size = 0
        for seed in range(seeds):
            x, weight = design(scheme, -(-_BATCH // tokens) * tokens, seed)
            packed = pack(weight)
            for start in range(0, _length(x), tokens):
                part = _rows(x, start, start + tokens)
                y = designed.values_of(kernel(part, weight))
                if y.shape != (tokens, weight.shape[0]):
                    raise QsimError(
                        f"the kernel must return outputs of shape {(tokens, weight.shape[0])}: got {y.shape}"
                    )
                self.calls.append((part, packed, y))
                self.size += y.size

    def same(self, row: Pipeline) -> bool:
        """Whether a pipeline gives every bit; the first call that differs decides."""
        return all(np.array_equal(_outputs(x, packed, row), y) for x, packed, y in self.calls)

    def misses(self, row: Pipeline) -> int:
        return sum(int((_outputs(x, packed, row) != y).sum()) for x, packed, y in self.calls)

    def fitting(self, rows: Iterable[Pipeline]) -> Iterator[Pipeline]:
        return (row for row in rows if self.same(row))


def _outputs(x: Any, packed: PackedWeight, row: Pipeline) -> np.ndarray:
    return designed.values_of(linear(x, packed, exact=True, kernel=row))


def _length(x: Any) -> int:
    return len(x[0] if isinstance(x, tuple) else x)


def _rows(x: Any, start: int, stop: int) -> Any:
    if not isinstance(x, tuple):
        return x[start:stop]
    codes, scales = x
    return codes[start:stop], scales if scales.shape == (1,) else scales[start:stop]


def _rows_for(scheme: Scheme, tokens: int) -> list[Pipeline]:
    """Rows of the table that take the scheme with the scales that it has."""
    fmt = scheme.weight.scale_format
    names = ("", None if fmt is None else fmt.name)
    return [row for row in list_pipelines() if row.fits(scheme, tokens) and row.scale_format in names]


def _compared(
    scheme: Scheme, found: list[Pipeline], tokens: int, batches: tuple[_Batch, ...]
) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """Rows with all the bits; else the one that differs at the fewest places, and those."""
    rows = _rows_for(scheme, tokens)
    same = tuple(row.name for row in rows if all(batch.same(row) for batch in batches))
    if same or not rows:
        return same, same[0] if same else "", ()
    pairs = [(row.name, differing(row, way)) for row in rows for way in found]
    name, differs = min(pairs, key=lambda pair: len(pair[1]))
    return (), name, differs


def _unexplained(
    scheme: Scheme, tokens: int, first: _Batch, second: _Batch | None, shown: list[Pipeline]
) -> PipelineProbe:
    """Nothing fits: of single products, or of sums although single products are known."""
    unknown = _OF_PRODUCTS if second is None else _OF_SUMS
    near = min(_rows_for(scheme, tokens), key=(second or first).misses, default=None)
    return PipelineProbe(scheme=scheme, pipelines=tuple(shown), rows=(), unknown=unknown,
                         nearest="" if near is None else near.name, differs=unknown if near else (),
                         outputs=first.size + (0 if second is None else second.size))  # fmt: skip
