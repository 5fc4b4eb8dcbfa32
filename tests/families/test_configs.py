"""The configs of 88 real models: parameters and cache to the element and the byte."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from qsim.errors import QsimError
from qsim.families import Attention, Experts, Latent, Recurrent, Shape, families, model_types, read_config

DATA = Path(__file__).parent / "data"
ROWS = list(csv.DictReader((DATA / "expected.csv").read_text().splitlines()))


MORE = {row["name"]: row for row in json.loads((DATA / "more_configs.json").read_text())}


def config(name: str) -> dict:
    return json.loads((DATA / f"{name}.json").read_text())


def kinds(shape: Shape) -> dict[str, int]:
    """Layers by what they keep of the past."""
    counts = dict.fromkeys(
        ("full", "sliding", "chunked", "latent", "recurrent", "parallel_hybrid", "shared_kv", "without_cache"), 0
    )
    for layer in shape.layers:
        found = set()
        for mixer in layer.mixers:
            if isinstance(mixer, Attention):
                found.add("shared_kv" if mixer.shares_kv else mixer.kind)
            else:
                found.add("latent" if isinstance(mixer, Latent) else "recurrent")
        both = "recurrent" in found and len(found) > 1
        counts["parallel_hybrid" if both else next(iter(found), "without_cache")] += 1
    return counts


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_every_count_of_a_real_model_is_exact(row):
    shape = read_config(DATA / f"{row['name']}.json")
    found = {
        "total_params": shape.parameters, "embedding_params": shape.embedding, "position_params": shape.positions,
        "lm_head_params": shape.head_parameters, "tied": int(shape.tied), "router_params": shape.router_parameters,
        "quantisable_params": shape.quantisable_parameters, "other_params": shape.other_parameters,
        "active_params": shape.active_parameters, "state_bytes": shape.state_bytes,
    }  # fmt: skip
    found |= {f"kv_bytes_{n}": shape.cache_bytes(n) for n in (2048, 32768, 131072)}
    found |= {f"layers_{kind}": count for kind, count in kinds(shape).items()}
    mixtures = [mlp for mlp, _ in shape.mlps if isinstance(mlp, Experts)]
    found["experts"] = max((m.experts for m in mixtures), default=1)
    found["experts_per_token"] = max((m.per_token for m in mixtures), default=1)
    assert found == {key: int(row[key]) for key in found}
    windows = {mixer.window for mixer, _ in shape.mixers if mixer.window}
    assert windows == ({int(row["window"])} if row["window"] else set())


def test_a_published_count_is_met_to_the_digit():
    exact = [row for row in ROWS if row["check"] == "exact"]
    assert len(exact) > 50
    for row in exact:
        assert read_config(config(row["name"])).parameters == int(row["published_params"]), row["name"]


@pytest.mark.parametrize("name", MORE)
def test_the_parameters_of_further_real_models_are_exact(name):
    assert read_config(MORE[name]["config"]).parameters == MORE[name]["parameters"]


def test_an_older_name_beside_the_new_one_must_say_the_same():
    table = MORE["recurrentgemma-9b"]["config"]
    assert table["_block_types"] == table["block_types"]
    with pytest.raises(QsimError, match="_block_types"):
        read_config({**table, "_block_types": ["attention", "recurrent"]})


def test_sizes_of_recurrences_are_refused_only_where_no_layer_could_have_them():
    table = MORE["granite-4.0-micro"]["config"]
    assert read_config({**table, "mamba_d_state": 64}) == read_config(table)
    mixed = {**table, "layer_types": ["mamba"] * 20 + ["attention"] * 20}
    assert read_config({**mixed, "mamba_d_state": 64}).parameters != read_config(mixed).parameters


def test_a_key_that_nothing_understands_is_refused_and_named_in_a_note_when_asked_to():
    for row in ROWS:
        table = config(row["name"])
        inner = table.get("text_config", table)
        inner["hyper_connections"] = 4
        with pytest.raises(QsimError, match="hyper_connections = 4 is not understood"):
            read_config(table)
        loose = read_config(table, strict=False)
        assert loose.notes[0] == "not understood and ignored: hyper_connections = 4"
        assert loose.parameters == int(row["total_params"])


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama-3-8b", "sliding_window", 4096), ("llama-3-8b", "num_experts", 8), ("llama-3-8b", "kv_lora_rank", 512),
        ("llama-3-8b", "use_qk_norm", True), ("qwen3-8b", "use_qk_norm", False), ("gemma-2b", "mlp_bias", True),
        ("phi-3-mini-4k", "attention_bias", True), ("qwen2.5-7b", "attention_bias", False),
        ("mixtral-8x22b", "shared_expert_intermediate_size", 1024), ("llama-2-7b", "is_encoder_decoder", True),
        ("mistral-nemo-12b", "layer_types", ["sliding_attention"] * 40), ("gpt2", "add_cross_attention", True),
        ("qwen3.5-27b", "attn_output_gate", False), ("hunyuan-a13b", "use_cla", True), ("dbrx", "intermediate_size", 7),
        ("command-r-35b", "use_parallel_block", False), ("llama-3-8b", "head_dim_", 64),
    ],
)  # fmt: skip
def test_a_key_that_contradicts_the_class_is_refused(name, key, value):
    table = config(name)
    table.get("text_config", table)[key] = value
    with pytest.raises(QsimError, match=key):
        read_config(table)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("qwen3-8b", "use_qk_norm", True), ("llama-3-8b", "num_experts", 0), ("llama-3-8b", "kv_lora_rank", None),
        ("gemma-2b", "mlp_bias", False), ("qwen2.5-7b", "attention_bias", True), ("llama-3-8b", "n_layer", 32),
        ("llama-3-8b", "quantization_config", {"quant_method": "gptq", "bits": 4}), ("gpt2", "image_token_id", 7),
    ],
)  # fmt: skip
def test_a_key_that_only_repeats_what_is_known_changes_nothing(name, key, value):
    plain = read_config(config(name))
    assert read_config({**config(name), key: value}) == plain


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 10**6}, {"num_hidden_layers": 0}, {"num_hidden_layers": True}, {"hidden_size": 4096.0},
        {"hidden_size": "4096"}, {"hidden_size": 10**400}, {"vocab_size": None}, {"num_key_value_heads": 5},
        {"num_key_value_heads": -1}, {"head_dim": 0}, {"intermediate_size": [1, 2]}, {"attention_bias": "no"},
        {"num_attention_heads": 33}, {"tie_word_embeddings": 1}, {"model_type": "lama"}, {"model_type": None},
        {"model_type": ["llama"]}, {"architectures": "LlamaForCausalLM"}, {"architectures": ["LlamaModel"]},
        {"architectures": ["MistralForCausalLM"]}, {"text_config": 3},
    ],
    ids=str,
)  # fmt: skip
def test_a_value_out_of_type_or_range_is_refused_in_one_sentence(change):
    with pytest.raises(QsimError) as error:
        read_config({**config("llama-3-8b"), **change})
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)


def test_lists_that_contradict_the_number_of_layers_are_refused():
    for name, key, value in (
        ("gpt-oss-20b", "layer_types", ["full_attention"] * 3), ("hunyuan-a13b", "moe_topk", [8] * 31),
        ("nemotron-h-8b", "num_hidden_layers", 51), ("nemotron-h-8b", "hybrid_override_pattern", "M?" * 26),
        ("smollm3-3b", "no_rope_layers", [1]), ("glm-4.5-air", "mlp_layer_types", ["dense"]),
        ("llama-3.3-nemotron-super-49b", "block_configs", []), ("gemma-3n-e2b", "intermediate_size", [1]),
    ):  # fmt: skip
        table = config(name)
        table.get("text_config", table)[key] = value
        with pytest.raises(QsimError, match="layers|entries|must"):
            read_config(table)


def test_absent_and_null_are_told_apart_as_the_classes_do():
    table = config("mistral-7b-v0.1")
    assert read_config(table).cache_bytes(32768) < read_config({**table, "sliding_window": None}).cache_bytes(32768)
    del table["num_key_value_heads"]
    assert read_config(table).mixers[0][0].kv_heads == 8
    assert read_config({**table, "num_key_value_heads": None}).mixers[0][0].kv_heads == 32


def test_older_names_mean_the_same_and_two_that_differ_are_refused():
    table = config("gpt2")
    renamed = {("hidden_size" if key == "n_embd" else key): value for key, value in table.items()}
    assert read_config(renamed) == read_config(table)
    with pytest.raises(QsimError, match="mean the same and differ"):
        read_config({**table, "hidden_size": 1024})


def test_the_registry_is_what_the_folder_holds():
    from qsim.families import known

    names = list(families())
    assert len(names) == len(set(names)) > 60
    owners: dict[str, str] = {}
    for family in families().values():
        for kind in family.model_types:
            assert owners.setdefault(kind, family.name) == family.name
    assert set(owners) == set(model_types())
    assert {row["model_type"] for row in ROWS} <= set(owners)
    folder = Path(known.__path__[0])
    assert all("Family(" in f.read_text() for f in folder.glob("*.py") if f.name != "__init__.py")


def test_a_recurrent_state_does_not_grow_and_a_window_stops_growing():
    falcon = read_config(config("falcon-mamba-7b"))
    assert falcon.cache_bytes(1 << 20) == 0
    assert falcon.state_bytes > 0
    assert all(isinstance(mixer, Recurrent) for mixer, _ in falcon.mixers)
    starcoder = read_config(config("starcoder2-7b"))
    assert starcoder.cache_bytes(1 << 20) == starcoder.cache_bytes(4096)


@pytest.mark.parametrize(
    ("table", "published"),
    [  # configs as published, where a class differs from every one above; the counts are those of the model pages
        ({"model_type": "falcon", "bias": False, "multi_query": True, "new_decoder_architecture": False,
          "parallel_attn": True}, 6921720704),
        ({"model_type": "falcon", "hidden_size": 8192, "num_attention_heads": 128, "num_hidden_layers": 60,
          "num_kv_heads": 8, "new_decoder_architecture": True, "parallel_attn": True}, 41303293952),
        ({"model_type": "mpt", "d_model": 4096, "n_heads": 32, "n_layers": 32, "no_bias": True, "vocab_size": 50432,
          "attn_config": {"alibi": True, "alibi_bias_max": 8, "attn_impl": "torch", "qk_ln": False}}, 6649286656),
        ({"model_type": "qwen", "seq_length": 8192, "max_position_embeddings": 32768}, 7721324544),
        ({"model_type": "baichuan", "model_max_length": 4096, "z_loss_weight": 0}, 7505973248),
        ({"model_type": "chatglm", "add_qkv_bias": True, "multi_query_attention": True, "multi_query_group_num": 2,
          "layernorm_epsilon": 1e-5}, 6243584000),
        ({"model_type": "minimax_text_01", "attn_type_list": [0, 0, 0, 0, 0, 0, 0, 1] * 10, "head_dim": 128,
          "hidden_size": 6144, "intermediate_size": 9216, "num_attention_heads": 64, "num_hidden_layers": 80,
          "num_local_experts": 32, "vocab_size": 200064, "postnorm": True}, 456089655296),
        ({"model_type": "lfm2", "block_ff_dim": 12288, "full_attn_idxs": [2, 5, 8, 10, 12, 14], "hidden_size": 2048,
          "num_hidden_layers": 16, "use_pos_enc": True}, 1170340608),
        ({"model_type": "cohere2", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
          "num_hidden_layers": 32, "num_key_value_heads": 8, "layer_switch": 4}, 8028033024),
        ({"model_type": "bloom", "n_embed": 4096, "n_layer": 30, "num_attention_heads": 32}, 7069016064),
        ({"model_type": "gpt_bigcode", "n_embd": 6144, "n_head": 48, "n_inner": 24576, "n_layer": 40,
          "n_positions": 8192, "vocab_size": 49152, "inference_runner": 0}, 15517456384),
        ({"model_type": "phi3", "num_attention_heads": 24, "num_key_value_heads": 8, "tie_word_embeddings": True,
          "vocab_size": 200064, "full_attn_mod": 1}, 3836021760),
    ],
    ids=["falcon-7b", "falcon-40b", "mpt-7b", "qwen-7b", "baichuan-2-7b", "chatglm3-6b", "minimax-text-01", "lfm2-1.2b",
         "command-r7b", "bloom-7b1", "starcoder", "phi-4-mini"],
)  # fmt: skip
def test_further_published_counts_are_met_to_the_digit(table, published):
    assert read_config(table).parameters == published


def test_keys_within_inner_tables_are_held_to_the_same_rule():
    table = config("dbrx")
    table["ffn_config"]["moe_shared_experts"] = 2
    with pytest.raises(QsimError, match=r"ffn_config\.moe_shared_experts = 2 is not understood"):
        read_config(table)


def test_a_text_model_within_a_larger_one_takes_what_it_leaves_open():
    whole = config("ministral-3-3b")
    inner = {k: v for k, v in whole["text_config"].items() if k not in ("model_type", "tie_word_embeddings")}
    open_ended = {"model_type": "ministral3", "tie_word_embeddings": True, "text_config": inner}
    assert read_config(open_ended).parameters == read_config(whole).parameters
    assert not read_config({**open_ended, "tie_word_embeddings": False}).tied
