"""GPT-2 and what followed it with learned or rotated positions, LayerNorm with bias and an MLP without a gate."""

from typing import Any

from ..config import Config
from ..family import BlockTensors, Family, MlpTensors, Tensors
from ..numerics import Numerics
from ..parts import attention, decoder, mlp
from ..shape import Layer, Shape

_N = {
    "hidden_size": ("n_embd",), "num_hidden_layers": ("n_layer",), "num_attention_heads": ("n_head",),
    "max_position_embeddings": ("n_positions",), "intermediate_size": ("n_inner",),
}  # fmt: skip


def _sizes(vocab: int, hidden: int, layers: int, heads: int, positions: int, **more: Any) -> dict[str, Any]:
    named: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    return {**named, "max_position_embeddings": positions, **more}


def _width(c: Config) -> int:
    return c.optional("intermediate_size") or 4 * c.hidden


def _positions(c: Config) -> int:
    return c.size("max_position_embeddings") * c.hidden


def _gpt2(c: Config) -> Shape:
    many = attention(c, kv_heads=c.heads, head_dim=c.even_heads(), qkv_bias=True, out_bias=True)
    layer = Layer(mixers=(many,), mlps=(mlp(c, width=_width(c), gated=False, bias=True),), norm_bias=True)
    return decoder(c, layer, norm_bias=True, positions=_positions(c))


def _bigcode(c: Config) -> Shape:
    kv_heads = 1 if c.flag("multi_query") else c.heads
    c.ignore("num_key_value_heads")
    mixer = attention(c, kv_heads=kv_heads, head_dim=c.even_heads(), qkv_bias=True, out_bias=True)
    layer = Layer(mixers=(mixer,), mlps=(mlp(c, width=_width(c), gated=False, bias=True),), norm_bias=True)
    return decoder(c, layer, norm_bias=True, positions=_positions(c))


def _neo_kinds(c: Config) -> list[str]:
    """`attention_types` is a list of [[kinds], repeats]; `attention_layers` is the list it expands to."""
    given = c.fields.table.get("attention_types", c.defaults["attention_types"])
    c.ignore("attention_types", "attention_layers")
    kinds: list[str] = []
    for item in given if isinstance(given, list | tuple) else [()]:
        pair = tuple(item) if isinstance(item, list | tuple) and len(item) == 2 else ((), None)
        names, repeats = pair
        fits = isinstance(names, list | tuple) and isinstance(repeats, int) and not isinstance(repeats, bool)
        if not fits or not 0 < repeats <= c.layers:
            raise c.refuse("attention_types", "must be a list of pairs of kinds and a number of repeats")
        kinds += list(names) * repeats
    if len(kinds) != c.layers or any(kind not in ("global", "local") for kind in kinds):
        raise c.refuse("attention_types", f"must name global or local for each of {c.layers} layers")
    return kinds


def _neo(c: Config) -> Shape:
    window = c.size("window_size")

    def layer(kind: str) -> Layer:
        more = {"kind": "sliding", "window": window} if kind == "local" else {}
        mixer = attention(c, kv_heads=c.heads, head_dim=c.even_heads(), out_bias=True, **more)
        return Layer(mixers=(mixer,), mlps=(mlp(c, width=_width(c), gated=False, bias=True),), norm_bias=True)

    made = {kind: layer(kind) for kind in ("global", "local")}
    layers = [made[kind] for kind in _neo_kinds(c)]
    return decoder(c, layers, norm_bias=True, positions=_positions(c))


def _parallel(c: Config) -> Shape:
    """GPT-J and CodeGen: one norm for attention and MLP, no biases in attention, a bias in the head."""
    mixer = attention(c, kv_heads=c.heads, head_dim=c.even_heads())
    wide = mlp(c, width=_width(c), gated=False, bias=True)
    layer = Layer(mixers=(mixer,), mlps=(wide,), norms=1, norm_bias=True, parallel=True)
    return decoder(c, layer, norm_bias=True, head_bias=True)


