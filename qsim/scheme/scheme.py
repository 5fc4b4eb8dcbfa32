"""A quantisation scheme: how weights, activations and the KV cache of a model are stored and multiplied.

One frozen value that the numerics obey and the hardware model prices. Nothing here touches a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qsim.errors import QsimError
from qsim.fields import Fields
from qsim.files import parse_toml
from qsim.formats import FloatFormat, Format, IntFormat, get_format

from .granularity import Count
from .tensor_scheme import PLAIN, TensorScheme, format_name, known_keys


def _plain(name: str) -> TensorScheme:
    return TensorScheme(format=get_format(name))


@dataclass(frozen=True, kw_only=True, repr=False)
class Scheme:
    """How a model is quantised: weights, activations, KV cache, and the format in which products are formed.

    `qsim.layouts.to_config` writes one as a Hugging Face `quantization_config`, and `from_config` reads one.

    Arguments:
        weight, activation, kv_cache: the parts; a name such as `bfloat16` stands for an unquantised part.
        compute: format of the operands of the multiplication. None derives it: int8 when both operands are integers of
            up to 8 bits, the operands' format when they agree, else the activation's (dequantise, then multiply).
        name: what to call it; it does not take part in equality.

    Raises:
        ValueError: parts that do not fit each other.
    """

    weight: TensorScheme
    activation: TensorScheme = field(default_factory=lambda: _plain("bfloat16"))
    kv_cache: TensorScheme = field(default_factory=lambda: _plain("bfloat16"))
    compute: Format | None = None
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        for part in ("weight", "activation", "kv_cache"):
            value = getattr(self, part)
            if not isinstance(value, TensorScheme):
                if isinstance(value, str) and get_format(value).name not in PLAIN:
                    raise QsimError(f"{part}={value!r} needs a granularity: give a TensorScheme")
                put(self, part, TensorScheme(format=value))
        put(self, "compute", get_format(self.compute) if self.compute is not None else self._derived_compute())
        self._check()

    def _derived_compute(self) -> Format:
        w, a = self.weight, self.activation
        if isinstance(w.format, IntFormat) and isinstance(a.format, IntFormat):
            return get_format("int8")
        if a.is_quantized and w.is_quantized and w.is_integer == a.is_integer:
            return a.format if a.bits >= w.bits else w.format
        return a.format if not a.is_quantized else get_format("bfloat16")

    def _check(self) -> None:
        w, a = self.weight, self.activation
        if w.granularity is not None and w.granularity.kind == "token":
            raise QsimError("weight granularity must be tensor, channel, group or block: got token")
        for part in ("activation", "kv_cache"):
            g = getattr(self, part).granularity
            if g is not None and g.kind in ("channel", "block"):
                raise QsimError(f"{part} granularity must be tensor, token or group(g): got {g}")
        for part in ("activation", "kv_cache"):
            if getattr(self, part).has_own_rule:
                raise QsimError(f"superblocks and minima are of weights: got {part} {getattr(self, part).summary}")
        if w.has_own_rule and a.is_quantized:
            raise QsimError(
                f"weights with superblocks or minima are multiplied by 16- or 32-bit activations: got {a.format.name}"
            )
        if w.dynamic:
            raise QsimError("a weight must have static scales: got weight.dynamic=True")
        if w.group_size and a.group_size and max(w.group_size, a.group_size) % min(w.group_size, a.group_size):
            raise QsimError(
                "the group sizes of weight and activation must divide one another: got "
                f"{w.group_size} and {a.group_size}"
            )
        compute = self.compute
        if isinstance(compute, IntFormat):
            for part, t in (("weight", w), ("activation", a)):
                if not isinstance(t.format, IntFormat) or t.bits > compute.bits:
                    raise QsimError(
                        f"integer products need integer operands of at most {compute.bits} bits: "
                        f"compute={compute.name}, {part} is {t.format.name}"
                    )
        if not a.is_quantized and w.is_quantized and isinstance(compute, FloatFormat) and compute.bits < 16:
            raise QsimError(
                f"an unquantised {a.format.name} activation cannot be multiplied in {compute.name}; "
                "quantise the activation or use a 16- or 32-bit compute format"
            )

    def bits_per_weight(self, shape: tuple[Count, ...] | None = None) -> Any:
        """`weight.bits_per_element(shape)`."""
        return self.weight.bits_per_element(shape)

    def __repr__(self) -> str:
        assert self.compute is not None
        name = f"{self.name}: " if self.name else ""
        parts = f"weight {self.weight.summary}; activation {self.activation.summary}; KV {self.kv_cache.summary}"
        return f"Scheme({name}{parts}; compute {self.compute.name})"

    def replace(self, **changes: Any) -> Scheme:
        """A copy with other parts; `compute` is derived anew unless given."""
        changes.setdefault("compute", None if {"weight", "activation"} & set(changes) else self.compute)
        return replace(self, **changes)

    def with_ragged(self) -> Scheme:
        """The same scheme, but the last group or block of weights and activations may be shorter, as `-ragged` says
        in a scheme's name.

        Raises:
            QsimError: weights with superblocks or minima, which come in whole groups.
        """
        weight, activation = (
            replace(part, ragged=True) if part.is_quantized else part for part in (self.weight, self.activation)
        )
        return replace(self, weight=weight, activation=activation)

    # --- serialisation ------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values, as written to TOML."""
        assert self.compute is not None
        head = {"name": self.name} if self.name else {}
        parts = {part: getattr(self, part).to_dict() for part in ("weight", "activation", "kv_cache")}
        return {**head, "compute": format_name(self.compute), **parts}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "a scheme") -> Scheme:
        """The inverse of `to_dict`; a part may be the name of a format that stands for itself.

        Raises:
            QsimError: an unknown key, a value of another type, or parts that do not fit; `where` names the table.
        """
        fields = Fields(data, where)
        known_keys(fields, cls)
        parts: dict[str, Any] = {key: fields.text(key) for key in ("name", "compute") if key in fields}
        for key in ("weight", "activation", "kv_cache"):
            if isinstance(data.get(key), Mapping):
                parts[key] = TensorScheme.from_dict(data[key], f"{where}: {key}")
            elif key in fields:
                parts[key] = fields.text(key)
        if "weight" not in parts:
            raise QsimError(f"{where}: weight is missing")
        return cls(**parts)

    def to_toml(self) -> str:
        """TOML text that `from_toml` reads back to an equal scheme."""
        lines, tables = [], []
        for key, value in self.to_dict().items():
            if isinstance(value, dict):
                tables += ["", f"[{key}]", *(f"{k} = {_toml(v)}" for k, v in value.items())]
            else:
                lines.append(f"{key} = {_toml(value)}")
        return "\n".join([*lines, *tables]) + "\n"

    @classmethod
    def from_toml(cls, text: str) -> Scheme:
        """A scheme from TOML text.

        Raises:
            QsimError: not TOML, or as `from_dict`.
        """
        return cls.from_dict(parse_toml(text, "a scheme"))


def _toml(value: str | bool | int) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
