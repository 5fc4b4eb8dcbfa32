"""What a fused kernel may do at each place, for one scheme: the pipelines that `probe_pipeline` tells apart."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

from qsim.errors import QsimError
from qsim.formats import BlockFormat
from qsim.scheme import Scheme
from qsim.tensorcore import get_instruction, list_instructions

from .pipelines import Pipeline, list_pipelines, written

PLACES: dict[str, tuple[str, ...]] = {
    "operand": ("operand",),
    "instruction": ("instruction",),
    "promotion": ("chain", "promotion"),
    "order of K": ("k_order",),
    "parts of K": ("slices", "slice_block"),
    "scales and roundings": ("epilogue",),
    "output": ("output",),
}
"""Where pipelines differ, and the fields of a row that say so."""
_CHAINS = (16, 32, 64, 128, 256, 512)
_SLICES = tuple(itertools.product((2, 4, 8), (64, 128, 256)))
_INPUTS = {"bfloat16": "bf16", "float8_e4m3fn": "e4m3", "int8": "s8"}
_ROUND = "round to bfloat16"


@lru_cache(maxsize=8)
def instructions(kind: str) -> tuple[str, ...]:
    """Names of instructions with these inputs that sum natively, one for each distinct model, Hopper's first."""
    found: dict[Any, str] = {}
    names = sorted(list_instructions(), key=lambda name: not name.startswith("hopper.wgmma"))
    for name in names:
        ins = get_instruction(name)
        if ins.input_a == ins.input_b == kind and ins.output in ("f32", "s32") and ins.arithmetic != "emulated":
            found.setdefault("integer" if ins.output == "s32" else model_of(name), name)
    return tuple(found.values())


def model_of(name: str) -> Any:
    """The instruction without what changes no bit of a chain."""
    ins = get_instruction(name)
    if ins.output == "s32":
        return "integer"
    return replace(ins, name="row", status="", source="", shape="", opcode="")


def of_products(scheme: Scheme) -> Iterator[Pipeline]:
    """Operand, promotion by scales, epilogue and output: all that shows in a single product.

    Raises:
        QsimError: a scheme of weights and activations that no kernel here multiplies.
    """
    weight, how = scheme.weight, scheme.activation
    name = _INPUTS.get(how.format.name)
    if not weight.is_quantized or name is None:
        raise QsimError(
            f"pipelines of quantised weights by bfloat16, int8 or float8_e4m3fn activations can be probed: got "
            f"{weight.format.name} by {how.format.name}"
        )
    base = Pipeline(
        name="probed.row", weight=(weight.format.name,), activation=written(how), operand="codes",
        instruction=instructions(name)[0], status="assumed", source="probed", output="float32",
    )  # fmt: skip
    found = False
    for operand, promotion in _operands(scheme):
        chain = (weight.group_size or 0) if promotion else 0
        for output in ("bfloat16", "float32"):
            for epilogue in _epilogues(_steps(scheme, operand, promotion), output):
                found = True
                yield replace(base, operand=operand, promotion=promotion, chain=chain, epilogue=epilogue, output=output)  # type: ignore[arg-type]
    if not found:
        raise QsimError(f"no pipeline here multiplies {weight.format.name} {weight.granularity} by {written(how)}")


def _operands(scheme: Scheme) -> list[tuple[str, str]]:
    """(operand, promotion) pairs; with a promotion the scales of a chain are in it."""
    weight, how = scheme.weight, scheme.activation
    kind = "" if weight.granularity is None else weight.granularity.kind
    grouped = kind in ("group", "block")
    joins = ("ffma", "ffma_a_first") if how.group_size else ("ffma",)  # without scales of x they are the same
    if isinstance(weight.format, BlockFormat):
        if how.format.name == "bfloat16":
            return [("fold", ""), *([("dequantize", "")] if weight.format.tensor_scale else [])]
        return [("exponents", "")] if weight.format.name == "mxfp4" and how.format.name == "float8_e4m3fn" else []
    if how.format.name == "bfloat16":
        if not weight.is_integer:
            return [("fold", "")]
        out = [("fold", "")] + ([("fma", "")] if weight.bits == 4 and kind != "tensor" else [])
        if weight.symmetric:
            out += [("integers", join) for join in joins] if grouped else [("integers", "")]
        return out
    if not weight.symmetric:
        return []
    if how.format.name == "int8":
        if not weight.is_integer:
            return []
        return [("codes", "ffma")] if grouped else [("codes", "")]
    if weight.format.name == "float8_e4m3fn":
        return [("codes", join) for join in joins] if grouped else [("codes", "")]
    if weight.format.name == "int4" and grouped:
        return [(operand, join) for operand in ("subnormal", "integers") for join in joins]
    return []


