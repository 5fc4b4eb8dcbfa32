"""How one tensor is stored: the part of a `Scheme` that describes weights, activations or the KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qsim.errors import QsimError, nearest
from qsim.fields import Fields
from qsim.formats import BlockFormat, CodebookFormat, FloatFormat, Format, IntFormat, get_format

from .granularity import Count, Granularity, ceil_div, product

_SCALE_FORMATS = ("float32", "float16", "bfloat16", "float8_e8m0fnu", "float8_e4m3fn")
PLAIN = ("float32", "float16", "bfloat16", "tf32")
"""Formats that stand for themselves."""
_FORMATS = ("scale_format", "zero_point_format", "minimum_format")


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
        minimum_format: instead of a zero point, integers can have a minimum of this format, subtracted after scaling:
            value = code * scale - minimum. For weights only.
        superblock: elements along K whose scales, and minima, are integers of `scale_format` and `minimum_format` times
            one float16 number each (GGUF's K-quants). Such weights must be integers in groups.
        dynamic: scales are found from each tensor as it comes (activations, KV cache) instead of stored with it.
        ragged: whether the last group or block of a row may be shorter.

    Raises:
        ValueError: parts that do not fit each other.
    """

    format: Format
    granularity: Granularity | None = None
    symmetric: bool = True
    scale_format: FloatFormat | IntFormat | None = None
    zero_point_format: IntFormat | FloatFormat | None = None
    minimum_format: IntFormat | FloatFormat | None = None
    superblock: int | None = None
    dynamic: bool = False
    ragged: bool = False

    def __post_init__(self) -> None:
        fmt = get_format(self.format)
        put = object.__setattr__  # the one way a frozen value can normalise what it was given
        put(self, "format", fmt)
        if self.granularity is not None:
            put(self, "granularity", Granularity.parse(self.granularity))
        for name in _FORMATS:
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
        given = [n for n in ("granularity", *_FORMATS, "superblock") if getattr(self, n) is not None]
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
        if not self.symmetric or self.zero_point_format is not None or self.has_own_rule:
            raise QsimError(f"{fmt.name} is a block format of floats: it takes no zero point, minimum or superblock")
        object.__setattr__(self, "granularity", group)
        object.__setattr__(self, "scale_format", fmt.scale)

    def _check_scaled(self) -> None:
        fmt = self.format
        put = object.__setattr__
        if self.granularity is None:
            raise QsimError(f"{fmt.name} needs a granularity: tensor, channel, token, group(g) or block(r,c)")
        if self.has_own_rule:
            self._check_own_rule()
            return
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

    def _check_own_rule(self) -> None:
        """A superblock, a minimum, or both."""
        fmt, size = self.format, self.superblock
        if not isinstance(fmt, IntFormat) or fmt.signed != self.symmetric or self.zero_point_format is not None:
            raise QsimError(
                "superblocks and minima belong to integer codes without a zero point, unsigned where there is a "
                f"minimum: got {fmt.name}, symmetric={self.symmetric}"
            )
        if self.symmetric == (self.minimum_format is not None):
            raise QsimError("minimum_format must be given exactly when symmetric is False and there is no zero point")
        group = None if self.granularity is None or self.granularity.kind != "group" else self.granularity.columns
        if group is None or self.dynamic or self.ragged:
            what = "dynamic=True" if self.dynamic else "ragged=True" if self.ragged else self.granularity
            raise QsimError(f"superblocks and minima need stored scales of whole groups: got {what}")
        if size is not None and (size <= group or size % group):
            raise QsimError(f"a superblock must be several groups of {group}: got {size}")
        of_both = {"scale_format": self.scale_format} | (
            {} if self.symmetric else {"minimum_format": self.minimum_format}
        )
        for what, one in of_both.items():
            if not (isinstance(one, IntFormat) if size is not None else one == get_format("float16")):
                kind = "an integer format beside a superblock" if size is not None else "float16 beside a minimum"
                raise QsimError(f"{what} must be {kind}: got {getattr(one, 'name', None)}")

    # --- what it is ---------------------------------------------------------------------------------------

    @property
    def has_own_rule(self) -> bool:
        """Whether scales come in superblocks or with minima: one rule finds them then, see `qsim.scheme.superblock`."""
        return self.superblock is not None or self.minimum_format is not None

    @property
    def is_quantized(self) -> bool:
        """False for a 16- or 32-bit float that stands for itself."""
        return self.format.name not in PLAIN or isinstance(self.format, BlockFormat)

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
        if self.minimum_format is not None:
            words.append(f"{self.minimum_format.name} minima")
        if self.superblock is not None:
            words.append(f"float16 per {self.superblock}")
        words += [word for word in ("dynamic", "ragged") if getattr(self, word)]
        return ", ".join(words)

    def __repr__(self) -> str:
        return f"TensorScheme({self.summary})"

    # --- what it weighs -----------------------------------------------------------------------------------

    def check_shape(self, shape: tuple[Count, ...], name: str = "") -> None:
        """Refuse a shape that the granularity does not divide (unless `ragged`), or the superblock; `name` is the
        layer."""
        if self.superblock is not None and shape:
            extent = np.asarray(shape[-1])
            wrong = extent[extent % self.superblock != 0]
            if wrong.size:
                raise QsimError(
                    f"superblocks of {self.superblock} must divide K: got K={int(wrong.reshape(-1)[0])}"
                    f"{f' (layer {name})' if name else ''}; leave the layer out, or use a scheme with groups of 32, "
                    "such as q5_0"
                )
        if self.granularity is not None:
            self.granularity.check(shape, ragged=self.ragged, name=name)

    def scale_count(self, shape: tuple[Count, ...]) -> Count:
        """Number of scales (and, when asymmetric, zero points) of a tensor of this shape."""
        return 0 if self.granularity is None else self.granularity.scale_count(shape)

    def code_nbytes(self, shape: tuple[Count, ...]) -> Count:
        """Bytes of the packed codes of a whole tensor: ceil(bits * elements / 8)."""
        return ceil_div(product(shape) * self.bits, 8)

    def scale_nbytes(self, shape: tuple[Count, ...]) -> Count:
        """Bytes of the scales, NVFP4's float32 tensor scale and the float16 numbers of superblocks included."""
        if self.scale_format is None:
            return 0
        extra = 4 if isinstance(self.format, BlockFormat) and self.format.tensor_scale else 0
        return ceil_div(self.scale_count(shape) * self.scale_format.bits, 8) + extra + self._super_nbytes(shape)

    def _super_nbytes(self, shape: tuple[Count, ...]) -> Count:
        """Bytes of one float16 number for each superblock."""
        return 0 if self.superblock is None else 2 * ceil_div(product(shape), self.superblock)

    def zero_point_nbytes(self, shape: tuple[Count, ...]) -> Count:
        """Bytes of the zero points or minima, packed; 0 when symmetric."""
        fmt = self.zero_point_format or self.minimum_format
        if fmt is None:
            return 0
        extra = 0 if self.minimum_format is None else self._super_nbytes(shape)
        return ceil_div(self.scale_count(shape) * fmt.bits, 8) + extra

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
        shares = [self.scale_format, self.zero_point_format, self.minimum_format]
        per_scale = sum(fmt.bits for fmt in shares if fmt is not None)
        bits = self.bits + (per_scale / self.granularity.elements_per_scale if self.granularity is not None else 0.0)
        if self.superblock is not None:
            bits += 16 * (1 + (self.minimum_format is not None)) / self.superblock
        return bits

    # --- TOML ---------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain values, keys left out where they are the default; `from_dict` is the inverse."""
        out: dict[str, Any] = {"format": format_name(self.format)}
        if self.is_quantized and not isinstance(self.format, BlockFormat):
            assert self.scale_format is not None
            out["granularity"] = str(self.granularity)
            out["scale_format"] = format_name(self.scale_format)
            if self.is_integer:
                out["symmetric"] = self.symmetric
            if self.zero_point_format is not None:
                out["zero_point_format"] = format_name(self.zero_point_format)
            if self.minimum_format is not None:
                out["minimum_format"] = format_name(self.minimum_format)
            if self.superblock is not None:
                out["superblock"] = self.superblock
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
        known_keys(fields, cls)
        texts = {key: fields.text(key) for key in ("format", "granularity", *_FORMATS) if key in fields}
        flags = {key: fields.flag(key) for key in ("symmetric", "dynamic", "ragged") if key in fields}
        sizes = {"superblock": fields.integer("superblock", 1, 1 << 20)} if "superblock" in fields else {}
        if "format" not in texts:
            raise QsimError(f"{where}: format is missing")
        return cls(**texts, **flags, **sizes)  # type: ignore[arg-type]  # names become values in __post_init__


def known_keys(fields: Fields, of: type) -> None:
    """Refuse a key that is no field of a dataclass.

    Raises:
        QsimError: with the key and the nearest field.
    """
    known = list(of.__dataclass_fields__)  # type: ignore[attr-defined]
    unknown = next((key for key in fields.table if key not in known), None)
    if unknown is not None:
        raise QsimError(f"{fields.where}: {nearest('key', unknown, known)}")


def format_name(fmt: Format) -> str:
    """The name of a format that is to be written.

    Raises:
        QsimError: it is not registered.
    """
    try:
        known = get_format(fmt.name) == fmt
    except ValueError:
        known = False
    if not known:
        raise QsimError(
            f"format {fmt.name!r} is not registered, so its name cannot be written; qsim.formats.register it"
        )
    return fmt.name