def _neox(c: Config) -> Shape:
    bias = c.flag("attention_bias")
    mixer = attention(c, kv_heads=c.heads, head_dim=c.even_heads(), qkv_bias=bias, out_bias=bias)
    parallel = c.flag("use_parallel_residual")
    layer = Layer(mixers=(mixer,), mlps=(mlp(c, gated=False, bias=True),), norm_bias=True, parallel=parallel)
    return decoder(c, layer, norm_bias=True)


def _persimmon(c: Config) -> Shape:
    head_dim = c.even_heads()
    norms = 4 * head_dim if c.flag("qk_layernorm") else 0
    mixer = attention(c, kv_heads=c.heads, head_dim=head_dim, qkv_bias=True, out_bias=True, other=norms)
    layer = Layer(mixers=(mixer,), mlps=(mlp(c, gated=False, bias=True),), norm_bias=True)
    return decoder(c, layer, norm_bias=True)


GPT2 = Family(
    name="gpt2", model_types=("gpt2",), architectures=("GPT2LMHeadModel",), shape=_gpt2, aliases=_N,
    defaults=_sizes(50257, 768, 12, 12, 1024, tie_word_embeddings=True),
)  # fmt: skip
GPT_BIGCODE = Family(
    name="gpt_bigcode", model_types=("gpt_bigcode",), architectures=("GPTBigCodeForCausalLM",), shape=_bigcode,
    aliases=_N, defaults=_sizes(50257, 768, 12, 12, 1024, tie_word_embeddings=True, multi_query=True),
)  # fmt: skip
GPT_NEO = Family(
    name="gpt_neo", model_types=("gpt_neo",), architectures=("GPTNeoForCausalLM",), shape=_neo,
    aliases={"num_hidden_layers": ("num_layers",), "num_attention_heads": ("num_heads",)},
    defaults=_sizes(
        50257, 2048, 24, 16, 2048, tie_word_embeddings=True, window_size=256,
        attention_types=[[["global", "local"], 12]],
    ),
)  # fmt: skip
GPT_J = Family(
    name="gptj", model_types=("gptj", "codegen"), architectures=("GPTJForCausalLM", "CodeGenForCausalLM"),
    shape=_parallel, aliases=_N, defaults=_sizes(50400, 4096, 28, 16, 2048), harmless=frozenset({"rotary"}),
)  # fmt: skip
GPT_NEOX = Family(
    name="gpt_neox", model_types=("gpt_neox",), architectures=("GPTNeoXForCausalLM",), shape=_neox,
    defaults=_sizes(50432, 6144, 44, 64, 2048, intermediate_size=24576, attention_bias=True,
                    use_parallel_residual=True, layer_norm_eps=1e-5, hidden_act="gelu", rotary_pct=0.25),
    tensors=Tensors(
        embedding="gpt_neox.embed_in", norm="gpt_neox.final_layer_norm", prefix="gpt_neox.layers.{i}.",
        head="embed_out",
        block=BlockTensors(
            query=None, key=None, value=None, qkv="attention.query_key_value", output="attention.dense",
            mlp=MlpTensors(up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h"),
        ),
    ),
    numerics=Numerics(
        norm="layer", qkv_order="heads", writes=("attention_bias",),
        keys={"norm_eps": "layer_norm_eps", "hidden_act": "hidden_act", "rope_theta": "rotary_emb_base",
              "partial_rotary_factor": "rotary_pct", "use_parallel_residual": "use_parallel_residual"},
    ),
)  # fmt: skip
PERSIMMON = Family(
    name="persimmon", model_types=("persimmon",), architectures=("PersimmonForCausalLM",), shape=_persimmon,
    defaults=_sizes(262144, 4096, 36, 64, 16384, intermediate_size=16384, qk_layernorm=True),
)  # fmt: skip
