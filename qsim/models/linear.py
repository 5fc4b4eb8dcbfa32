"""One Linear of a decoder: its product is formed by a dequantised weight, a fused kernel or a tensor core."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from qsim.errors import QsimError
from qsim.scheme import Granularity, QuantizedTensor

from . import ops

F32 = np.float32
Engine: TypeAlias = "str | Callable[[Linear, np.ndarray], np.ndarray]"
_PIECE = 1 << 18  # values of a weight that are dequantised at a time: they stay in the cache
_MANY = 64  # tokens from which that and a product by BLAS takes less time than the fused kernel
_STREAMED = 16  # tokens up to which a weight-only product streams the packed weight
_FEW = 8  # tokens up to which a float32 weight is streamed rather than multiplied as a matrix
ENGINES = ("fused", "mixed", "dequantized", "exact")


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear:
    """y = x w^T + bias, by the engine that is asked for.

    Arguments:
        name: where it is in the model, without `.weight`.
        weight: (N, K) float32, or a quantised tensor, which brings the scheme of its activations.
        bias: (N,) float32 or None.
        engine: `fused` multiplies packed codes by `qsim.kernels.linear` (and float32 weights by BLAS); from 64 tokens
            on, activations that stay float32 are multiplied by BLAS, a part of the weight dequantised at a time, which
            sums the same products in another order. `mixed` does that with quantised activations too; `dequantized`
            multiplies the dequantised weight by the activation as the scheme leaves it, in float32; `exact` runs the
            tensor-core instruction, bit for bit. Or a function of the Linear and x (M, K) that returns (M, N) without
            the bias.
        instruction: of `exact`; None is Hopper's for the scheme's compute format, BF16 for float32 weights.
        activation: `bfloat16` or `float16` rounds x first, for float32 weights and weight-only schemes.
        input_transform: `hadamard` rotates x by `qsim.models.hadamard` first; the weight must have been rotated too.

    Raises:
        ValueError: shapes that do not fit, an unknown engine, an instruction without `exact`.
    """

    name: str
    weight: np.ndarray | QuantizedTensor
    bias: np.ndarray | None = None
    engine: Engine = "fused"
    instruction: str | None = None
    activation: str | None = None
    input_transform: str | None = None

    def __post_init__(self) -> None:
        if len(self.weight.shape) != 2:
            raise QsimError(f"a Linear's weight must be (N, K): got {self.weight.shape} ({self.name})")
        if isinstance(self.weight, np.ndarray) and self.weight.dtype != F32:
            raise QsimError(f"an unquantised weight must be float32: got {self.weight.dtype} ({self.name})")
        if self.bias is not None and self.bias.shape != (self.out_features,):
            raise QsimError(
                f"a bias must have one entry per output, ({self.out_features},): got {self.bias.shape} ({self.name})"
            )
        if not callable(self.engine) and self.engine not in ENGINES:
            raise QsimError(
                f"engine must be one of {', '.join(ENGINES)}, or a function: got {self.engine!r} ({self.name})"
            )
        if self.instruction is not None and self.engine != "exact":
            raise QsimError(f"instruction belongs to engine='exact': got engine={self.engine!r} ({self.name})")
        if self.activation not in (None, "bfloat16", "float16"):
            raise QsimError(f"activation rounds x to bfloat16 or float16: got {self.activation!r} ({self.name})")
        if self.input_transform not in (None, "hadamard"):
            raise QsimError(f"input_transform must be hadamard or None: got {self.input_transform!r} ({self.name})")

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def is_quantized(self) -> bool:
        return isinstance(self.weight, QuantizedTensor)

    @property
    def runs_compiled(self) -> bool:
        """Whether products of many tokens run in Numba's threads (packed codes) and not in those of BLAS."""
        return self.engine in ("fused", "exact") and self.is_quantized and not self._in_parts_when_many \
            and self.fallback is None  # fmt: skip

    @property
    def _in_parts_when_many(self) -> bool:
        """Whether a product of many tokens dequantises a part of the weight at a time, for BLAS."""
        if not isinstance(self.weight, QuantizedTensor) or self.engine == "mixed":
            return self.is_quantized
        return self.engine == "fused" and self.activation is None and not self.weight.scheme.activation.is_quantized

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads of the weight and bias, as their formats store them."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    @property
    def fallback(self) -> str | None:
        """What `fused` does instead when the format has no fused kernel; None when it has one."""
        if self.engine not in ("fused", "mixed") or not isinstance(self.weight, QuantizedTensor):
            return None
        from qsim.kernels import has_fused_kernel

        if has_fused_kernel(self.weight):
            return None
        return f"{self.weight.tensor_scheme.format.name} has no fused kernel: weights are dequantised once, to float32"

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The product.

        Arguments:
            x: (..., K) float32.

        Returns:
            (..., N) float32.

        Raises:
            ValueError: another K; NaN or Inf where the scheme quantises activations.
        """
        rows = x.reshape(-1, x.shape[-1])
        if rows.shape[1] != self.in_features:
            raise QsimError(f"{self.name} has {self.in_features} inputs: got x of shape {x.shape}")
        return self.rows(rows).reshape(*x.shape[:-1], self.out_features)

    def transformed(self, x: np.ndarray) -> np.ndarray:
        """What the weight multiplies: x, after `input_transform`."""
        if self.input_transform is None:
            return x
        from .transforms import rotate

        return rotate(x)

    def rows(self, x: np.ndarray) -> np.ndarray:
        """As a call, for x (M, K)."""
        if len(x) <= _STREAMED and self._streams is not None and x.dtype == F32 and x.flags.c_contiguous:
            return self._streams(x)
        x = self.transformed(x)
        if callable(self.engine):
            y = self.engine(self, x)
        elif isinstance(self.weight, np.ndarray):
            y = self._float(x, self.weight)
        elif len(x) >= _MANY and self._in_parts_when_many:
            y = self._in_parts(x, self.weight)
        elif self.engine == "dequantized" or self.fallback is not None:
            y = self._dequantized(x, self.weight)
        else:
            from qsim.kernels import linear

            exact = self.engine == "exact"
            try:
                return linear(x, self._packed, exact, self.instruction, activation=self.activation)
            except ValueError as error:
                raise QsimError(f"{self.name}: {error}") from None
        if self.bias is not None:
            y += self.bias
        return y

    @cached_property
    def _streams(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """The product of a few tokens without a look at what is known: in a decode step of a small model those looks
        take as long as a quarter of the products. None where there is more to do."""
        plain = self.engine in ("fused", "mixed") and self.activation is None and self.input_transform is None
        if not plain or not self.is_quantized or self.fallback is not None:
            return None
        from qsim.kernels.linear import stream_floats

        return stream_floats(self._packed)

    def _float(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        if self.engine == "exact":
            return self._exact_float(x, weight)
        if self.activation is not None:
            from qsim.formats import cast

            x = np.asarray(cast(x, self.activation), dtype=F32)
        if x.shape[0] <= _FEW and weight.flags.c_contiguous:
            return ops.few_tokens(np.ascontiguousarray(x), weight)
        return x @ weight.T

    def _exact_float(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        from qsim.tensorcore import get_instruction, matmul
        from qsim.tensorcore.floats import encode_operand

        ins = get_instruction(self.instruction or "hopper.wgmma.f32.bf16")
        if ins.input_a not in ("bf16", "f16", "tf32") or ins.output != "f32":
            raise QsimError(
                f"a float32 weight must be multiplied by an instruction of bf16, f16 or tf32 with f32 sums: got "
                f"{ins.name} ({self.name}); quantise the weight for the others"
            )
        return matmul(encode_operand(x, ins, "a"), self._exact_codes, instruction=ins).view(F32)

    @cached_property
    def _exact_codes(self) -> np.ndarray:
        from qsim.tensorcore import get_instruction
        from qsim.tensorcore.floats import encode_operand

        return encode_operand(self.weight, get_instruction(self.instruction or "hopper.wgmma.f32.bf16"), "b")

    def _taken(self, x: np.ndarray, weight: QuantizedTensor) -> tuple[np.ndarray, np.ndarray]:
        """The activation as the scheme leaves it, and the scale of each of its rows."""
        from qsim.kernels.activations import take

        try:
            act = take(x, weight.scheme.activation, input_scale=weight.input_scale, activation=self.activation)
        except ValueError as error:
            raise QsimError(f"{self.name}: {error}") from None
        values = act.values
        if act.group is not None:
            assert act.group_size is not None
            values = values * np.repeat(act.group, act.group_size, axis=1)[:, : values.shape[1]]
        return values, act.row

    def _in_parts(self, x: np.ndarray, weight: QuantizedTensor) -> np.ndarray:
        values, scales = self._taken(x, weight)
        block = weight.tensor_scheme.granularity.rows if weight.tensor_scheme.granularity is not None else None
        step = max(_PIECE // self.in_features // (block or 1), 1) * (block or 1)
        y = np.empty((len(x), self.out_features), F32)
        for first in range(0, self.out_features, step):
            y[:, first : first + step] = values @ weight[first : first + step].dequantize().T
        y *= scales[:, None]
        return y

    def _dequantized(self, x: np.ndarray, weight: QuantizedTensor) -> np.ndarray:
        values, scales = self._taken(x, weight)
        y = ops.few_tokens(values, self._values) if len(values) <= _FEW else values @ self._values.T
        y *= scales[:, None]
        return y

    @cached_property
    def _values(self) -> np.ndarray:
        assert isinstance(self.weight, QuantizedTensor)
        return self.weight.dequantize()

    @cached_property
    def _packed(self) -> Any:
        from qsim.kernels import pack

        assert isinstance(self.weight, QuantizedTensor)
        return pack(self.weight, bias=self.bias)

    def __repr__(self) -> str:
        what = self.weight.scheme.name or "quantised" if isinstance(self.weight, QuantizedTensor) else "float32"
        return f"Linear({self.name}, {self.out_features}x{self.in_features}, {what}, {self.engine})"


def stack(linears: Sequence[Linear], name: str) -> Linear | None:
    """One Linear that computes several of the same input side by side, or None where that would change a bit.

    A product is the same whether its weight stands alone or among others, as long as activations are quantised alike:
    the schemes and static input scales must agree, and so must act-order groups. One scale for a whole weight becomes
    one for each of its rows.
    """
    first = linears[0]
    same = ("engine", "instruction", "activation", "input_transform")
    if any(getattr(one, f) != getattr(first, f) for one in linears[1:] for f in same) or callable(first.engine):
        return None
    weights = [one.weight for one in linears]
    bias = None
    if any(one.bias is not None for one in linears):
        bias = np.concatenate([np.zeros(n.out_features, F32) if n.bias is None else n.bias for n in linears])
    weight: np.ndarray | QuantizedTensor | None
    if all(isinstance(w, np.ndarray) for w in weights):
        weight = stack_arrays(weights)  # type: ignore[arg-type]
    elif all(isinstance(w, QuantizedTensor) for w in weights):
        weight = _stack_quantized(weights)  # type: ignore[arg-type]
    else:
        weight = None
    return None if weight is None else dataclasses.replace(first, name=name, weight=weight, bias=bias)


def stack_arrays(weights: Sequence[np.ndarray]) -> np.ndarray:
    """Matrices on top of each other; the array that they are already the rows of, when they are."""
    base = weights[0].base
    rows = sum(w.shape[0] for w in weights)
    if isinstance(base, np.ndarray) and base.shape == (rows, weights[0].shape[1]) and base.dtype == F32:
        at, fits = base.__array_interface__["data"][0], base.flags.c_contiguous
        for w in weights:
            fits = fits and w.base is base and w.flags.c_contiguous and w.__array_interface__["data"][0] == at
            at += w.nbytes
        if fits:
            return base
    return np.concatenate(weights)


def _stack_quantized(weights: Sequence[QuantizedTensor]) -> QuantizedTensor | None:
    first = weights[0]
    how = first.tensor_scheme
    assert how.granularity is not None
    alike = all(
        w.scheme == first.scheme and w.input_scale == first.input_scale and w.tensor_scale == first.tensor_scale
        and _equal(w.group_index, first.group_index)
        for w in weights
    )  # fmt: skip
    rows = how.granularity.rows
    if not alike or (rows and any(w.shape[0] % rows for w in weights[:-1])):
        return None
    scheme = first.scheme
    if how.granularity.kind == "tensor":
        part = dataclasses.replace(how, granularity=Granularity(kind="channel"))
        scheme = dataclasses.replace(scheme, weight=part)

    def rows_of(w: QuantizedTensor, values: np.ndarray) -> np.ndarray:
        return np.repeat(values.reshape(1, 1), w.shape[0], axis=0) if values.ndim == 1 else values

    more: dict[str, Any] = {
        key: np.concatenate([rows_of(w, w.arrays[key]) for w in weights])
        for key in first.arrays if key not in ("codes", "group_index")
    }  # fmt: skip
    return dataclasses.replace(
        first,
        scheme=scheme,
        codes=np.concatenate([w.codes for w in weights]),
        **more,
    )


def _equal(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))
