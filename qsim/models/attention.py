"""Attention over keys and values, and how its two matrix products are computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qsim.errors import QsimError
from qsim.formats import FloatFormat, cast, encode, get_format

from . import masked

F32 = np.float32
_ROWS = 512  # queries at a time, those of all heads of a KV head: their scores against 4096 keys are 8 MiB


@dataclass(frozen=True, kw_only=True)
class AttentionMath:
    """How scores (q k^T) and the mixture (p v) are multiplied.

    Arguments:
        operand_format: format that q, k, probabilities and v are rounded to before they are multiplied; None leaves
            them float32. FP8 takes one scale for each KV head's tile, amax / largest value; probabilities, at most 1,
            are multiplied by the largest power of two that the format has (2^8 for E4M3, as in FlashAttention-3).
        instruction: a tensor-core instruction of `qsim.tensorcore` that forms both products bit for bit; it brings its
            operand format. None sums in float32.

    Softmax is float32 in all of them.

    Raises:
        ValueError: an instruction that does not sum 16-bit floats, TF32 or FP8 in float32; a format that is not its.
    """

    operand_format: str | None = None
    instruction: str | None = None

    def __post_init__(self) -> None:
        if self.instruction is not None:
            from qsim.tensorcore import get_instruction

            ins = get_instruction(self.instruction)
            name = getattr(ins.format_a, "name", "")
            if not isinstance(ins.format_a, FloatFormat) or ins.format_a != ins.format_b or ins.output != "f32" \
                    or ins.block_a is not None:  # fmt: skip
                raise QsimError(
                    f"attention takes an instruction of equal float formats with f32 sums: got {self.instruction}"
                )
            if self.operand_format is not None and get_format(self.operand_format).name != name:
                raise QsimError(f"{self.instruction} multiplies {name}: got operand_format={self.operand_format!r}")
            object.__setattr__(self, "operand_format", name)
        if self.operand_format is not None:
            fmt = get_format(self.operand_format)
            if not isinstance(fmt, FloatFormat) or fmt.bits < 8:
                raise QsimError(f"attention operands must be floats of 8 to 32 bits: got {self.operand_format!r}")
            object.__setattr__(self, "operand_format", fmt.name)

    @property
    def is_plain(self) -> bool:
        """float32 throughout."""
        return self.operand_format in (None, "float32") and self.instruction is None


PLAIN = AttentionMath()


def attend(
    q: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    *,
    position: int,
    window: int | None,
    scale: float,
    math: AttentionMath,
    out: np.ndarray,
    soft_cap: float | None = None,
    sinks: np.ndarray | None = None,
) -> None:
    """Causal attention of one sequence.

    Arguments:
        q: (T, H, head_dim), query t at position + t.
        keys, values: (KV heads, position + T, head_dim).
        window: how many of the last keys, itself included, a query sees; None is all.
        scale: of the scores.
        math: how products are formed.
        out: (T, H, head_dim), written.
        soft_cap: c: scaled scores become c tanh(x / c) (Gemma 2); None leaves them.
        sinks: (H,) float32, a score beside those of the keys that takes its share and has no value (gpt-oss); None is
            none.
    """
    tokens, heads, size = q.shape
    group = heads // keys.shape[0]
    wide = window or position + tokens
    step = max(_ROWS // group, 1)
    for start in range(0, tokens, step):
        stop = min(start + step, tokens)
        first, last = max(0, position + start + 1 - wide), position + stop
        for kv in range(keys.shape[0]):
            k, v = keys[kv, first:last], values[kv, first:last]
            mine = slice(kv * group, (kv + 1) * group)
            rows = np.ascontiguousarray(q[start:stop, mine].transpose(1, 0, 2)).reshape(-1, size)
            scores = rows @ k.T if math.is_plain else _product(rows, k, math)
            factor = scale
            if soft_cap is not None:
                factor = 1.0
                scores *= F32(scale / soft_cap)
                np.tanh(scores, out=scores)
                scores *= F32(soft_cap)
            if sinks is None:
                masked.causal_softmax(scores, stop - start, first, position + start, wide, factor)
            else:
                masked.sink_softmax(scores, stop - start, first, position + start, wide, factor, sinks[mine])
            mixed = scores @ v if math.is_plain else _product(scores, v.T, math, first_is_probability=True)
            out[start:stop, mine] = mixed.reshape(group, -1, size).transpose(1, 0, 2)


def _product(a: np.ndarray, b: np.ndarray, math: AttentionMath, first_is_probability: bool = False) -> np.ndarray:
    """a b^T of rounded operands, (M, K) and (N, K)."""
    fmt: Any = get_format(math.operand_format or "float32")
    a_scale = b_scale = F32(1)
    b = np.ascontiguousarray(b)
    if fmt.bits == 8:
        a_scale = F32(2.0 ** -int(np.log2(fmt.max))) if first_is_probability else _scale(a, fmt)
        b_scale = _scale(b, fmt)
        a, b = a / a_scale, b / b_scale
    if math.instruction is None:
        y = np.asarray(cast(a, fmt), dtype=F32) @ np.asarray(cast(b, fmt), dtype=F32).T
    else:
        from qsim.tensorcore import matmul

        codes = [encode(np.ascontiguousarray(x, dtype=F32), fmt, overflow="saturate_finite") for x in (a, b)]
        y = matmul(codes[0], codes[1], instruction=math.instruction).view(F32)
    return y if fmt.bits != 8 else y * F32(a_scale * b_scale)


def _scale(x: np.ndarray, fmt: Any) -> np.float32:
    peak = F32(np.abs(x).max())
    return F32(peak / F32(fmt.max)) if peak > 0 else F32(1)
