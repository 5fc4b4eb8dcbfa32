"""How one element of a fused kernel, and the table of kernels, look in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.text import Text

from qsim.cli.table import Column, print_table, say
from qsim.formats.explain import number
from qsim.kernels.pipelines import Pipeline, list_pipelines
from qsim.kernels.trace import Trace

if TYPE_CHECKING:
    from rich.console import Console

_OPERANDS = {
    "codes": "The weight's codes go to the instruction as they are.",
    "integers": "The weight's integers go to the instruction as BF16 numbers, which hold them exactly.",
    "fold": "Code (less its zero point) times scale is rounded to BF16: the operand is the weight, rounded once.",
    "fma": "(code - 8) * scale + offset is rounded to BF16 once; the offset is BF16 too and stands for the zero point.",
    "dequantize": "The weight was dequantised beforehand and rounded to BF16.",
    "subnormal": "Code c becomes the E4M3 number c * 2^-9 without a shift of bits. All but -8 are subnormal, and the "
    "tensor core does not normalise them: of its 13 fraction bits up to three are empty.",
    "exponents": "The block's exponent, less an offset for the whole tensor, goes into the E4M3 number: exact.",
}
_TABLE = (
    Column("pipeline", "pipeline", left=True), Column("takes", "takes", left=True, fold=True),
    Column("operand", "operand", left=True), Column("status", "status", left=True),
)  # fmt: skip
_PRODUCTS = (
    Column("k", "k"), Column("x", "x", number), Column("A", "a", number), Column("code", "code"),
    Column("scale", "scale", lambda v: "" if v is None else number(v)), Column("B", "b", number),
    Column("B's code", "b_code", lambda v: f"{v:#x}"),
)  # fmt: skip
_PARTS = (
    Column("K", "label", left=True), Column("chain", "sum", lambda v: "" if v is None else number(v)),
    Column("scale", "scale", lambda v: "" if v is None else number(v)), Column("after it", "after", number),
)  # fmt: skip
_STEPS = (
    Column("step", "what", left=True), Column("by", "by", lambda v: "" if v is None else number(v)),
    Column("value", "value", number), Column("float32", "bits"),
)  # fmt: skip


def pipeline_rows(prefix: str) -> list[dict[str, Any]]:
    """The table of fused kernels."""
    return [
        {"pipeline": r.name, "takes": r.takes, "operand": r.operand, "instruction": r.instruction,
         "chain": r.chain or None, "promotion": r.promotion or None, "output": r.output, "status": r.status,
         "source": r.source}
        for r in list_pipelines(prefix)
    ]  # fmt: skip


def print_pipelines(rows: Sequence[dict[str, Any]], out: Console) -> None:
    """The fused kernels, one per line."""
    print_table(_TABLE, rows, lined=True, gap=2, indent=1)
    out.print()
    say("operand: how codes become operands of the instruction; status: how the row is known. `--pipeline NAME` shows "
        "one element step by step.")  # fmt: skip


def as_dict(t: Trace) -> dict[str, Any]:
    """The whole trace as plain values."""
    rest = ("products", "parts", "steps")
    return {
        "pipeline": t.row.name, "scheme": repr(t.scheme), "status": t.row.status, "source": t.row.source,
        "instruction": t.row.instruction, "token_scale": t.token_scale,
        **{key: [asdict(one) for one in getattr(t, key)] for key in rest},
        "result": t.result, "code": f"{t.code:#x}", "exact": t.exact,
    }  # fmt: skip


def print_trace(t: Trace, out: Console) -> None:
    """One element from codes to result."""
    row = t.row
    out.print(Text.assemble(("y = x · w", "bold"), " by ", (row.name, "bold"), f"  ({row.status})"), soft_wrap=True)
    say(f"{row.source}.")
    weight = t.scheme.weight.summary
    say(f"Weight: {weight}. Activation: {t.scheme.activation.summary}. The first of 128 outputs.")
    _head("1  Operands", f"A and B of {row.instruction}", out)
    if t.token_scale is not None:
        say(f"x is divided by the scale of its token, {number(t.token_scale)}, and rounded to A.")
    say(_OPERANDS[row.operand])
    out.print()
    print_table(_PRODUCTS, [asdict(p) for p in t.products], lined=True, gap=3, indent=1)
    _head("2  Sums", _order(row), out)
    out.print()
    promoted = any(p.sum is not None for p in t.parts)
    shown: tuple[Column, ...] = _PARTS if promoted else (_PARTS[0], _PARTS[3])
    if not any(p.scale is not None for p in t.parts):
        shown = tuple(c for c in shown if c.keys != "scale")
    print_table(shown, [asdict(p) for p in t.parts], lined=True, gap=3, indent=1)
    _head("3  Epilogue", "every step in float32", out)
    out.print()
    import numpy as np

    print_table(
        _STEPS,
        [{**asdict(s), "bits": f"{int(np.float32(s.value).view(np.uint32)):08x}"} for s in t.steps],
        lined=True, gap=3, indent=1,
    )  # fmt: skip
    out.print()
    error = t.result - t.exact
    out.print(Text.assemble(("  Result  ", "bold"), (number(t.result), "bold green"), f"  ({t.code:#x})"))
    out.print(Text.assemble(("  Exact   ", "bold"), f"{number(t.exact)}  (error {error:+.3g}; that of the activation's "
                                                    "rounding included)" if t.token_scale is not None
                            else f"{number(t.exact)}  (error {error:+.3g})"))  # fmt: skip


def _head(title: str, more: str, out: Console) -> None:
    out.print()
    out.print(Text.assemble((title, "bold"), f"  {more}"))


def _order(row: Pipeline) -> str:
    if row.slices > 1:
        return f"{row.slices} parts of K apart, blocks of {row.slice_block} in turn; chains of {row.chain} added up"
    if not row.chain:
        return "one chain over K" + (", in the kernel's own order" if row.k_order else "")
    how = {"add": "added to a register", "ffma": "to a register by fma(chain, scale, register)",
           "ffma_a_first": "to a register by fma(chain * x's scale, w's scale, register)"}[row.promotion]  # fmt: skip
    return f"a chain from +0 for each {row.chain} of K, {how}"