def _steps(scheme: Scheme, operand: str, promotion: str) -> list[str]:
    """Scales that an epilogue must still multiply by."""
    weight, how, out = scheme.weight, scheme.activation, []
    if operand == "exponents":
        out.append("times 2^offset")
    if how.is_quantized and how.granularity is not None and how.granularity.kind in ("token", "tensor"):
        out.append("times token scale")
    if operand in ("codes", "integers") and not promotion:
        out.append("times channel scale")
    if isinstance(weight.format, BlockFormat) and weight.format.tensor_scale and operand == "fold":
        out.append("times tensor scale")
    return out


def _epilogues(steps: list[str], output: str) -> Iterator[tuple[str, ...]]:
    """Every order of the steps, rounded to BF16 or not before each of them. A power of two changes no rounding: it
    comes first."""
    first = [step for step in steps if step == "times 2^offset"]
    orders = [list(order) for order in itertools.permutations(step for step in steps if step not in first)]
    if {"times token scale", "times channel scale"} <= set(steps):
        orders.append(["times token scale * channel scale"])
    for order in orders:
        for rounded in itertools.product((False, True), repeat=len(order)):
            out = list(first)
            for step, before in zip(order, rounded, strict=True):
                out += [_ROUND, step] if before else [step]
            yield tuple(out + ([_ROUND] if output == "bfloat16" else []))


def of_sums(rows: list[Pipeline]) -> Iterator[Pipeline]:
    """The same rows with every instruction, chain, order of K and split; those of Hopper first."""
    kind = get_instruction(rows[0].instruction).input_a
    orders = list(dict.fromkeys(((), *(other.k_order for other in list_pipelines()))))
    for name in instructions(kind):
        whole = model_of(name) == "integer"
        step = get_instruction(name).products
        for chain in (0, *(c for c in _CHAINS if c % step == 0)):
            for order, (slices, block) in [*((o, (1, 0)) for o in orders), *(((), part) for part in _SLICES)]:
                for row in rows:
                    if not (whole or row.promotion):
                        yield replace(row, instruction=name, chain=chain, promotion="add" if chain else "",
                                      k_order=order, slices=slices, slice_block=block)  # fmt: skip
                    elif not (chain or order or slices > 1):
                        yield replace(row, instruction=name)


def beside(found: Pipeline, rows: list[Pipeline]) -> Iterator[Pipeline]:
    """What differs from a pipeline at one place only: one of `of_sums`, or another row of `rows`."""
    for way in of_sums([replace(found, chain=0 if found.promotion == "add" else found.chain,
                                promotion="" if found.promotion == "add" else found.promotion)]):  # fmt: skip
        places = [place for place in PLACES if _at(way, place) != _at(found, place)]
        if len(places) == 1:
            yield way
    for row in rows:
        source = row if row.promotion else found
        joined = {"chain": source.chain, "promotion": source.promotion}
        other = replace(found, operand=row.operand, epilogue=row.epilogue, output=row.output, **joined)  # type: ignore[arg-type]
        if other != found and bool(row.promotion) == (found.promotion not in ("", "add")):
            yield other


def _at(row: Pipeline, place: str) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in PLACES[place])


def differing(a: Pipeline, b: Pipeline) -> tuple[str, ...]:
    """The places at which two pipelines differ, as far as bits tell: instructions by their model, the last rounding
    with the output."""

    def at(row: Pipeline, place: str) -> Any:
        if place == "instruction":
            return model_of(row.instruction)
        if place == "operand" and row.operand == "dequantize":
            return "fold"  # the same numbers, but for a scale over the whole tensor, which the epilogue shows
        if place == "scales and roundings":
            return row.epilogue[:-1] if row.output == "bfloat16" else row.epilogue
        return _at(row, place)

    return tuple(place for place in PLACES if at(a, place) != at(b, place))
