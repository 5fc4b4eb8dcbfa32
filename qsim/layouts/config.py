"""The `quantization_config` of a model: read by the layout that it names, and written by the one that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qsim.errors import QsimError
from qsim.fields import Fields
from qsim.formats import get_format
from qsim.scheme import Granularity, Scheme, TensorScheme

from .layout import Fact, Facts, Layout, Meaning, Plan, Reading
from .parts import Notes
from .registry import LAYOUTS, get_layout

LARGEST = 1 << 24  # group, or block: more columns than any layer has
# What writers keep of the calibration and of their kernels; it does not say how tensors are stored.
KEPT = (
    "act_group_aware", "backend", "batch_size", "block_name_to_quantize", "cache_block_outputs", "damp_auto_increment",
    "damp_percent", "dataset", "dequantize", "desc_act", "disable_exllama", "do_fuse", "exllama_config",
    "fuse_max_seq_len", "global_compression_ratio", "is_checkpoint_fp8_serialized", "max_input_length", "meta",
    "method",
    "model_file_base_name", "model_name_or_path", "model_seqlen", "module_name_preceding_first_block",
    "modules_in_block_to_quantize", "modules_to_convert", "modules_to_fuse", "mse", "pad_token_id", "q_group_size",
    "quantizer", "quant_method", "run_compressed", "static_groups", "tokenizer", "true_sequential", "use_cuda_fp16",
    "use_exllama", "use_optimized_inference", "version", "w_bit", "weight_scale_method",
)  # fmt: skip


# --- a model --------------------------------------------------------------------------------------------------


def read_plan(config: Mapping[str, Any], notes: Notes, *, scale_inv: Meaning | None = None) -> Plan:
    """How a `quantization_config` (or a legacy `quantize_config.json`) says that layers are stored.

    Arguments:
        config: its keys; unknown ones are accepted and noted once.
        scale_inv: what `weight_scale_inv` does to the codes, where the config does not say.

    Raises:
        QsimError: a method or a variant of it that is not read here, a key that is missing, of another type or out of
            its range, a regular expression that is not one.
    """
    config = _with_method(Fields(config, "quantization_config").table)
    layout = _by_method(config["quant_method"])
    keys = Fields(config, f"quantization_config ({layout.quant_method})")
    assert layout.plan is not None, "the registry has checked it"
    plan = layout.plan(keys, Reading(notes=notes, scale_inv=scale_inv))
    unknown = keys.unread((*KEPT, *layout.kept))
    if unknown:
        more = f" and {len(unknown) - 20} more" if len(unknown) > 20 else ""
        told = ", ".join(key[:120] for key in unknown[:20])
        notes.add(f"unknown keys of quantization_config ({layout.quant_method}) were ignored: {told}{more}")
    return plan


def _with_method(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the method that a legacy one does not name; its keys may lie one level deeper."""
    out = dict(config)
    inner = out.get("quantization_config")
    if isinstance(inner, Mapping) and "config_groups" not in out:
        del out["quantization_config"]
        out = {**inner, **out}
    if "quant_method" not in out:
        found = next((layout for layout in LAYOUTS.values() if layout.is_legacy(out)), None)
        if found is None:
            raise QsimError(f"key 'quant_method' is missing; there are {', '.join(sorted(out)[:20]) or 'no keys'}")
        out["quant_method"] = found.quant_method
    for new, old in (("bits", "w_bit"), ("group_size", "q_group_size")):
        if new not in out and old in out:
            out[new] = out[old]
    return out


def write_plan(
    layout: str, facts: Mapping[str, Fact], unquantized: Sequence[str], kv_cache: TensorScheme | None, version: str
) -> dict[str, Any]:
    """The `quantization_config` of a folder.

    Arguments:
        layout: any that has a `quant_method`.
        facts: its quantised layers, by name.
        unquantized: its other Linears, the head included.
        kv_cache: how the KV cache is stored, or None.
        version: of this package, for the record that GPTQ's config has.

    Raises:
        QsimError: layers that differ where the layout has one scheme for all.
    """
    plain = tuple(name for name in unquantized if name not in facts)
    return get_layout(layout).write_config(Facts(layers=facts, plain=plain, kv_cache=kv_cache, version=version))


def one_scheme(layout: str, facts: Facts) -> Scheme:
    """The scheme of all layers, of a layout that has one for all.

    Raises:
        QsimError: two layers that differ.
    """
    (first, fact), *others = facts.layers.items()
    for name, other in others:
        if other.scheme != fact.scheme:
            told = [f"{f.scheme.weight.format.name} in {f.scheme.weight.granularity}" for f in (fact, other)]
            raise QsimError(
                f"{layout} has one scheme for all layers: {first} is {told[0]}, {name} is {told[1]}; use layout "
                "'compressed-tensors'"
            )
    return fact.scheme


# --- a scheme -------------------------------------------------------------------------------------------------


