"""GPTQ: integers packed along the input features, as AutoGPTQ, GPTQModel and the serving engines read them.

With K input and N output features, b bits and G = ceil(K / g) groups:

    qweight  int32 [K b / 32, N]  dense words along K; q counted from the lowest code
    qzeros   int32 [G, N b / 32]  dense words along N; the zero point, minus one in version 1
    scales   float16 [G, N]
    g_idx    int32 [K]            the group of each input feature

value = (q - z[g_idx]) * s[g_idx]. A symmetric weight has z = 2^(b - 1) everywhere.

Source: AutoGPTQ `qlinear_cuda.py`; GPTQModel `nn_modules/qlinear`, `convert_gptq_v1_to_v2_format`.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from typing import Any

import numpy as np

from qsim.errors import QsimError
from qsim.fields import Fields
from qsim.formats import IntFormat
from qsim.safetensors import Stored, integers, words
from qsim.scheme import QuantizedTensor, Scheme, get_scheme

from .config import grouped, read_group_size
from .layout import Facts, Layer, LayerPlan, Layout, Plan, Reading
from .parts import Notes, Parts, no_own_rule, signed_codes, stored_scales, unsigned_codes, with_scale_format
from .patterns import Patterns
from .words import dense_count, pack_dense, transposed, unpack_dense

BITS = (2, 3, 4, 8)
GROUPS = (16, 32, 64, 128, 256, 512, 1024)
_MULTIPLE = 32  # of K and of N: whole words of 3-bit codes, and what the kernels' loaders check


def refuses(layer: Layer, *, version: int = 1) -> str | None:
    """Why GPTQ cannot hold a layer; None when it can."""
    w = layer.scheme.weight
    if not isinstance(w.format, IntFormat):
        return f"GPTQ holds integers: got {w.format.name}"
    if w.bits not in BITS:
        return f"GPTQ holds 2, 3, 4 and 8 bits: got {w.format.name}"
    wrong = weight_only(layer, "GPTQ", GROUPS)
    if wrong is not None:
        return wrong
    for what, size in zip("NK", layer.shape or (), strict=False):
        if size % _MULTIPLE:
            return f"GPTQ needs {what} to be a multiple of {_MULTIPLE}: got {what}={size}"
    qt = layer.tensor
    if version == 1 and qt is not None and qt.zeros is not None and not qt.zeros.all():
        count = int((qt.zeros == 0).sum())
        return f"GPTQ version 1 stores zero points minus one, so it has no 0: got {count} of them"
    return None


def weight_only(layer: Layer, who: str, groups: tuple[int, ...]) -> str | None:
    """Rules that GPTQ and AWQ share: weights only, scales per group or row, in float16, packed zero points."""
    scheme, w = layer.scheme, layer.scheme.weight
    if w.has_own_rule:
        return no_own_rule(scheme, who)
    if scheme.activation.is_quantized:
        return f"{who} holds weights only: activations are {scheme.activation.format.name}"
    if scheme.kv_cache.is_quantized:
        return f"{who} has no place for a quantised KV cache: got {scheme.kv_cache.format.name}"
    assert w.granularity is not None
    if w.granularity.kind not in ("group", "channel"):
        return f"{who} has one scale per group or row: got {w.granularity}"
    if w.granularity.kind == "group" and w.group_size not in groups:
        return f"{who} loaders take groups of {', '.join(map(str, groups))}: got {w.group_size}"
    if w.scale_format is not None and w.scale_format.name != "float16":
        return f"{who} stores float16 scales: got {w.scale_format.name}"
    if w.zero_point_format not in (None, w.format):
        assert w.zero_point_format is not None
        return f"{who} stores zero points as packed integers: got {w.zero_point_format.name}"
    return None


def encode(qt: QuantizedTensor, *, version: int = 1) -> dict[str, Stored]:
    """The tensors of a layer, by their last name. The caller has asked for the reasons first."""
    bits, (_, k) = qt.element.bits, qt.shape
    group = qt.tensor_scheme.group_size or k
    zeros = np.full(qt.scale_codes.shape, 1 << (bits - 1), np.uint8) if qt.zeros is None else qt.zeros
    stored_zeros = zeros - np.uint8(1) if version == 1 else zeros
    index = np.arange(k) // group if qt.group_index is None else qt.group_index
    return {
        "qweight": words(transposed(pack_dense(unsigned_codes(qt), bits))),
        "qzeros": words(pack_dense(np.ascontiguousarray(stored_zeros.T), bits)),
        "scales": stored_scales(qt, transposed=True),
        "g_idx": integers(index, "I32"),
    }


def remark(qt: QuantizedTensor) -> str | None:
    """Which kernels read it: vLLM's `gptq_marlin.py` has 4 and 8 bits, each with sym=true, and nothing else."""
    if qt.zeros is None and qt.element.bits in (4, 8):
        return None
    return (
        "vLLM's Marlin kernels read GPTQ weights of 4 and 8 bits with sym=true only: these have "
        f"{qt.element.bits} bits with sym={'true' if qt.zeros is None else 'false'} and run on its slower kernels"
    )


