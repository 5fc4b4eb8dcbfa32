"""What a checkpoint layout is: one value that says all there is to know of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from qsim.fields import Fields
from qsim.reprs import one_line
from qsim.safetensors import Stored
from qsim.scheme import QuantizedTensor, Scheme, TensorScheme

from .parts import Notes, Parts

Meaning: TypeAlias = Literal["multiply", "divide"]
Decode: TypeAlias = Callable[[Parts, Scheme, Notes], QuantizedTensor]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What is known of a layer that is to be stored; a layout refuses it as soon as it can.

    Arguments:
        scheme: how it is quantised.
        shape: of its weight, (N, K); None when not known yet.
        act_order: its columns are in groups that are not consecutive.
        tensor: the quantised weight; None when there is none yet.
        name: for the sentence, and for layouts that store some layers otherwise (the head is `lm_head`).
    """

    scheme: Scheme
    shape: tuple[int, ...] | None = None
    act_order: bool = False
    tensor: QuantizedTensor | None = None
    name: str = ""

    @classmethod
    def of(cls, qt: QuantizedTensor, name: str = "", scheme: Scheme | None = None) -> Layer:
        """All that a quantised tensor tells.

        Arguments:
            name: where it is not the tensor's own.
            scheme: the same, where it is not the tensor's own, as when the model's KV cache is stored otherwise.
        """
        return cls(
            scheme=scheme or qt.scheme,
            shape=qt.shape,
            act_order=qt.group_index is not None,
            tensor=qt,
            name=name or qt.name,
        )


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """How one layer of a checkpoint is stored.

    Arguments:
        scheme: by the config; the tensors may say more.
        decode: reads its parts.
        skipped: the config says that it is not quantised.
    """

    scheme: Scheme
    decode: Decode
    skipped: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a folder is quantised.

    Arguments:
        layout: that it is in.
        layer: from a layer's name to how it is stored; None where the config has no scheme for it.
        kv_cache: how the KV cache is stored; None when unquantised.
    """

    layout: Layout
    layer: Callable[[str], LayerPlan | None] = field(repr=False)
    kv_cache: TensorScheme | None = None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What reading a `quantization_config` is given beside its keys.

    Arguments:
        notes: for remarks.
        scale_inv: what `weight_scale_inv` does to the codes, where the config does not say.
    """

    notes: Notes = field(default_factory=Notes)
    scale_inv: Meaning | None = None


@dataclass(frozen=True, kw_only=True)
class Fact:
    """What the config must say of one quantised layer.

    Arguments:
        scheme: with the model's KV cache.
        act_order: its columns are in groups that are not consecutive.
        tensor_scale, input_scale: of the weight and of its static activation, where engines fuse them over layers and
            the tensor was seen; None else.
    """

    scheme: Scheme
    act_order: bool = False
    tensor_scale: float | None = None
    input_scale: float | None = None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the config must say of a model.

    Arguments:
        layers: its quantised layers by name.
        plain: its other Linears, the head included.
        kv_cache: how the KV cache is stored, or None.
        version: of this package.
    """

    layers: Mapping[str, Fact]
    plain: tuple[str, ...] = ()
    kv_cache: TensorScheme | None = None
    version: str = ""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way to store the layers of a model in a file or folder. Every list, choice and table of layouts is
    derived from such values.

    Arguments:
        name: what `write`, `convert` and `--layout` call it: lower-case letters, digits, `_` and `-`.
        says: what it is, in half a line.
        refuses: why it cannot hold a `Layer`, in one sentence, or None. A layer of which the scheme alone is known is
            refused for its scheme only.
        encode: a layer's tensors by their last name; the caller has asked `refuses` first.
        quant_method: of its `quantization_config`. None: it stores unquantised tensors, and the rest is not used.
        to_config: the `quantization_config` of a model whose layers all have one scheme.
        from_config: the inverse, from the config's keys.
        plan: how a config says that layers are stored.
        write_config: the config of a model that is written.
        parts: last names of tensors that may belong to a quantised layer.
        marks: those that only a quantised layer has.
        scale: those that hold its scales.
        kept: keys of the config that do not say how tensors are stored, beyond those of `config.KEPT`.
        is_legacy: whether a config without `quant_method` is one of this layout.
        remark: what a user must know of a tensor that is stored this way, or None.
        usual_scheme: the scheme to quantise to when none is asked for, from the method's own default.
        beside: a file that the config is also written to, for older loaders.
        kv_cache_alone: whether the KV cache may be quantised in a model whose layers are not.
        casts_scales: engines cast its float32 scales to the model's dtype.
        container: of the tensors: a folder of safetensors, or one GGUF file, whose tensors `qsim.layouts.gguf` stores.
        order: where lists show it: smallest first, then by name; `auto` is the first that holds a model.
    """

    name: str
    says: str
    refuses: Callable[[Layer], str | None]
    encode: Callable[[QuantizedTensor], dict[str, Stored]] = lambda qt: {}
    quant_method: str | None = None
    to_config: Callable[[Scheme], dict[str, Any]] = lambda scheme: {}
    from_config: Callable[[Fields], Scheme] | None = None
    plan: Callable[[Fields, Reading], Plan] | None = None
    write_config: Callable[[Facts], dict[str, Any]] = lambda facts: {}
    parts: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    scale: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    is_legacy: Callable[[Mapping[str, Any]], bool] = lambda config: False
    remark: Callable[[QuantizedTensor], str | None] = lambda qt: None
    usual_scheme: Callable[[str], str] = lambda usual: usual
    beside: str | None = None
    kv_cache_alone: bool = False
    casts_scales: bool = False
    container: Literal["safetensors", "gguf"] = "safetensors"
    order: int = 100

    __repr__ = one_line
