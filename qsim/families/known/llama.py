"""Llama 1 to 3, and the many families that differ from it by a default or a bias."""

from dataclasses import replace

from ..config import Config
from ..family import Family, MlpTensors
from ..numerics import KEYS, Numerics
from ..parts import TENSORS, attention, decoder, maybe_sliding, mlp, sizes, windowed
from ..shape import Layer, Shape


def _llama(c: Config) -> Shape:
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, out_bias=bias)
    return decoder(c, Layer(mixers=(mixer,), mlps=(mlp(c, bias=c.flag("mlp_bias")),)))


def _arcee(c: Config) -> Shape:
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, out_bias=bias)
    return decoder(c, Layer(mixers=(mixer,), mlps=(mlp(c, gated=False, bias=c.flag("mlp_bias")),)))


def _seed(c: Config) -> Shape:
    mixer = attention(c, qkv_bias=c.flag("attention_bias"), out_bias=c.flag("attention_out_bias"))
    return decoder(c, Layer(mixers=(mixer,), mlps=(mlp(c, bias=c.flag("mlp_bias")),)))


def _cwm(c: Config) -> Shape:
    base, wide = attention(c), mlp(c, bias=c.flag("mlp_bias"))
    kinds = c.layer_types(lambda i: "sliding_attention" if i % 4 else "full_attention", _KINDS)
    return decoder(c, [Layer(mixers=(windowed(c, base, kind),), mlps=(wide,)) for kind in kinds])


def _smollm3(c: Config) -> Shape:
    bias = c.flag("attention_bias")
    base, wide = attention(c, qkv_bias=bias, out_bias=bias), mlp(c, bias=c.flag("mlp_bias"))
    period = c.size("no_rope_layer_interval")
    rope = c.numbers("no_rope_layers", c.layers) or tuple(int((i + 1) % period != 0) for i in range(c.layers))
    window = c.window
    used = c.flag("use_sliding_window") and window is not None
    kinds = c.layer_types(lambda i: "sliding_attention" if used and not rope[i] else "full_attention", _KINDS)
    return decoder(c, [Layer(mixers=(windowed(c, base, kind),), mlps=(wide,)) for kind in kinds])


def _helium(c: Config) -> Shape:
    if c.heads * c.head_dim != c.hidden:
        raise c.refuse("head_dim", f"times {c.heads} attention heads must be hidden_size = {c.hidden}")
    mixer = attention(c, qkv_bias=c.flag("attention_bias"))
    return decoder(c, Layer(mixers=(mixer,), mlps=(mlp(c, bias=c.flag("mlp_bias")),)))


def _bitnet(c: Config) -> Shape:
    mixer = attention(c, qkv_bias=c.flag("attention_bias"), out_bias=c.flag("attention_bias"), other=c.hidden)
    wide = mlp(c, other=c.size("intermediate_size"))
    return decoder(c, Layer(mixers=(mixer,), mlps=(wide,)))


def _apertus(c: Config) -> Shape:
    bias = c.flag("attention_bias")
    # xIELU learns two numbers in each layer
    wide = mlp(c, gated=False, other=2 if c.text("hidden_act") == "xielu" else 0)
    mixer = attention(c, qkv_bias=bias, out_bias=bias, qk_norm=True)
    return decoder(c, Layer(mixers=(mixer,), mlps=(wide,)))


def _exaone(c: Config) -> Shape:
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, out_bias=bias)
    return decoder(c, Layer(mixers=(mixer,), mlps=(mlp(c, bias=c.flag("mlp_bias")),)))


def _minicpm(c: Config) -> Shape:
    bias = c.flag("attention_bias")
    return decoder(c, Layer(mixers=(attention(c, qkv_bias=bias, out_bias=bias),), mlps=(mlp(c),)))


def _plain(c: Config) -> Shape:
    """The remote classes that are Llama without any choice: Yi, Baichuan, XVERSE, Aquila, Skywork."""
    return decoder(c, Layer(mixers=(attention(c),), mlps=(mlp(c),)))


def _starcoder2(c: Config) -> Shape:
    bias = c.flag("use_bias")
    mixer = maybe_sliding(c, attention(c, qkv_bias=bias, out_bias=bias))
    layer = Layer(mixers=(mixer,), mlps=(mlp(c, gated=False, bias=bias),), norm_bias=True)
    return decoder(c, layer, norm_bias=True)


def _stablelm(c: Config) -> Shape:
    parallel, head_dim = c.flag("use_parallel_residual"), c.even_heads()
    norms = (c.heads + c.kv_heads) * head_dim if c.flag("qk_layernorm") else 0
    mixer = attention(c, head_dim=head_dim, qkv_bias=c.flag("use_qkv_bias"), other=norms)
    layer = Layer(mixers=(mixer,), mlps=(mlp(c),), norms=1 if parallel else 2, norm_bias=True, parallel=parallel)
    return decoder(c, layer, norm_bias=True)


def _orion(c: Config) -> Shape:
    layer = Layer(mixers=(attention(c),), mlps=(mlp(c),), norm_bias=True)
    return decoder(c, layer, norm_bias=True)


def _nemotron(c: Config) -> Shape:
    bias = c.flag("attention_bias")
    mixer, wide = attention(c, qkv_bias=bias, out_bias=bias), mlp(c, gated=False, bias=c.flag("mlp_bias"))
    return decoder(c, Layer(mixers=(mixer,), mlps=(wide,), norm_bias=True), norm_bias=True)


