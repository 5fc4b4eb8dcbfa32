"""A quantisation scheme: how weights, activations and the KV cache of a model are stored and multiplied.

One frozen value that the numerics obey and the hardware model prices. Nothing here touches a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from qsim.errors import QsimError, nearest
from qsim.fields import Fields
from qsim.files import parse_toml
from qsim.formats import BlockFormat, CodebookFormat, FloatFormat, Format, IntFormat, get_format

from .granularity import Count, Granularity, ceil_div, product

_SCALE_FORMATS = ("float32", "float16", "bfloat16", "float8_e8m0fnu", "float8_e4m3fn")
_PLAIN = ("float32", "float16", "bfloat16", "tf32")


@dataclass(frozen=True, kw_only=True, repr=False)
class TensorScheme:
    """How one tensor is stored: its format, what shares a scale, and how scales and zero points are kept.

    Arguments:
        format: name or value. A 16- or 32-bit float stands for itself: no scale, no granularity. A block format
            (`mxfp4`, `nvfp4`) brings its own scale and group. Symmetric integers are signed (`int4`), integers with a
            zero point unsigned (`uint4`).
        granularity: `tensor`, `channel`, `token`, `group(128)`, `block(128,128)`, or a `Granularity`.
        symmetric: no zero point.
        scale_format: float32, float16, bfloat16, E8M0 or E4M3.
        zero_point_format: how a zero point is stored: the integer format itself, packed (4 bits for uint4), or
            float16, bfloat16 or float32. Given exactly when not symmetric; defaults to the packed integer.
        dynamic: scales are found from each tensor as it comes (activations, KV cache) instead of stored with it.
        ragged: whether the last group or block of a row may be shorter.

    Raises:
        ValueError: parts that do not fit each other.
    """

    format: Format
    granularity: Granularity | None = None
    symmetric: bool = True
    scale_format: FloatFormat | None = None
    zero_point_format: IntFormat | FloatFormat | None = None
    dynamic: bool = False
    ragged: bool = False

    def __post_init__(self) -> None:
        fmt = get_format(self.format)
        put = object.__setattr__  # the one way a frozen value can normalise what it was given
        put(self, "format", fmt)
        if self.granularity is not None:
            put(self, "granularity", Granularity.parse(self.granularity))
        for name in ("scale_format", "zero_point_format"):
            value = getattr(self, name)
            if value is not None:
                put(self, name, get_format(value))
        if not self.is_quantized:
            self._check_plain()
        elif isinstance(fmt, BlockFormat):
            self._fill_block(fmt)
        else:
            self._check_scaled()

    def _check_plain(self) -> None:
        given = [n for n in ("granularity", "scale_format", "zero_point_format") if getattr(self, n) is not None]
        if given or not self.symmetric or self.dynamic:
            what = given[0] if given else "symmetric=False" if not self.symmetric else "dynamic=True"
            raise QsimError(f"{self.format.name} stands for itself and has no scale: {what} does not belong to it")

    def _fill_block(self, fmt: BlockFormat) -> None:
        group = Granularity(kind="group", columns=fmt.block_size)
        if self.granularity not in (None, group):
            raise QsimError(
                f"{fmt.name} must have blocks of {fmt.block_size} along the last axis: got {self.granularity}"
            )
        if self.scale_format not in (None, fmt.scale):
            raise QsimError(f"{fmt.name} must have {fmt.scale.name} scales: got {self.scale_format.name}")
        if not self.symmetric or self.zero_point_format is not None:
            raise QsimError(f"{fmt.name} is a block format of floats: it takes no zero point")
        object.__setattr__(self, "granularity", group)
        object.__setattr__(self, "scale_format", fmt.scale)

    def _check_scaled(self) -> None:
        fmt = self.format
        put = object.__setattr__
        if self.granularity is None:
            raise QsimError(f"{fmt.name} needs a granularity: tensor, channel, token, group(g) or block(r,c)")
        if self.scale_format is None:
            put(self, "scale_format", get_format("float32"))
        if self.scale_format is None or self.scale_format.name not in _SCALE_FORMATS:
            given = getattr(self.scale_format, "name", None)
            raise QsimError(f"scale_format must be one of {', '.join(_SCALE_FORMATS)}: got {given}")
        if isinstance(fmt, FloatFormat | CodebookFormat):
            if not self.symmetric or self.zero_point_format is not None:
                raise QsimError(f"a zero point belongs to integer formats: got {fmt.name} with symmetric=False")
            return
        assert isinstance(fmt, IntFormat)
        if self.symmetric:
            if self.zero_point_format is not None:
                raise QsimError(
                    f"symmetric {fmt.name} has no zero point: got zero_point_format="
                    f"{self.zero_point_format.name}; use symmetric=False"
                )
            if not fmt.signed:
                raise QsimError(
                    f"symmetric codes must be signed: got {fmt.name}; use int{fmt.bits}, or symmetric=False"
                )
            return
        if fmt.signed:
            raise QsimError(f"codes with a zero point must be unsigned: got {fmt.name}; use uint{fmt.bits}")
        if self.zero_point_format is None:
            put(self, "zero_point_format", fmt)
        zero = self.zero_point_format
        if not (zero == fmt or (zero is not None and zero.name in ("float16", "bfloat16", "float32"))):
            raise QsimError(
                f"a zero point of {fmt.name} must be stored as {fmt.name} (packed), float16, bfloat16 or "
                f"float32: got {getattr(zero, 'name', None)}"
            )

    # --- what it is ---------------------------------------------------------------------------------------

    @property
    def is_quantized(self) -> bool:
        """False for a 16- or 32-bit float that stands for itself."""
        return self.format.name not in _PLAIN or isinstance(self.format, BlockFormat)

    @property
    def is_integer(self) -> bool:
        return isinstance(self.format, IntFormat)

    @property
    def bits(self) -> int:
        """Bits of one code, without its share of scale and zero point."""
        return self.format.bits

    @property
    def group_size(self) -> int | None:
        """Elements along K that share a scale; None when a whole row does."""
        return self.granularity.columns if self.granularity is not None else None

    @property
    def summary(self) -> str:
        """The part in a few words: `uint4 group(128), float16 scales, zero points`, or `bfloat16`."""
        if not self.is_quantized:
            return self.format.name
        if isinstance(self.format, BlockFormat):
            return f"{self.format.name}{' dynamic' if self.dynamic else ''}"
        assert self.scale_format is not None
        words = [f"{self.format.name} {self.granularity}", f"{self.scale_format.name} scales"]
        if self.zero_point_format is not None:
            packed = self.zero_point_format == self.format
            words.append("zero points" if packed else f"{self.zero_point_format.name} zero points")
        words += [word for word in ("dynamic", "ragged") if getattr(self, word)]
        return ", ".join(words)

    def __repr__(self) -> str:
        return f"TensorScheme({self.summary})"

    # --- what it weighs -----------------------------------------------------------------------------------

    def check_shape(self, shape: tuple[Count, ...], name: str = "") -> None:
        """Refuse a shape that the granularity does not divide (unless `ragged`); `name` is the layer."""
        if self.granularity is not None:
            self.granularity.check(shape, ragged=self.ragged, name=name)

    def scale_count(self, shape: tuple[Count, ...]) -> Count:
        """Number of scales (and, when asymmetric, zero points) of a tensor of this shape."""
        return 0 if self.granularity is None else self.granularity.scale_count(shape)

    def code_nbytes(self, shape: tuple[Count, ...]) -> Count:
        """Bytes of the packed codes of a whole tensor: ceil(bits * elements / 8)."""
        return ceil_div(product(shape) * self.bits, 8)

    def scale_nbytes(self, shape: tuple[Count, ...]) -> Count:
        """Bytes of the scales, NVFP4's float32 tensor scale included."""
        if self.scale_format is None:
            return 0
        extra = 4 if isinstance(self.format, BlockFormat) and self.format.tensor_scale else 0
        return ceil_div(self.scale_count(shape) * self.scale_format.bits, 8) + extra

    def zero_point_nbytes(self, shape: tuple[Count, ...]) -> Count:
        """Bytes of the zero points, packed; 0 when symmetric."""
        if self.zero_point_format is None:
            return 0
        return ceil_div(self.scale_count(shape) * self.zero_point_format.bits, 8)

    def nbytes(self, shape: tuple[Count, ...]) -> Count:
        """Exact bytes of a tensor: packed codes, scales and zero points, each rounded up to whole bytes.

        Arguments:
            shape: sizes, last axis K. Sizes may be NumPy integer arrays that broadcast; the result is then an array.

        Raises:
            ValueError: a group that does not divide and is not `ragged`.
        """
        self.check_shape(shape)
        return self.code_nbytes(shape) + self.scale_nbytes(shape) + self.zero_point_nbytes(shape)

    def bits_per_element(self, shape: tuple[Count, ...] | None = None) -> Any:
        """Bits that one element costs, with its share of scales and zero points.

        Arguments:
            shape: the tensor; the result is 8 * nbytes / elements. None gives the limit of a large tensor whose rows
                divide: INT4 in groups of 128 with a float16 scale is 4.125, with a packed zero point 4.15625.
        """
        if shape is not None:
            return 8 * self.nbytes(shape) / np.asarray(product(shape), dtype=np.float64)[()]
        per_scale = 0 if self.scale_format is None else self.scale_format.bits
        per_scale += 0 if self.zero_point_format is None else self.zero_point_format.bits
        return self.bits + (per_scale / self.granularity.elements_per_scale if self.granularity is not None else 0.0)

    # --- TOML ---------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain values, keys left out where they are the default; `from_dict` is the inverse."""
        out: dict[str, Any] = {"format": _name(self.format)}
        if self.is_quantized and not isinstance(self.format, BlockFormat):
            assert self.scale_format is not None
            out["granularity"] = str(self.granularity)
            out["scale_format"] = _name(self.scale_format)
            if self.is_integer:
                out["symmetric"] = self.symmetric
            if self.zero_point_format is not None:
                out["zero_point_format"] = _name(self.zero_point_format)
        for name in ("dynamic", "ragged"):
            if getattr(self, name):
                out[name] = True
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "a tensor scheme") -> TensorScheme:
        """The inverse of `to_dict`.

        Raises:
            QsimError: an unknown key, a value of another type, or parts that do not fit; `where` names the table.
        """
        fields = Fields(data, where)
        _known_keys(fields, cls)
        texts = {key: fields.text(key) for key in ("format", "granularity", "scale_format", "zero_point_format")
                 if key in fields}  # fmt: skip
        flags = {key: fields.flag(key) for key in ("symmetric", "dynamic", "ragged") if key in fields}
        if "format" not in texts:
            raise QsimError(f"{where}: format is missing")
        return cls(**texts, **flags)  # type: ignore[arg-type]  # names become values in __post_init__


