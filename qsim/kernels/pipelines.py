"""Fused GEMM kernels of GPUs as rows of `pipelines.toml`: what each takes, and every step from codes to output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Literal, TypeAlias, get_args

from qsim.errors import QsimError, QsimTypeError, nearest
from qsim.fields import Fields
from qsim.files import parse_toml
from qsim.scheme import Scheme
from qsim.tables import Table
from qsim.tensorcore.presets import get_preset

Operand: TypeAlias = Literal["codes", "integers", "fold", "fma", "dequantize", "subnormal", "exponents"]
Status: TypeAlias = Literal["established", "source", "assumed"]
STEPS = (
    "times token scale",
    "times channel scale",
    "times token scale * channel scale",
    "times tensor scale",
    "times 2^offset",
    "round to bfloat16",
)
"""What an epilogue may do, in float32."""
OUTPUTS = ("bfloat16", "float32")
_PROMOTIONS = ("", "add", "ffma", "ffma_a_first")
_RULES = ("scheme", "reciprocal")


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """One kernel for one scheme of weights and activations. All arithmetic is float32, to nearest even, unless said.

    Arguments:
        name: `<kernel>.<format>`.
        weight: formats of the weight's codes that it takes; `any` is whatever can be dequantised.
        granularity: what shares a scale of the weight, as `Granularity` writes it; empty for block formats and `any`.
        scale_format: format of which every scale of the weight must be a value; empty when any float32 will do.
        activation: format of the activation and, when it is quantised, what shares a scale (`int8 token`).
        quantize: how x becomes codes. `reciprocal`: scale = amax / max, code = x * (1 / scale) to nearest even, on x
            rounded to BF16. `scheme`: by the scheme's own rule; the kernel itself takes codes and scales.
        operand: how the weight's codes become the instruction's B.
            `codes`: as they are. `integers`: their values, exact in the instruction's format.
            `fold`: BF16 of value * scale, zero point subtracted first.
            `fma`: BF16 of (code - 8) * scale + offset in one rounding, offset = BF16 of (8 - zero point) * scale.
            `dequantize`: BF16 of the float32 `QuantizedTensor.dequantize()`.
            `subnormal`: code c as the E4M3 number c * 2^-9, of which all but -8 are subnormal; sums are times 2^9.
            `exponents`: E2M1 value times 2^(block exponent - offset) as E4M3; offset = largest block exponent - 4.
        instruction: of `qsim.tensorcore`.
        chain: K of each chain that starts at +0, or 0 for one chain over all of K.
        promotion: how a chain's sum joins a float32 register, as in `qsim.tensorcore.matmul`; `ffma` takes the scales
            of the group.
        k_order: order of K inside each stretch of its length; ascending when empty.
        slices, slice_block: parts of K that run apart: part i takes blocks i, i + slices, ... of slice_block elements;
            they are added in order.
        epilogue: what follows, of `STEPS`.
        output: format of the result.
        fewest_tokens, most_tokens: M that it is known for.
        status: established (equal to recordings), source (published code) or assumed.
        source: where it is from.

    Raises:
        QsimError: a value that is none of those.
    """

    name: str
    weight: tuple[str, ...]
    activation: str
    operand: Operand
    instruction: str
    status: Status
    source: str
    granularity: tuple[str, ...] = ()
    scale_format: str = ""
    quantize: str = "scheme"
    chain: int = 0
    promotion: str = ""
    k_order: tuple[int, ...] = ()
    slices: int = 1
    slice_block: int = 0
    epilogue: tuple[str, ...] = ()
    output: str = "bfloat16"
    fewest_tokens: int = 1
    most_tokens: int | None = None

    def __post_init__(self) -> None:
        for key, value, known in (
            ("operand", self.operand, get_args(Operand)),
            ("status", self.status, get_args(Status)),
            ("output", self.output, OUTPUTS),
            ("promotion", self.promotion, _PROMOTIONS),
            ("quantize", self.quantize, _RULES),
            *(("epilogue", step, STEPS) for step in self.epilogue),
        ):
            if value not in known:
                raise QsimError(f"pipeline {self.name}: {key} must be one of {', '.join(known)}: got {value!r}")
        if bool(self.chain) != bool(self.promotion):
            raise QsimError(f"pipeline {self.name}: chain and promotion belong together: got {self.chain}")
        if (self.output == "bfloat16") != (self.epilogue[-1:] == ("round to bfloat16",)):
            raise QsimError(f"pipeline {self.name}: the last step must round to its output, {self.output}")

    @property
    def kernel(self) -> str:
        """The library or call: the name up to its first dot."""
        return self.name.split(".")[0]

    @property
    def takes(self) -> str:
        """What it takes in a few words: `int4 or uint4 group(128) by bfloat16`."""
        words = " or ".join(self.weight) + (f" {' or '.join(self.granularity)}" if self.granularity else "")
        return f"{words} by {self.activation}"

    def fits(self, scheme: Scheme, tokens: int | None = None) -> bool:
        """Whether it runs weights and activations of this scheme, for M = `tokens` if given."""
        weight, activation = scheme.weight, scheme.activation
        if "any" not in self.weight and weight.format.name not in self.weight:
            return False
        if "any" not in self.weight and weight.has_own_rule:
            return False
        if self.granularity and str(weight.granularity) not in self.granularity:
            return False
        if written(activation) != self.activation:
            return False
        return tokens is None or self.fewest_tokens <= tokens <= (self.most_tokens or tokens)


def written(activation: Any) -> str:
    """How a row writes the activation of a scheme: `bfloat16`, `int8 token`."""
    if not activation.is_quantized or activation.granularity is None:
        return activation.format.name
    return f"{activation.format.name} {activation.granularity}"


@lru_cache(maxsize=1)
def _rows() -> dict[str, Pipeline]:
    text = resources.files(__package__).joinpath("pipelines.toml").read_text(encoding="utf-8")
    rows: dict[str, Pipeline] = {}
    for number, table in enumerate(parse_toml(text, "pipelines.toml")["pipeline"]):
        fields = Fields(table, f"pipelines.toml: pipeline {table.get('name', number)}")
        known = (*Pipeline.__dataclass_fields__, "preset")
        unknown = next((key for key in table if key not in known), None)
        if unknown is not None:
            raise QsimError(f"{fields.where}: {nearest('key', unknown, known)}")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in table.items()
        }
        values |= _of_preset(values.pop("preset", None), values, fields.where)
        row = Pipeline(**values)
        if row.name in rows:
            raise QsimError(f"{fields.where} is there a second time")
        rows[row.name] = row
    return rows


def _of_preset(name: str | None, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Instruction, chain and promotion of a row that names a preset of `matmul`."""
    if name is None:
        return {}
    preset = get_preset(name)
    given = {"instruction": preset.instruction, "chain": preset.promote_every or 0,
             "promotion": preset.promotion if preset.promote_every else ""}  # fmt: skip
    twice = next((key for key in given if key in values), None)
    if twice is not None:
        raise QsimError(f"{where}: {twice} is said by preset {name!r}; leave it out")
    return given