_KINDS = ("full_attention", "sliding_attention")
_N = {"num_hidden_layers": ("num_layers",)}

LLAMA = Family(
    name="llama", model_types=("llama",), architectures=("LlamaForCausalLM",), shape=_llama,
    defaults=sizes(32000, 4096, 11008, 32, 32, max_position_embeddings=2048), tensors=TENSORS,
    numerics=Numerics(writes=("num_key_value_heads", "head_dim", "attention_bias", "mlp_bias")),
)  # fmt: skip
ARCEE = Family(
    name="arcee", model_types=("arcee",), architectures=("ArceeForCausalLM",), shape=_arcee,
    defaults=sizes(32000, 2560, 18432, 32, 32),
)  # fmt: skip
SEED_OSS = Family(
    name="seed_oss", model_types=("seed_oss",), architectures=("SeedOssForCausalLM",), shape=_seed,
    defaults=sizes(155136, 4096, 27648, 64, 80, 8, head_dim=128, attention_bias=True,
                   max_position_embeddings=524288),
    tensors=TENSORS,
    numerics=Numerics(writes=("num_key_value_heads", "head_dim", "attention_bias", "attention_out_bias", "mlp_bias")),
)  # fmt: skip
CWM = Family(
    name="cwm", model_types=("cwm",), architectures=("CwmForCausalLM",), shape=_cwm,
    defaults=sizes(128256, 6144, 21504, 64, 48, 8, head_dim=128, sliding_window=8192),
)  # fmt: skip
SMOLLM3 = Family(
    name="smollm3", model_types=("smollm3",), architectures=("SmolLM3ForCausalLM",), shape=_smollm3,
    defaults=sizes(128256, 2048, 11008, 36, 16, 4, tie_word_embeddings=True, no_rope_layer_interval=4),
    harmless=frozenset({"max_window_layers"}),
)  # fmt: skip
HELIUM = Family(
    name="helium", model_types=("helium",), architectures=("HeliumForCausalLM",), shape=_helium,
    defaults=sizes(48000, 2560, 7040, 24, 20, 20, head_dim=128),
)  # fmt: skip
BITNET = Family(
    name="bitnet", model_types=("bitnet",), architectures=("BitNetForCausalLM", "BitnetForCausalLM"), shape=_bitnet,
    defaults=sizes(128256, 2560, 6912, 30, 20, 5),
)  # fmt: skip
APERTUS = Family(
    name="apertus", model_types=("apertus",), architectures=("ApertusForCausalLM",), shape=_apertus,
    defaults=sizes(131072, 4096, 14336, 32, 32, hidden_act="xielu"),
    harmless=frozenset({"post_norm"}),
)  # fmt: skip
EXAONE = Family(
    name="exaone", model_types=("exaone",), architectures=("ExaoneForCausalLM",), shape=_exaone, aliases=_N,
    defaults=sizes(102400, 4096, 14336, 32, 32, 8),
)  # fmt: skip
MINICPM = Family(
    name="minicpm", model_types=("minicpm",), architectures=("MiniCPMForCausalLM",), shape=_minicpm,
    defaults=sizes(32000, 4096, 11008, 32, 32, tie_word_embeddings=True),
    harmless=frozenset({"scale_emb", "dim_model_base", "scale_depth", "mup_denominator"}),
)  # fmt: skip
BAICHUAN = Family(
    name="baichuan", model_types=("baichuan", "Yi", "xverse", "skywork"), shape=_plain,
    architectures=("BaichuanForCausalLM", "BaiChuanForCausalLM", "YiForCausalLM", "XverseForCausalLM",
                   "SkyworkForCausalLM"),
    aliases={"max_position_embeddings": ("model_max_length",)},
    defaults=sizes(125696, 4096, 11008, 32, 32),
    harmless=frozenset({"z_loss_weight", "gradient_checkpointing"}),
)  # fmt: skip
STARCODER2 = Family(
    name="starcoder2", model_types=("starcoder2",), architectures=("Starcoder2ForCausalLM",), shape=_starcoder2,
    defaults=sizes(49152, 3072, 12288, 30, 24, 2, use_bias=True, tie_word_embeddings=True, norm_epsilon=1e-5,
                   hidden_act="gelu_pytorch_tanh", max_position_embeddings=4096),
    tensors=replace(TENSORS, block=replace(TENSORS.block, mlp=MlpTensors(up="mlp.c_fc", down="mlp.c_proj"))),
    numerics=Numerics(norm="layer", keys={**KEYS, "norm_eps": "norm_epsilon"},
                      writes=("num_key_value_heads", "sliding_window", "use_bias")),
    harmless=frozenset({"mlp_type", "norm_type", "activation_function"}),
)  # fmt: skip
STABLELM = Family(
    name="stablelm", model_types=("stablelm", "stablelm_epoch"), shape=_stablelm,
    architectures=("StableLmForCausalLM", "StableLMEpochForCausalLM"),
    defaults=sizes(50304, 2560, 6912, 32, 32, 32), harmless=frozenset({"rotary_scaling_factor"}),
)  # fmt: skip
ORION = Family(
    name="orion", model_types=("orion",), architectures=("OrionForCausalLM",), shape=_orion,
    defaults=sizes(84608, 4096, 15360, 40, 40),
)  # fmt: skip
NEMOTRON = Family(
    name="nemotron", model_types=("nemotron",), architectures=("NemotronForCausalLM",), shape=_nemotron,
    defaults=sizes(256000, 6144, 24576, 32, 48),
)  # fmt: skip
