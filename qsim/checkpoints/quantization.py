"""The `quantization_config` of a folder that is read: which layer is quantised how, and how it is stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from qsim.errors import QsimError
from qsim.fields import Fields
from qsim.models.cache import check_kv_scheme
from qsim.scheme import QuantizedTensor, Scheme, TensorScheme
from qsim.scheme.huggingface import (
    METHODS,
    ConfigGroup,
    compressed_groups,
    read_args,
    read_awq,
    read_fp8,
    read_gptq,
)

from . import awq, compressed, fp8, gptq
from .fp8 import Meaning
from .parts import Notes, Parts
from .patterns import Patterns

Decode = Callable[[Parts, Scheme, Notes], QuantizedTensor]


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """How one layer is stored.

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
        method: `gptq`, `awq`, `compressed-tensors` or `fp8`.
        parts: last names of tensors that may belong to a quantised layer.
        marks: those that only a quantised layer has.
        scale: those that hold its scales.
        layer: from a layer's name to how it is stored; None where the config has no scheme for it.
        kv_cache: how the KV cache is stored; None when unquantised.
    """

    method: str
    parts: tuple[str, ...]
    marks: tuple[str, ...]
    scale: tuple[str, ...]
    layer: Callable[[str], LayerPlan | None] = field(repr=False)
    kv_cache: TensorScheme | None = None


# What writers keep of the calibration and of their kernels; it does not say how tensors are stored.
_KEPT = (
    "act_group_aware", "backend", "batch_size", "block_name_to_quantize", "cache_block_outputs", "damp_auto_increment",
    "damp_percent", "dataset", "dequantize", "desc_act", "disable_exllama", "do_fuse", "exllama_config",
    "fuse_max_seq_len", "global_compression_ratio", "is_checkpoint_fp8_serialized", "max_input_length", "meta",
    "method",
    "model_file_base_name", "model_name_or_path", "model_seqlen", "module_name_preceding_first_block",
    "modules_in_block_to_quantize", "modules_to_convert", "modules_to_fuse", "mse", "pad_token_id", "q_group_size",
    "quantizer", "quant_method", "run_compressed", "static_groups", "tokenizer", "true_sequential", "use_cuda_fp16",
    "use_exllama", "use_optimized_inference", "version", "w_bit", "weight_scale_method",
)  # fmt: skip
# keys that belong to one method and that some writer puts beside another's
_OTHERS = {
    "gptq": ("modules_to_not_convert", "format", "checkpoint_format"),
    "awq": ("checkpoint_format", "format", "lm_head", "pack_dtype", "sym"),
    "fp8": ("bits", "checkpoint_format", "dynamic", "expert_dtype", "group_size", "lm_head", "pack_dtype", "scale_fmt",
            "sym", "format", "fmt"),
    "compressed-tensors": (),
}  # fmt: skip
_STATUS = ("initialized", "calibration", "frozen", "compressed")


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
    method = config["quant_method"]
    if not isinstance(method, str) or method not in METHODS:
        raise QsimError(f"quant_method must be one of {', '.join(METHODS)}: got {str(method)[:60]!r}")
    keys = Fields(config, f"quantization_config ({method})")
    if method == "compressed-tensors":
        plan = _read_compressed(keys, notes)
    elif method == "gptq":
        plan = _read_gptq(keys)
    else:
        plan = _read_awq(keys) if method == "awq" else _read_fp8(keys, scale_inv)
    unknown = keys.unread((*_KEPT, *_OTHERS[method]))
    if unknown:
        more = f" and {len(unknown) - 20} more" if len(unknown) > 20 else ""
        told = ", ".join(key[:120] for key in unknown[:20])
        notes.add(f"unknown keys of quantization_config ({method}) were ignored: {told}{more}")
    return plan


def _with_method(config: Mapping[str, Any]) -> dict[str, Any]:
    """Legacy configs have no `quant_method`: AutoAWQ's are known by `w_bit`, AutoGPTQ's by `bits`, compressed-tensors'
    by `config_groups`, which may lie one level deeper."""
    out = dict(config)
    inner = out.get("quantization_config")
    if isinstance(inner, Mapping) and "config_groups" not in out:
        del out["quantization_config"]
        out = {**inner, **out}
    if "quant_method" not in out:
        if "config_groups" in out:
            out["quant_method"] = "compressed-tensors"
        elif "w_bit" in out:
            out["quant_method"] = "awq"
        elif "bits" in out and "group_size" in out:
            out["quant_method"] = "gptq"
        else:
            raise QsimError(f"key 'quant_method' is missing; there are {', '.join(sorted(out)[:20]) or 'no keys'}")
    for new, old in (("bits", "w_bit"), ("group_size", "q_group_size")):
        if new not in out and old in out:
            out[new] = out[old]
    return out


# --- GPTQ, AWQ, FP8 -------------------------------------------------------------------------------------------


def _read_gptq(keys: Fields) -> Plan:
    form = "marlin" if keys.flag("is_marlin_format", False) else keys.text(("checkpoint_format", "format"), "gptq")
    if form not in ("gptq", "gptq_v2"):
        raise QsimError(f"GPTQ checkpoints are read in the formats gptq and gptq_v2: got {form[:60]!r}")
    packed = keys.text("pack_dtype", "int32")
    if packed.removeprefix("torch.") != "int32":
        raise QsimError(f"GPTQ checkpoints are read with pack_dtype int32: got {packed[:60]!r}")
    decode = partial(gptq.decode, version=2 if form == "gptq_v2" else 1)
    common, quantized_head = _gptq_scheme(keys), keys.flag("lm_head", False)
    base = {"bits": keys.table["bits"], "group_size": keys.table["group_size"], "sym": keys.flag("sym", True)}
    dynamic, rules = keys.inner("dynamic", None), []
    for pattern, changes in () if dynamic is None else dynamic.table.items():
        where = f"{keys.where}: dynamic: {pattern[:80]}"
        own = {} if changes is None else Fields(changes, where).table
        said = base | {key: own[key] for key in base if own.get(key) is not None}
        rules.append((pattern, _gptq_scheme(Fields(said, where))))
    if dynamic is not None:
        dynamic.read.update(dynamic.table)
    # as GPTQModel and vLLM look a layer up: the first rule that matches counts, whatever it says
    patterns = Patterns([p.removeprefix("-:").removeprefix("+:") for p, _ in rules], f"{keys.where}: dynamic")

    def layer(name: str) -> LayerPlan:
        scheme, skipped = common, name == "lm_head" and not quantized_head
        found = patterns.first(name)
        if found is not None:
            scheme, skipped = rules[found][1], skipped or rules[found][0].startswith("-:")
        return LayerPlan(scheme=scheme, decode=decode, skipped=skipped)

    return Plan(method="gptq", parts=gptq.PARTS, marks=("qweight",), scale=("scales",), layer=layer)


def _gptq_scheme(keys: Fields) -> Scheme:
    bits = keys.integer("bits", 1, 64)
    if bits not in gptq.BITS:
        raise QsimError(f"GPTQ holds {', '.join(map(str, gptq.BITS))} bits: got bits={bits}")
    return read_gptq(keys)


def _read_awq(keys: Fields) -> Plan:
    version = keys.text("version", "gemm")
    if version.lower() != "gemm":
        raise QsimError(f"AWQ checkpoints are read in version gemm: got {version[:60]!r}")
    bits = keys.integer("bits", 1, 64)
    if bits != 4:
        raise QsimError(f"AWQ holds 4 bits: got bits={bits}")
    scheme = read_awq(keys)
    skip = keys.items("modules_to_not_convert", str, ())

    def layer(name: str) -> LayerPlan:
        skipped = name == "lm_head" or any(part in name for part in skip)
        return LayerPlan(scheme=scheme, decode=awq.decode, skipped=skipped)

    return Plan(method="awq", parts=awq.PARTS, marks=("qweight",), scale=("scales",), layer=layer)


def _read_fp8(keys: Fields, meaning: Meaning | None) -> Plan:
    form = keys.text(("format", "fmt"), "e4m3")
    if form not in ("e4m3", "float8_e4m3fn", "fp8"):
        raise QsimError(f"fp8 checkpoints are read with codes float8_e4m3fn: got {form[:60]!r}")
    semantics = keys.text("weight_scale_semantics", "")
    if semantics:
        if semantics != "inverse":
            raise QsimError(f"weight_scale_semantics must be inverse, or left out: got {semantics[:60]!r}")
        meaning = "divide"
    scheme = read_fp8(keys)
    decode = partial(fp8.decode, meaning=meaning)
    ignored, kept = keys.items("ignored_layers", str, ()), keys.items("modules_to_not_convert", str, ())
    skip = ignored or kept

    def layer(name: str) -> LayerPlan:
        skipped = name == "lm_head" or any(f".{part}." in f".{name}." for part in skip)
        return LayerPlan(scheme=scheme, decode=decode, skipped=skipped)

    return Plan(
        method="fp8",
        parts=fp8.PARTS,
        marks=("weight_scale", "weight_scale_inv"),
        scale=("weight_scale", "weight_scale_inv"),
        layer=layer,
        kv_cache=scheme.kv_cache if scheme.kv_cache.is_quantized else None,
    )


# --- compressed-tensors ---------------------------------------------------------------------------------------


def _read_compressed(keys: Fields, notes: Notes) -> Plan:
    # a label of the writer's life cycle: what is stored decides how a layer is read, see `compressed.decode`
    status = keys.text("quantization_status", "compressed")
    if status not in _STATUS:
        notes.add(f"quantization_status {status[:60]!r} is not known: layers are read as they are stored")
    for key in ("sparsity_config", "transform_config", "moe_sparsity_config"):
        told = keys.inner(key, None)
        if told is None or (key == "sparsity_config" and told.text("format", "dense") == "dense"):
            continue
        if told.table:
            raise QsimError(f"compressed-tensors {key} is not read here: got keys {', '.join(sorted(told.table)[:9])}")
    kv = _kv_cache(keys, notes)
    groups = compressed_groups(keys, **({} if kv is None else {"kv_cache": kv}))
    for group in groups:
        if group.layout not in compressed.FORMATS:
            raise QsimError(
                f"compressed-tensors formats read here are {', '.join(compressed.FORMATS)}: group {group.name} has "
                f"{group.layout[:60]!r}"
            )
    group_of = _targets(groups, f"{keys.where}: config_groups")
    ignored = _Names(keys.items("ignore", str, (), most=1 << 16), f"{keys.where}: ignore")

    def layer(name: str) -> LayerPlan | None:
        group = group_of(name)
        if group is None:
            return None
        return LayerPlan(
            scheme=group.scheme,
            decode=partial(compressed.decode, fmt=group.layout),
            skipped=ignored.entry_of(name) is not None,
        )

    return Plan(
        method="compressed-tensors",
        parts=compressed.PARTS,
        marks=("weight_packed", "weight_scale"),
        scale=("weight_scale",),
        layer=layer,
        kv_cache=kv,
    )


def _kv_cache(keys: Fields, notes: Notes) -> TensorScheme | None:
    told = keys.inner("kv_cache_scheme", None)
    if told is None:
        return None
    try:
        found = read_args(told)
        check_kv_scheme(found)
    except ValueError as error:
        notes.add(f"the KV cache is not quantised here, its scheme is not supported: {error}")
        return None
    return found


class _Names:
    """Targets or ignored layers of compressed-tensors, looked up as the library's `match_targets` ranks them.

    A layer's own name goes before a regular expression (`re:...`), and that before its class, in whatever order they
    are listed; regular expressions are tried in the order of their texts.
    """

    def __init__(self, entries: Sequence[str], where: str) -> None:
        self._exact = {entry for entry in entries if not entry.startswith("re:")}
        self._expressions = sorted({entry for entry in entries if entry.startswith("re:")})
        self._patterns = Patterns([entry.removeprefix("re:") for entry in self._expressions], where)

    def entry_of(self, name: str) -> str | None:
        """The entry that means a Linear of this name; None when none does."""
        if name in self._exact:
            return name
        found = self._patterns.first(name)
        if found is not None:
            return self._expressions[found]
        return next((kind for kind in ("Linear", "Module") if kind in self._exact), None)


def _targets(groups: Sequence[ConfigGroup], where: str) -> Callable[[str], ConfigGroup | None]:
    """From a layer's name to its group. A target of two groups is the later one's, as in the library."""
    by_target = {target: group for group in groups for target in group.targets}
    names = _Names(tuple(by_target), where)

    def group_of(name: str) -> ConfigGroup | None:
        found = names.entry_of(name)
        return None if found is None else by_target[found]

    return group_of