def list_pipelines(prefix: str = "") -> Table[Pipeline]:
    """The fused kernels whose names start with `prefix`, as a table; iterating gives `Pipeline` values."""
    found = tuple(row for name, row in _rows().items() if name.startswith(prefix))
    return Table(
        columns=("pipeline", "takes", "operand", "instruction", "chain", "promotion", "output", "status"),
        rows=tuple(
            (r.name, r.takes, r.operand, r.instruction, r.chain or "K", r.promotion or None, r.output, r.status)
            for r in found
        ),
        values=found,
    )


def get_pipeline(name: str | Pipeline) -> Pipeline:
    """The row of that name, or the value itself.

    Raises:
        QsimError: no row has that name; the message has the nearest.
    """
    if isinstance(name, Pipeline):
        return name
    if not isinstance(name, str):
        raise QsimTypeError(f"a pipeline must be a name or a Pipeline: got {type(name).__name__}")
    if name not in _rows():
        raise QsimError(nearest("pipeline", name, _rows()))
    return _rows()[name]


def choose(kernel: str | Pipeline, scheme: Scheme, tokens: int) -> Pipeline:
    """The row of a kernel that runs this scheme.

    Arguments:
        kernel: a kernel (`humming`), the name of a row (`humming.w4a16`), or a `Pipeline`.
        scheme: of the packed weight.
        tokens: M.

    Raises:
        QsimError: an unknown kernel; a scheme or a number of tokens that it has no row for. The message says which
            kernels run the scheme, and what this one runs.
    """
    rows = _rows()
    kernels = list(dict.fromkeys(row.kernel for row in rows.values()))
    if isinstance(kernel, Pipeline):
        candidates = [kernel]
    elif not isinstance(kernel, str):
        raise QsimTypeError(f"kernel must be a name or a Pipeline: got {type(kernel).__name__}")
    elif kernel in rows:
        candidates = [rows[kernel]]
    elif kernel in kernels:
        candidates = [row for row in rows.values() if row.kernel == kernel]
    else:
        near = nearest("kernel", kernel, rows if "." in kernel else kernels)
        raise QsimError(f"{near}; qsim.list_pipelines() shows all")
    fitting = [row for row in candidates if row.fits(scheme)]
    found = next((row for row in fitting if row.fits(scheme, tokens)), None)
    if found is not None:
        return found
    label = candidates[0].name if len(candidates) == 1 else candidates[0].kernel
    if fitting:
        known = " and ".join(
            f"from {row.fewest_tokens} to {row.most_tokens}" if row.most_tokens else f"from {row.fewest_tokens}"
            for row in fitting
        )
        raise QsimError(f"{label} is known for this scheme for M {known}: got {tokens} tokens")
    others = list(dict.fromkeys(row.kernel for row in rows.values() if row.fits(scheme)))
    given = f"{scheme.weight.format.name} {scheme.weight.granularity} by {written(scheme.activation)}"
    instead = f"{' and '.join(others)} do{'es' if len(others) == 1 else ''}" if others else "no kernel here does"
    raise QsimError(f"{label} does not run {given}: {instead}; {label} runs {'; '.join(r.takes for r in candidates)}")
