"""`quantization_config` in and out: keys of every kind of wrong type, patterns, other people's files."""

import copy

import pytest

from qsim.checkpoints.parts import Notes
from qsim.checkpoints.quantization import Fact, read_plan, write_plan
from qsim.scheme import get_scheme

LAYER = "model.layers.0.mlp.up_proj"
WRITTEN = [("w4a16-g32", "compressed-tensors"), ("w8a8-tensor-static", "compressed-tensors"),
           ("fp8-tensor-kvfp8", "compressed-tensors"), ("nvfp4", "compressed-tensors"), ("w4a16-g32", "gptq_v2"),
           ("w4a16-g32", "awq"), ("fp8-block128", "fp8"), ("fp8-static", "fp8")]  # fmt: skip
JUNK = [None, "x", -3, 0, 3.5, [], {}, [1, 2], True, {"a": 1}, ["re:("]]


def written(name: str, layout: str) -> dict:
    scheme = get_scheme(name)
    kv = scheme.kv_cache if scheme.kv_cache.is_quantized else None
    return write_plan(layout, {LAYER: Fact(scheme=scheme)}, ["lm_head"], kv, "0")


def places(value, at=()):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*at, key)
            yield from places(inner, (*at, key))


@pytest.mark.parametrize(("name", "layout"), WRITTEN)
def test_what_is_written_is_read(name, layout):
    notes = Notes()
    plan = read_plan(written(name, layout), notes)
    assert notes.lines() == ()
    found = plan.layer(LAYER)
    assert found.scheme == get_scheme(name)
    assert not found.skipped
    assert plan.layer("lm_head").skipped


@pytest.mark.parametrize(("name", "layout"), WRITTEN)
def test_any_key_of_any_type(name, layout):
    """Junk in place of every value: it is read or refused in a sentence, never a TypeError from within."""
    config = written(name, layout)
    refused = []
    for place in places(config):
        for junk in JUNK:
            changed = copy.deepcopy(config)
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = junk
            try:
                read_plan(changed, Notes()).layer(LAYER)
            except ValueError as error:
                refused.append(str(error))
    assert len(refused) > 10
    assert all(len(text) > 20 and "object is not" not in text for text in refused)


