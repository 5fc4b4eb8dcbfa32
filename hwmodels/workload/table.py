"""The small tables that describe the shipped architectures (`architectures/*.toml`), as shapes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from qsim.errors import QsimError, nearest
from qsim.families import Attention, Experts, Latent, Layer, Linear, Mixer, Mlp, Shape
from qsim.fields import Fields
from qsim.files import parse_toml

MOST = 1 << 24

_SIZES = ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocab")
_DEFAULTS: Mapping[str, Any] = MappingProxyType({
    "gated": True, "experts": 1, "experts_per_token": 1, "shared_ffn": 0, "dense_layers": 0, "dense_ffn": 0,
    "q_lora_rank": 0, "kv_lora_rank": 0, "rope_dim": 0, "v_head_dim": 0, "tied": False, "qkv_bias": False,
    "mlp_bias": False, "out_bias": False, "head_bias": False, "norm_bias": False, "norms": 2, "qk_norm": False,
    "learned_positions": False, "max_positions": 4096, "position_rows": 0,
})  # fmt: skip


def shape_of_table(table: Mapping[str, Any], where: str) -> Shape:
    """A shape from a table of sizes.

    Arguments:
        table: `layers, hidden, ffn, heads, kv_heads, head_dim, vocab`, in elements; `ffn` is the width of one expert in
            a mixture of experts. Optional: `gated` (true: gate_up is 2 * ffn wide); `experts`, `experts_per_token`;
            `shared_ffn`, the width of an expert that every token passes through; `dense_layers`, `dense_ffn`: the first
            layers of a mixture that have none, and their width; `kv_lora_rank`, `q_lora_rank`, `rope_dim`,
            `v_head_dim`: multi-head latent attention, then `head_dim` counts both parts of a head; `tied`; `qkv_bias`,
            `out_bias` (default `mlp_bias`), `mlp_bias`, `head_bias`, `norm_bias` (LayerNorm); `norms`, how many norms
            of the hidden state a layer has (default 2); `qk_norm` (norms over the heads of Q and K); `max_positions`,
            `learned_positions` and their `position_rows` (default `max_positions`).
        where: how messages name it.

    Raises:
        QsimError: an unknown key, or sizes that do not fit each other.
    """
    f = Fields(table, where)
    unknown = sorted(set(table) - {*_SIZES, *_DEFAULTS})
    if unknown:
        raise QsimError(f"{where}: {nearest('key', unknown[0], [*_SIZES, *_DEFAULTS])}")
    size = {key: f.integer(key, 1, MOST) for key in _SIZES}
    count = {k: f.integer(k, 0, MOST, v) for k, v in _DEFAULTS.items() if not isinstance(v, bool)}
    flag = {k: f.flag(k, v) for k, v in _DEFAULTS.items() if isinstance(v, bool)}
    layers, hidden = f.integer("layers", 1, 2048), size["hidden"]
    _check(f, size, count)
    mixer: Mixer
    if count["kv_lora_rank"]:
        mixer = Latent(
            inputs=hidden, heads=size["heads"], nope_dim=size["head_dim"] - count["rope_dim"],
            rope_dim=count["rope_dim"], value_dim=count["v_head_dim"], kv_rank=count["kv_lora_rank"],
            q_rank=count["q_lora_rank"],
        )  # fmt: skip
    else:
        mixer = Attention(
            inputs=hidden, outputs=hidden, heads=size["heads"], kv_heads=size["kv_heads"], head_dim=size["head_dim"],
            value_dim=size["head_dim"], qkv_bias=flag["qkv_bias"], out_bias=f.flag("out_bias", flag["mlp_bias"]),
            other=2 * size["head_dim"] if flag["qk_norm"] else 0,
        )  # fmt: skip
    kind: dict[str, Any] = {"norms": count["norms"], "norm_bias": flag["norm_bias"]}
    dense = Mlp(inputs=hidden, width=size["ffn"], gated=flag["gated"], bias=flag["mlp_bias"])
    made = [Layer(mixers=(mixer,), mlps=(dense,), **kind)] * layers
    if count["experts"] > 1:
        routed = Experts(
            inputs=hidden, width=size["ffn"], experts=count["experts"], per_token=count["experts_per_token"],
            gated=flag["gated"], shared=count["shared_ffn"],
        )  # fmt: skip
        first = Mlp(inputs=hidden, width=count["dense_ffn"] or 1, gated=flag["gated"])
        mlps = [first if i < count["dense_layers"] else routed for i in range(layers)]
        made = [Layer(mixers=(mixer,), mlps=(mlp,), **kind) for mlp in mlps]
    rows = (count["position_rows"] or count["max_positions"]) if flag["learned_positions"] else 0
    return Shape(
        family="table", vocab=size["vocab"], hidden=hidden, layers=tuple(made), embedding=size["vocab"] * hidden,
        positions=rows * hidden, head=Linear(name="lm_head", n=size["vocab"], k=hidden, bias=flag["head_bias"]),
        tied=flag["tied"], other=hidden * (2 if flag["norm_bias"] else 1), max_positions=count["max_positions"] or None,
    )  # fmt: skip


def _check(f: Fields, size: Mapping[str, int], count: Mapping[str, int]) -> None:
    if size["heads"] % size["kv_heads"]:
        raise f.refuse("kv_heads", f"must divide heads = {size['heads']}")
    if not 1 <= count["experts_per_token"] <= count["experts"]:
        raise f.refuse("experts_per_token", f"must lie in 1..experts = {count['experts']}")
    first = count["dense_layers"]
    if first and not (count["experts"] > 1 and first < size["layers"] and count["dense_ffn"] > 0):
        raise QsimError(
            f"{f.where}: dense_layers must be some of the layers of a mixture of experts and have a dense_ffn: got "
            f"{first} of {size['layers']} layers, {count['experts']} experts, dense_ffn={count['dense_ffn']}"
        )
    if count["kv_lora_rank"] and not (0 < count["rope_dim"] < size["head_dim"] and count["v_head_dim"] > 0):
        raise QsimError(
            f"{f.where}: latent attention needs 0 < rope_dim < head_dim and a v_head_dim: got rope_dim="
            f"{count['rope_dim']}, head_dim={size['head_dim']}, v_head_dim={count['v_head_dim']}"
        )


@lru_cache(maxsize=1)
def table_names() -> tuple[str, ...]:
    """Names of the architectures shipped as data."""
    folder = resources.files("hwmodels") / "architectures"
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml")))


@lru_cache(maxsize=64)
def shipped_table(name: str) -> Mapping[str, Any]:
    """The table of a shipped architecture."""
    text = (resources.files("hwmodels") / "architectures" / f"{name}.toml").read_text(encoding="utf-8")
    return MappingProxyType(parse_toml(text, f"{name}.toml"))