def decode(parts: Parts, scheme: Scheme, notes: Notes, *, version: int = 1) -> QuantizedTensor:
    """A layer's weight.

    Arguments:
        parts: its tensors.
        scheme: from the config: bits, group size, symmetric or not.
        version: 1 stores zero points minus one.

    A symmetric scheme whose stored zero points are not all 2^(b - 1) is read as an asymmetric one, with a note. A
    version 1 field of all ones is the zero point 0 (plus one, masked), also with a note: loaders differ there.

    Raises:
        ValueError: a tensor that is missing, or whose dtype or shape does not fit.
    """
    bits, name = scheme.weight.bits, parts.name
    qweight = parts.get("qweight", ("I32",), 2)
    rows, n = qweight.shape
    k = rows * 32 // bits
    if rows * 32 % bits or dense_count(k, bits) != rows:
        raise QsimError(f"tensor {name}.qweight has {rows} rows: not a whole number of {bits}-bit words")
    group = scheme.weight.group_size or k
    groups = -(-k // group)
    scales, fmt = parts.scale_codes("scales", ("F16", "BF16", "F32"), (groups, n))
    if n * bits % 32:
        raise QsimError(f"tensor {name}.qweight has {n} columns: {bits}-bit zero points do not fill words of 32 bits")
    packed = parts.shaped("qzeros", ("I32",), (groups, n * bits // 32))
    zeros = unpack_dense(packed.bits, bits, n)
    if version == 1:
        if (zeros == (1 << bits) - 1).any():
            notes.add("GPTQ version 1 zero points stored as -1 are read as 0; other loaders may differ", name)
        zeros = (zeros + np.uint8(1)) & np.uint8((1 << bits) - 1)
    zeros = np.ascontiguousarray(zeros.T)
    codes = unpack_dense(transposed(qweight.bits), bits, k)

    ragged = bool(k % group)
    scheme = with_scale_format(scheme, fmt, ragged=ragged)
    if scheme.weight.symmetric and not (zeros == 1 << (bits - 1)).all():
        notes.add("the config says symmetric, the stored zero points are not: read as asymmetric", name)
        unsigned = f"uint{bits}"
        scheme = with_scale_format(scheme, fmt, symmetric=False, format=unsigned, zero_point_format=unsigned)
    symmetric = scheme.weight.symmetric
    return QuantizedTensor(
        codes=signed_codes(codes, bits) if symmetric else codes,
        scale_codes=np.ascontiguousarray(scales.T),
        zeros=None if symmetric else zeros,
        scheme=scheme,
        group_index=_group_index(parts, k, group, groups),
        name=name,
    )


def _group_index(parts: Parts, k: int, group: int, groups: int) -> np.ndarray | None:
    if "g_idx" not in parts:
        return None
    index = parts.shaped("g_idx", ("I32", "I64"), (k,)).bits.astype(np.int32)
    if index.min() < 0 or index.max() >= groups:
        raise QsimError(
            f"tensor {parts.name}.g_idx must have groups 0 to {groups - 1}: got {index.min()} to {index.max()}"
        )
    return None if np.array_equal(index, np.arange(k) // group) else index


# --- the config -----------------------------------------------------------------------------------------------


def to_config(scheme: Scheme) -> dict[str, Any]:
    """The config of a model with one scheme."""
    return {
        "quant_method": "gptq",
        **_settings(scheme),
        "desc_act": False,
        "lm_head": False,
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
    }


def _settings(scheme: Scheme) -> dict[str, Any]:
    w = scheme.weight
    if w.has_own_rule:
        raise QsimError(no_own_rule(scheme, "GPTQ"))
    return {"bits": w.bits, "group_size": w.group_size or -1, "sym": w.symmetric}


def from_config(keys: Fields) -> Scheme:
    """The scheme of the config's keys."""
    return grouped(keys.integer("bits", 2, 8), read_group_size(keys), keys.flag("sym", True))


def _scheme(keys: Fields) -> Scheme:
    bits = keys.integer("bits", 1, 64)
    if bits not in BITS:
        raise QsimError(f"GPTQ holds {', '.join(map(str, BITS))} bits: got bits={bits}")
    return from_config(keys)


def plan(keys: Fields, reading: Reading) -> Plan:
    """How the config says that layers are stored, in version 1 or 2."""
    form = "marlin" if keys.flag("is_marlin_format", False) else keys.text(("checkpoint_format", "format"), "gptq")
    if form not in ("gptq", "gptq_v2"):
        raise QsimError(f"GPTQ checkpoints are read in the formats gptq and gptq_v2: got {form[:60]!r}")
    packed = keys.text("pack_dtype", "int32")
    if packed.removeprefix("torch.") != "int32":
        raise QsimError(f"GPTQ checkpoints are read with pack_dtype int32: got {packed[:60]!r}")
    common, quantized_head = _scheme(keys), keys.flag("lm_head", False)
    base = {"bits": keys.table["bits"], "group_size": keys.table["group_size"], "sym": keys.flag("sym", True)}
    dynamic, rules = keys.inner("dynamic", None), []
    for pattern, changes in () if dynamic is None else dynamic.table.items():
        where = f"{keys.where}: dynamic: {pattern[:80]}"
        own = {} if changes is None else Fields(changes, where).table
        said = base | {key: own[key] for key in base if own.get(key) is not None}
        rules.append((pattern, _scheme(Fields(said, where))))
    if dynamic is not None:
        dynamic.read.update(dynamic.table)
    # as GPTQModel and vLLM look a layer up: the first rule that matches counts, whatever it says
    patterns = Patterns([p.removeprefix("-:").removeprefix("+:") for p, _ in rules], f"{keys.where}: dynamic")

    def layer(name: str) -> LayerPlan:
        scheme, skipped = common, name == "lm_head" and not quantized_head
        found = patterns.first(name)
        if found is not None:
            scheme, skipped = rules[found][1], skipped or rules[found][0].startswith("-:")
        return LayerPlan(scheme=scheme, decode=partial(decode, version=2 if form == "gptq_v2" else 1), skipped=skipped)

    return Plan(layout=LAYOUT, layer=layer)


def write_config(facts: Facts, *, form: str = "gptq") -> dict[str, Any]:
    """The config of a model that is written; layers that differ from most have a rule of their own."""
    settings = {name: _settings(fact.scheme) for name, fact in facts.layers.items()}
    common = dict(Counter(tuple(s.items()) for s in settings.values()).most_common(1)[0][0])
    dynamic: dict[str, dict[str, Any]] = {}
    for name in facts.plain:
        if name != "lm_head":
            dynamic[f"-:^{re.escape(name)}$"] = {}
    for name, own in settings.items():
        if own != common:
            dynamic[f"+:^{re.escape(name)}$"] = own
    out = {
        "quant_method": "gptq",
        **common,
        "desc_act": any(fact.act_order for fact in facts.layers.values()),
        "lm_head": "lm_head" in facts.layers,
        "checkpoint_format": form,
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"qsim:{facts.version}"]},
    }
    return out | ({"dynamic": dynamic} if dynamic else {})


def symmetric(usual: str) -> str:
    """The symmetric twin of a scheme, since the fast kernels of engines read no other: see `remark`."""
    return usual if get_scheme(usual).weight.symmetric else f"{usual}-sym"


LAYOUT = Layout(
    name="gptq",
    says="integers packed along the input features, version 1: zero points minus one",
    order=20,
    quant_method="gptq",
    refuses=refuses,
    encode=encode,
    to_config=to_config,
    from_config=from_config,
    plan=plan,
    write_config=write_config,
    parts=("qweight", "qzeros", "scales", "g_idx"),
    marks=("qweight",),
    scale=("scales",),
    kept=("modules_to_not_convert", "format", "checkpoint_format"),
    is_legacy=lambda config: "bits" in config and "group_size" in config and "w_bit" not in config,
    remark=remark,
    usual_scheme=symmetric,
    beside="quantize_config.json",
)