@pytest.mark.parametrize(
    ("layout", "change", "words"),
    [
        ("gptq_v2", {"group_size": "many"}, r"\(gptq\): key 'group_size': input should be a valid integer.*: got many"),
        ("awq", {"modules_to_not_convert": [1]}, r"key 'modules_to_not_convert.0': input should be a valid string"),
        ("gptq_v2", {"dynamic": {"-:(": {}}}, r"'\(' is not a regular expression"),
        ("compressed-tensors", {"ignore": ["re:("]}, r"key 'ignore.0': '\(' is not a regular expression"),
        ("compressed-tensors", {"config_groups": {"a": {"targets": ["Linear"], "weights": {"type": "nf"}}}},
         r"key 'config_groups.a.weights.type': input should be 'int' or 'float': got nf"),
        ("compressed-tensors", {"config_groups": {"a": {"weights": None}}},
         r"key 'config_groups.a.targets' is missing"),
        ("compressed-tensors", {"format": "marlin-24"}, r"group group_0 has 'marlin-24'"),
        ("compressed-tensors", {"quantization_status": "frozen"}, r"quantization_status compressed: got 'frozen'"),
        ("compressed-tensors", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config is not read"),
        ("compressed-tensors", {"transform_config": {"config_groups": {"u": 1}}}, "transform_config is not read"),
        ("fp8", {"weight_scale_semantics": "sideways"}, r"weight_scale_semantics is inverse"),
        ("fp8", {"weight_block_size": [128]}, r"key 'weight_block_size"),
    ],
)  # fmt: skip
def test_the_sentence_names_key_and_rule(layout, change, words):
    config = written("fp8" if layout == "fp8" else "w4a16-g32", layout) | change
    with pytest.raises(ValueError, match=words):
        read_plan(config, Notes())


def test_unknown_keys_at_any_depth_are_listed():
    config = written("w4a16-g32", "compressed-tensors") | {"tomorrow": 1}
    config["config_groups"]["group_0"]["weights"]["colour"] = "blue"
    notes = Notes()
    read_plan(config, notes)
    assert notes.lines() == (
        "unknown keys of quantization_config (compressed-tensors) were ignored: "
        "config_groups.group_0.weights.colour, tomorrow",
    )


def weights(**changes):
    return {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32} | changes


def test_targets_of_compressed_tensors():
    """A layer's own name or pattern goes before its class; what no group targets has no scheme."""
    config = {
        "quant_method": "compressed-tensors", "format": "mixed-precision", "ignore": ["lm_head", "re:.*layers.3.*"],
        "config_groups": {
            "all": {"targets": ["Linear"], "weights": weights(), "format": "pack-quantized"},
            "down": {"targets": ["re:.*down_proj$"], "weights": weights(num_bits=8), "format": "pack-quantized"},
            "one": {"targets": [LAYER], "weights": weights(num_bits=3), "format": "pack-quantized"},
        },
    }  # fmt: skip
    plan = read_plan(config, Notes())
    assert plan.layer(LAYER).scheme.weight.bits == 3
    assert plan.layer("model.layers.0.mlp.down_proj").scheme.weight.bits == 8
    assert plan.layer("model.layers.0.mlp.gate_proj").scheme.weight.bits == 4
    assert plan.layer("model.layers.3.mlp.gate_proj").skipped
    assert not plan.layer("model.layers.2.mlp.gate_proj").skipped
    del config["config_groups"]["all"]
    assert read_plan(config, Notes()).layer("model.layers.0.mlp.gate_proj") is None


def test_dynamic_rules_of_gptq():
    config = {
        "quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True,
        "dynamic": {r"-:.*\.1\..*": {}, r"+:.*down_proj": {"bits": 8, "group_size": -1}, ".*up_proj": {"sym": False}},
    }  # fmt: skip
    plan = read_plan(config, Notes())
    assert plan.layer("model.layers.1.mlp.up_proj").skipped
    assert plan.layer("model.layers.0.mlp.down_proj").scheme == get_scheme("w8a16-channel-sym")
    assert plan.layer("model.layers.0.mlp.up_proj").scheme == get_scheme("w4a16-g32-asym")
    assert plan.layer("model.layers.0.mlp.gate_proj").scheme == get_scheme("w4a16-g32-sym")


def test_strategies_that_are_left_out():
    """compressed-tensors infers them from the group size."""
    for size, kind in ((None, "tensor"), (-1, "channel"), (64, "group")):
        group = {"targets": ["Linear"], "weights": {"num_bits": 8, "group_size": size}}
        config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g": group}}
        assert read_plan(config, Notes()).layer(LAYER).scheme.weight.granularity.kind == kind


@pytest.mark.parametrize(("bits", "group", "name"), [(4, 32, "mxfp4"), (6, 32, "mxfp6_e2m3"), (4, 16, "nvfp4")])
def test_block_formats_without_a_scale_dtype(bits, group, name):
    """Older configs tell MX and NVFP4 by bits and group size."""
    strategy = "tensor_group" if name == "nvfp4" else "group"
    part = {"num_bits": bits, "type": "float", "strategy": strategy, "group_size": group, "symmetric": True}
    config = {"quant_method": "compressed-tensors", "format": f"{name[:5]}-pack-quantized",
              "config_groups": {"g": {"targets": ["Linear"], "weights": part}}}  # fmt: skip
    assert read_plan(config, Notes()).layer(LAYER).scheme.weight.format.name == name


def test_a_kv_cache_that_is_not_supported_is_left_and_noted():
    config = written("w4a16-g32", "compressed-tensors")
    for strategy in ("attn_head", "tensor"):
        config["kv_cache_scheme"] = {"num_bits": 8, "type": "int", "strategy": strategy, "dynamic": False}
        notes = Notes()
        assert read_plan(config, notes).kv_cache is None
        assert notes.lines()[0].startswith("the KV cache is not quantised here")


def test_configs_without_a_method():
    awq = {"w_bit": 4, "q_group_size": 128, "zero_point": True, "version": "GEMM"}
    assert read_plan(awq, Notes()).layer(LAYER).scheme == get_scheme("w4a16-g128")
    gptq = {"bits": 4, "group_size": 128, "sym": True, "desc_act": False, "damp_percent": 0.01}
    assert read_plan(gptq, Notes()).layer(LAYER).scheme == get_scheme("w4a16-g128-sym")
    with pytest.raises(ValueError, match="key 'quant_method' is missing; there are load_in_4bit"):
        read_plan({"load_in_4bit": True}, Notes())