def methods() -> tuple[str, ...]:
    """Every `quant_method` that is read."""
    return tuple(dict.fromkeys(found.quant_method for found in LAYOUTS.values() if found.quant_method is not None))


def _by_method(method: object) -> Layout:
    """The first layout of a `quant_method`; it reads those of its variants too."""
    if not isinstance(method, str) or method not in methods():
        raise QsimError(f"quant_method must be one of {', '.join(methods())}: got {str(method)[:60]!r}")
    return next(layout for layout in LAYOUTS.values() if layout.quant_method == method)


def to_config(scheme: Scheme, method: str | None = None) -> dict[str, Any]:
    """The `quantization_config` of a scheme.

    Keys that a scheme does not hold (act order, damping, observers, ignored layers) have the usual defaults.

    Arguments:
        method: a `quant_method`: `gptq`, `awq`, `compressed-tensors`, `fp8`, or that of a layout that was added. None
            is compressed-tensors, which can say most.

    Raises:
        QsimError: the method cannot say this scheme; the message names the part.
    """
    method = method or "compressed-tensors"
    if method not in methods():
        raise QsimError(f"the quantization_config method must be one of {', '.join(methods())}: got {method!r}")
    if not scheme.weight.is_quantized:
        raise QsimError(f"weights are {scheme.weight.format.name}: an unquantised model has no quantization_config")
    layout = _by_method(method)
    assert layout.from_config is not None, "the registry has checked it"
    return said(scheme, method, layout.to_config, layout.from_config)


def said(
    scheme: Scheme, method: str, to: Callable[[Scheme], dict[str, Any]], back: Callable[[Fields], Scheme]
) -> dict[str, Any]:
    """The config of a scheme, which is read back as the same scheme.

    Raises:
        QsimError: it is not, or the method has no words for it.
    """
    config = to(scheme)
    found = back(Fields(config, f"quantization_config ({method})"))
    for part in ("weight", "activation", "kv_cache"):
        if not _same(getattr(found, part), getattr(scheme, part)):
            raise QsimError(
                f"{method} cannot express {part}={getattr(scheme, part).to_dict()}; "
                f"it would be read as {getattr(found, part).to_dict()}"
            )
    return config


def _same(a: TensorScheme, b: TensorScheme) -> bool:
    """Whether two parts store the same: a shorter last group shows in the shape, a 16- or 32-bit float in the model."""
    return (not a.is_quantized and not b.is_quantized) or replace(a, ragged=b.ragged) == b


def from_config(config: Mapping[str, Any]) -> Scheme:
    """A scheme from a `quantization_config`.

    Raises:
        QsimError: no or an unknown `quant_method`, a key that is missing, of another type or out of its range, layers
            with different schemes.
    """
    keys = Fields(config, "quantization_config")
    method = keys.text("quant_method", "", choices=("", *methods()))
    if not method:
        raise QsimError(f"quantization_config: quant_method must be one of {', '.join(methods())}: got none")
    layout = _by_method(method)
    assert layout.from_config is not None, "the registry has checked it"
    return layout.from_config(Fields(config, f"quantization_config ({method})"))


# --- keys that several have -----------------------------------------------------------------------------------


def read_group_size(keys: Fields) -> int:
    """The key `group_size`; -1 is one scale per row."""
    size = keys.integer("group_size", -1, LARGEST)
    if size == 0:
        raise keys.refuse("group_size", "must be -1, for one scale per row, or at least 1")
    return size


def grouped(bits: int, group_size: int, symmetric: bool) -> Scheme:
    """A weight-only scheme of integers with float16 scales, as GPTQ and AWQ have it; group size -1 is one per row."""
    weight = TensorScheme(
        format=get_format(f"int{bits}" if symmetric else f"uint{bits}"),
        granularity=Granularity(kind="channel") if group_size == -1 else Granularity(kind="group", columns=group_size),
        symmetric=symmetric,
        scale_format=get_format("float16"),  # type: ignore[arg-type]
    )
    return Scheme(weight=weight, activation=TensorScheme(format=get_format("bfloat16")))


def read_block(keys: Fields, name: str) -> tuple[int, int] | None:
    """Rows and columns of a block: two numbers, or a text such as `128x128`."""
    value = keys.table.get(name)
    if isinstance(value, str):
        keys.text(name)
        parts = value.lower().split("x")
        sizes = [int(part) for part in parts if part.isdecimal() and len(part) < 9]
        if len(sizes) != 2 or len(parts) != 2:
            raise keys.refuse(name, "must be two numbers, as in [128, 128] or 128x128")
    else:
        sizes = keys.items(name, int, (), most=2)
        if value is not None and len(sizes) != 2:
            raise keys.refuse(name, "must be two numbers")
    if any(not 1 <= size <= LARGEST for size in sizes):
        raise keys.refuse(name, f"must be two numbers from 1 to {LARGEST}")
    return (sizes[0], sizes[1]) if sizes else None
