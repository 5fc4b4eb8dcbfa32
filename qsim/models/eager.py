"""A decoder as eager PyTorch runs it on an H200, every activation bit for bit.

    model = with_scheme(load("tiny"), scheme)
    run = run_eager(model, tokens, kernel="humming")
    run.activations["0.norm1"], run.logits

The operators are those of `qsim.kernels.eager`, the Linears rows of `qsim.list_pipelines()`. Given what was recorded on
a device, each operator starts from the recorded inputs, so that the first one that differs is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from qsim.arrays import as_plain_array
from qsim.errors import QsimError
from qsim.formats import decode, encode
from qsim.kernels import Pipeline, eager, linear, pack
from qsim.kernels.pipelines import choose
from qsim.scheme import QuantizedTensor
from qsim.tables import Table

from .families import block_names, model_names
from .model import Model

Attention: TypeAlias = Literal["eager", "math"]
_FAMILIES = ("llama", "mistral")
_HEAD = "logits"


@dataclass(frozen=True, kw_only=True, eq=False)
class EagerRun:
    """What a run computed.

    Attributes:
        activations: by name, in the order in which they come about. `<block>.<name>` inside blocks: `embedding` (the
            hidden states it reads), `norm1`, `q`, `k`, `v`, `q_rope`, `k_rope`, `scores`, `softmax.f32`, `attention`,
            `o`, `residual1`, `norm2`, `gate`, `up`, `silu`, `act`, `down`, `residual2`, and what belongs to them;
            `norm` and `logits` at the end. BF16 codes (uint16), but float32 where the name ends in `.f32` and E4M3
            codes (uint8) where it ends in `.e4m3`.
        compared: activations that were given as recorded: elements and how many differ.
    """

    activations: Mapping[str, np.ndarray]
    compared: Table[str]

    @property
    def logits(self) -> np.ndarray | None:
        """(T, vocabulary) BF16 codes; None when not all blocks were run."""
        return self.activations.get(_HEAD)

    @property
    def first_difference(self) -> str | None:
        """The first recorded activation that differs though its operator read recorded inputs; None when none does."""
        return next((str(row[0]) for row in self.compared.rows if row[2]), None)


class _Steps:
    """Sees every activation: keeps it, and goes on with the recorded one where there is one."""

    def __init__(self, recorded: Mapping[str, Any]) -> None:
        self.recorded = dict(recorded)
        self.seen: dict[str, np.ndarray] = {}
        self.rows: list[tuple[str, int, int]] = []

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        self.seen[name] = value
        if name not in self.recorded:
            return value
        given = as_plain_array(self.recorded[name], f"recorded {name}")
        if value.dtype == np.float32 and given.dtype == np.uint32:
            given = given.view(np.float32)
        if given.dtype != value.dtype or given.shape != value.shape:
            raise QsimError(
                f"recorded {name} must be {value.dtype} {value.shape} as computed: got {given.dtype} {given.shape}"
            )
        bits = f"u{value.dtype.itemsize}"
        self.rows.append((name, value.size, int((given.view(bits) != value.view(bits)).sum())))
        return given

    def table(self) -> Table[str]:
        unknown = next((name for name in self.recorded if name not in self.seen), None)
        if unknown is not None:
            raise QsimError(f"recorded {unknown} is no activation of this run; EagerRun.activations has the names")
        return Table(columns=("activation", "elements", "differ"), rows=tuple(self.rows),
                     values=tuple(row[0] for row in self.rows))  # fmt: skip


def run_eager(
    model: Model,
    tokens: Any,
    *,
    kernel: str | Pipeline | None = None,
    blocks: int | None = None,
    attention: Attention = "eager",
    recorded: Mapping[str, Any] | None = None,
) -> EagerRun:
    """The activations of a decoder in BF16 as eager PyTorch with Hugging Face's code computes them on an H200.

    Arguments:
        model: of the Llama family, with weights that are BF16 values. Linears that are quantised run on `kernel`, the
            others on cuBLAS.
        tokens: (T,) token ids, T up to 8192: a prefill of one sequence.
        kernel: the fused kernel of quantised Linears, as `linear(..., exact=True, kernel=...)` takes it. Where it takes
            FP8 codes of activations, they are made by three operators of PyTorch, see `quantize_fp8`.
        blocks: how many blocks to run; None runs all, the final norm and the head.
        attention: `eager` is Hugging Face's own, in BF16 with float32 softmax; `math` the math back-end of
            `scaled_dot_product_attention`, float32 throughout.
        recorded: activations of a device by the names of `EagerRun.activations`. Each is compared with what is
            computed, and the operators that follow read the recorded one.

    Raises:
        QsimError: a model of another family, or with what this does not know (biases, windows, scaled rotary
            embeddings, a quantised KV cache); weights that are no BF16 values; a kernel that is missing or does not run
            a scheme; tokens, blocks or recorded arrays that do not fit.
    """
    _check(model)
    ids = as_plain_array(tokens, "tokens")
    vocabulary = model.config.vocab_size
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not 1 <= len(ids) <= eager.LONGEST_SOFTMAX:
        raise QsimError(
            f"tokens must be 1 to {eager.LONGEST_SOFTMAX} whole numbers of one sequence: got {ids.dtype} {ids.shape}"
        )
    if not ((ids >= 0) & (ids < vocabulary)).all():
        raise QsimError(f"tokens must be 0 to {vocabulary - 1}: got {int(ids.min())} to {int(ids.max())}")
    if attention not in ("eager", "math"):
        raise QsimError(f"attention must be eager or math: got {attention!r}")
    count = model.config.num_hidden_layers
    if blocks is not None and not 1 <= blocks <= count:
        raise QsimError(f"blocks must be 1 to {count}: got {blocks}")
    steps, names = _Steps(recorded or {}), model_names(model.config)
    runner = _Runner(model, steps, kernel, attention)
    x = runner.codes(names.embedding)[ids]
    for index in range(count if blocks is None else blocks):
        x = runner.block(index, x)
    if blocks is None:
        assert names.norm is not None  # of the families that are run
        h = runner.norm(x, names.norm, "norm")
        head = names.head if f"{names.head}.weight" in model.tensors else names.embedding
        runner.linear(h, head, _HEAD)
    return EagerRun(activations=steps.seen, compared=steps.table())


def _check(model: Model) -> None:
    c = model.config
    plain = {
        f"family {c.architecture}": c.architecture in _FAMILIES,
        "biases": not (c.attention_bias or c.attention_out_bias or c.mlp_bias),
        "sliding windows": not any(c.sliding_windows),
        "scaled rotary embeddings": c.rope_scaling is None and c.partial_rotary_factor == 1,
        "a quantised KV cache": model.kv_cache is None,
        f"activation {c.hidden_act}": c.hidden_act == "silu",
        "linear_settings": not model.linear_settings,
    }
    odd = next((what for what, known in plain.items() if not known), None)
    if odd is not None:
        raise QsimError(
            f"the bits of eager PyTorch are known for decoders of {' and '.join(_FAMILIES)} without biases, windows, "
            f"scaled rotary embeddings and KV quantisation: this model has {odd}"
        )


class _Runner:
    def __init__(self, model: Model, steps: _Steps, kernel: str | Pipeline | None, attention: Attention) -> None:
        self.model, self.steps, self.kernel, self.attention = model, steps, kernel, attention

    def codes(self, name: str) -> np.ndarray:
        """BF16 codes of a stored tensor that is not quantised."""
        values = self.model.tensors[f"{name}.weight"]
        assert isinstance(values, np.ndarray)
        codes = np.asarray(encode(values, "bfloat16"))
        if not np.array_equal(decode(codes, "bfloat16"), values):
            raise QsimError(f"weights must be BF16 values: {name}.weight has others; round them with qsim.cast first")
        return codes

    def linear(self, x: np.ndarray, name: str, label: str) -> np.ndarray:
        weight = self.model.tensors[f"{name}.weight"]
        if not isinstance(weight, QuantizedTensor):
            return self.steps(label, eager.product(x, self.codes(name)))
        if self.kernel is None:
            raise QsimError(f"{name} is quantised ({weight.scheme.name}): kernel must name what multiplies it")
        row = choose(self.kernel, weight.scheme, len(x))
        given: Any = x
        if weight.scheme.activation.is_quantized and row.quantize == "scheme":
            given = self._fp8(x, row, label)
        y = linear(given, pack(weight), exact=True, kernel=row)
        return self.steps(label, eager.narrow(y))

    def _fp8(self, x: np.ndarray, row: Pipeline, label: str) -> tuple[np.ndarray, np.ndarray]:
        if row.activation != "float8_e4m3fn token":
            raise QsimError(
                f"activations in FP8 with one scale per token are quantised as PyTorch does it: {row.name} takes "
                f"{row.activation}"
            )
        codes, scale = eager.quantize_fp8(x)
        return self.steps(f"{label}.x.e4m3", codes), self.steps(f"{label}.x_scale.f32", scale)

    def norm(self, x: np.ndarray, name: str, label: str) -> np.ndarray:
        variance = self.steps(f"{label}.variance.f32", eager.mean_squares(x))
        scale = self.steps(f"{label}.rsqrt.f32", eager.root_scale(variance, self.model.config.norm_eps))
        return self.steps(label, eager.scaled(x, scale, self.codes(name)))

    def block(self, index: int, x: np.ndarray) -> np.ndarray:
        names, at = block_names(self.model.config, index), f"{index}."
        assert names.attention_norm is not None
        assert names.mlp_norm is not None
        x = self.steps(f"{at}embedding", x)
        h = self.norm(x, names.attention_norm, f"{at}norm1")
        q, k, v = (
            self._heads(self.linear(h, n, at + short)) for n, short in zip(names.projections, "qkv", strict=True)
        )
        a = self._attend(*self._turned(q, k, at), v, at)
        o = self.linear(np.ascontiguousarray(a.transpose(1, 0, 2)).reshape(len(x), -1), names.output, f"{at}o")
        x = self.steps(f"{at}residual1", eager.add(x, o))
        h = self.norm(x, names.mlp_norm, f"{at}norm2")
        gate, up = (self.linear(h, n, at + short) for n, short in zip(names.mlps[0].first, ("gate", "up"), strict=True))
        silu = self.steps(f"{at}silu", eager.silu(gate))
        act = self.steps(f"{at}act", eager.multiply(silu, up))
        down = self.linear(act, names.mlps[0].down, f"{at}down")
        return self.steps(f"{at}residual2", eager.add(x, down))

    def _heads(self, x: np.ndarray) -> np.ndarray:
        """(heads, T, head_dim)."""
        return np.ascontiguousarray(x.reshape(len(x), -1, self.model.config.head_dim).transpose(1, 0, 2))

    def _turned(self, q: np.ndarray, k: np.ndarray, at: str) -> tuple[np.ndarray, np.ndarray]:
        c, length = self.model.config, q.shape[1]
        inverse = self.steps(f"{at}inverse_frequency.f32", eager.inverse_frequencies(c.rope_theta, c.head_dim))
        cos, sin = eager.rotary_tables(inverse, length)
        cos, sin = self.steps(f"{at}cos", cos), self.steps(f"{at}sin", sin)
        q = self.steps(f"{at}q_rope", eager.rotate(q, cos, sin))
        return q, self.steps(f"{at}k_rope", eager.rotate(k, cos, sin))

    def _attend(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, at: str) -> np.ndarray:
        group = len(q) // len(k)
        if self.attention == "math":
            mixed = [eager.sdpa_math(q[h], k[h // group], v[h // group]) for h in range(len(q))]
            return self.steps(f"{at}attention", np.stack(mixed))
        factor = self.model.config.score_scale
        scores = [eager.attention_scores(q[h], k[h // group], factor) for h in range(len(q))]
        p = self.steps(f"{at}softmax.f32", eager.causal_softmax(self.steps(f"{at}scores", np.stack(scores))))
        shares, columns = eager.narrow(p), np.ascontiguousarray(v.swapaxes(1, 2))
        mixed = [eager.product(shares[h], columns[h // group]) for h in range(len(q))]
        return self.steps(f"{at}attention", np.stack(mixed))