def _known_keys(fields: Fields, of: type) -> None:
    known = list(of.__dataclass_fields__)  # type: ignore[attr-defined]
    unknown = next((key for key in fields.table if key not in known), None)
    if unknown is not None:
        raise QsimError(f"{fields.where}: {nearest('key', unknown, known)}")


def _name(fmt: Format) -> str:
    try:
        known = get_format(fmt.name) == fmt
    except ValueError:
        known = False
    if not known:
        raise QsimError(
            f"format {fmt.name!r} is not registered, so its name cannot be written; qsim.formats.register it"
        )
    return fmt.name


def _plain(name: str) -> TensorScheme:
    return TensorScheme(format=get_format(name))


@dataclass(frozen=True, kw_only=True, repr=False)
class Scheme:
    """How a model is quantised: weights, activations, KV cache, and the format in which products are formed.

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
                if isinstance(value, str) and get_format(value).name not in _PLAIN:
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
        in a scheme's name."""
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
        return {**head, "compute": _name(self.compute), **parts}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "a scheme") -> Scheme:
        """The inverse of `to_dict`; a part may be the name of a format that stands for itself.

        Raises:
            QsimError: an unknown key, a value of another type, or parts that do not fit; `where` names the table.
        """
        fields = Fields(data, where)
        _known_keys(fields, cls)
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

    def to_quantization_config(self, method: str | None = None) -> dict[str, Any]:
        """The Hugging Face `quantization_config`; see `qsim.layouts.to_config`."""
        from qsim.layouts import to_config  # upward: a scheme in the words of a layout

        return to_config(self, method)

    @classmethod
    def from_quantization_config(cls, config: Mapping[str, Any]) -> Scheme:
        """A scheme from a Hugging Face `quantization_config`; see `qsim.layouts.from_config`."""
        from qsim.layouts import from_config  # upward, as above

        return from_config(config)


def _toml(value: str | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
