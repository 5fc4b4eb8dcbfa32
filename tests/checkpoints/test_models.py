"""Whole models: quantised, written, read; equal in every code, scale, zero point and logit."""

import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest

import qsim.models
from qsim.checkpoints import convert, layouts_for, read, write
from qsim.models import Model, with_scheme
from qsim.scheme import get_scheme, quantize

from .tiny import assert_same, bfloat16, config_of, quantized, tiny

CASES = [
    (layout, f"w{bits}a16-{group}-{how}")
    for bits in (2, 3, 4, 8)
    for group in ("g32", "g128", "channel")
    for how in ("sym", "asym")
    for layout in layouts_for(f"w{bits}a16-{group}-{how}")
] + [
    (layout, name)
    for name in ("fp8-tensor", "fp8-static", "fp8-rowwise", "fp8-weight-only", "fp8-block128", "fp8-tensor-kvfp8",
                 "mxfp8", "mxfp6", "mxfp4", "mxfp4-weight-only", "nvfp4-weight-only", "w8a8", "w8a8-tensor",
                 "w8a8-tensor-static", "w4a8", "w5a16-channel", "w6a16-g32-sym", "w7a16-channel")
    for layout in layouts_for(name)
]  # fmt: skip


@pytest.mark.parametrize(("layout", "name"), CASES)
def test_write_and_read(tmp_path, layout, name):
    model = quantized(name)
    if layout == "gptq":  # version 1 has no zero point 0
        model = without_zero(model)
    written = write(model, tmp_path / "out", layout)
    assert written.layout == layout
    assert written.path == tmp_path / "out"
    assert set(written.files) == {p.name for p in (tmp_path / "out").iterdir()}
    back = read(tmp_path / "out")
    if get_scheme(name).kv_cache.is_quantized:
        assert back.kv_cache == get_scheme(name).kv_cache
        back = back.replace(kv_cache=None)
    assert_same(model, back)
    assert qsim.models.load(tmp_path / "out").tensors.keys() == model.tensors.keys()
    if layout == "gguf":  # one file with its own config
        assert written.files == ("model.gguf",)
        return
    config = config_of(tmp_path / "out")["quantization_config"]
    assert config["quant_method"] == layout.removesuffix("_v2")


def without_zero(model: Model) -> Model:
    changed = {}
    for name, tensor in model.tensors.items():
        zeros = getattr(tensor, "zeros", None)
        if zeros is not None:
            changed[name] = replace(tensor, zeros=np.maximum(zeros, 1))
    return model.replace(tensors=changed)


def test_plain_keeps_the_dtype(tmp_path):
    model = tiny()
    written = write(model, tmp_path / "out")
    assert (written.layout, written.dtype, written.notes) == ("plain", "bfloat16", ())
    assert written.total_bytes == 2 * model.parameters
    assert_same(model, read(tmp_path / "out"))
    assert "quantization_config" not in config_of(tmp_path / "out")


def test_values_that_the_dtype_cannot_hold_are_kept_in_float32(tmp_path):
    model = tiny()
    odd = model.tensors["model.norm.weight"] * np.float32(1 / 3)
    model = model.replace(tensors={"model.norm.weight": odd})
    written = write(model, tmp_path / "out")
    assert written.notes == (
        "unquantised tensors are stored in float32: bfloat16 would round them (model.norm.weight)",
    )
    assert_same(model, read(tmp_path / "out"))


def test_rounding_is_asked_for_and_noted(tmp_path):
    model = tiny()
    odd = model.tensors["model.norm.weight"] * np.float32(1 / 3)
    model = model.replace(tensors={"model.norm.weight": odd})
    written = write(model, tmp_path / "out", dtype="float16")
    assert written.dtype == config_of(tmp_path / "out")["torch_dtype"] == "float16"
    assert "rounded to float16, as asked" in written.notes[0]
    np.testing.assert_array_equal(read(tmp_path / "out").tensors["model.norm.weight"],
                                  odd.astype(np.float16).astype(np.float32))  # fmt: skip
    big = model.replace(tensors={"model.norm.weight": odd * 1e6})
    with pytest.raises(ValueError, match=r"tensor model.norm.weight has values up to .* beyond float16"):
        write(big, tmp_path / "big", dtype="float16")
    assert not (tmp_path / "big").exists()


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "mistral", "opt"])
def test_other_families(tmp_path, family):
    classes = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "mistral": "MistralForCausalLM",
               "opt": "OPTForCausalLM"}  # fmt: skip
    changes = {"architectures": [classes[family]], "model_type": family}
    if family == "opt":
        changes |= {"ffn_dim": 256, "word_embed_proj_dim": 64, "activation_function": "relu"}
        llama = ("num_key_value_heads", "hidden_act", "rope_theta", "rms_norm_eps", "head_dim", "intermediate_size")
        changes |= dict.fromkeys(llama)
    for layout in ("compressed-tensors", "gptq_v2", "awq"):
        model = quantized("w4a16-g32", **changes)
        write(model, tmp_path / layout, layout)
        assert_same(model, read(tmp_path / layout))


def test_a_quantised_head(tmp_path):
    model = quantized("w4a16-g32")
    head = quantize(model.lm_head.weight, "w4a16-g32", name="lm_head")
    model = model.replace(tensors={"lm_head.weight": head})
    for layout in ("compressed-tensors", "gptq_v2"):
        write(model, tmp_path / layout, layout)
        assert_same(model, read(tmp_path / layout))
    assert config_of(tmp_path / "compressed-tensors")["quantization_config"]["ignore"] == []
    assert config_of(tmp_path / "gptq_v2")["quantization_config"]["lm_head"] is True
    with pytest.raises(ValueError, match="layer lm_head: awq leaves the head unquantised"):
        write(model, tmp_path / "awq", "awq")


def test_a_tied_head(tmp_path):
    model = quantized("w4a16-g32", tie_word_embeddings=True)
    assert "lm_head.weight" not in model.tensors
    write(model, tmp_path / "tied", "compressed-tensors")
    assert config_of(tmp_path / "tied")["quantization_config"]["ignore"] == ["lm_head"]
    assert_same(model, read(tmp_path / "tied"))
    head = quantize(model.lm_head.weight, "w4a16-g32")
    untied = model.replace(tensors={"lm_head.weight": head})
    write(untied, tmp_path / "untied", "compressed-tensors")
    assert config_of(tmp_path / "untied")["tie_word_embeddings"] is False
    assert_same(untied, read(tmp_path / "untied"))


def mixed() -> Model:
    """Block 0 in 4 bits, block 1 in 8 and with one Linear left as it is."""
    model = quantized("w4a16-g32")
    changed = {
        f"{name}.weight": quantize(tiny().tensors[f"{name}.weight"], "w8a16-g64-sym", name=name)
        for name in model.linears()
        if ".1." in name
    }
    changed["model.layers.1.mlp.down_proj.weight"] = tiny().tensors["model.layers.1.mlp.down_proj.weight"]
    return model.replace(tensors=changed)


def test_layers_that_differ(tmp_path):
    model = mixed()
    for layout in ("compressed-tensors", "gptq_v2"):
        write(model, tmp_path / layout, layout)
        back = read(tmp_path / layout)
        assert_same(model, back)
        assert back.notes == ()
    config = config_of(tmp_path / "compressed-tensors")["quantization_config"]
    assert config["ignore"] == ["model.layers.1.mlp.down_proj", "lm_head"]
    assert [len(g["targets"]) for g in config["config_groups"].values()] == [7, 6]
    config = config_of(tmp_path / "gptq_v2")["quantization_config"]
    assert (config["bits"], config["group_size"]) == (4, 32)
    assert config["dynamic"][r"-:^model\.layers\.1\.mlp\.down_proj$"] == {}
    assert config["dynamic"][r"+:^model\.layers\.1\.mlp\.up_proj$"] == {"bits": 8, "group_size": 64, "sym": True}
    with pytest.raises(ValueError, match=r"layer model.layers.1.*AWQ holds 4-bit integers: got int8; use layout"):
        write(model, tmp_path / "awq", "awq")


def test_layers_that_engines_fuse(tmp_path):
    assert write(mixed(), tmp_path / "alike", "gptq_v2").notes[-1].startswith("the config's dtype")
    model = quantized("w4a16-g32")
    name = "model.layers.1.mlp.up_proj.weight"
    written = write(model.replace(tensors={name: tiny().tensors[name]}), tmp_path / "apart", "gptq_v2")
    assert "engines fuse q k v and gate up, and want them stored alike (model.layers.1.mlp.up_proj)" in written.notes


@pytest.mark.parametrize(("name", "layout", "words"), [
    ("nvfp4-weight-only", "compressed-tensors", r"vLLM applies the largest stored divisor to all, .* times too small"),
    ("fp8-tensor", "compressed-tensors", r"vLLM requantises all to the largest, which rounds weights twice"),
    ("fp8-tensor", "fp8", r"vLLM requantises all to the largest, which rounds weights twice"),
])  # fmt: skip
def test_tensor_scales_that_engines_would_not_apply_are_noted(tmp_path, name, layout, words):
    model = quantized(name)  # every layer under a scale of its own
    written = write(model, tmp_path / "apart", layout)
    (note,) = [note for note in written.notes if "tensor scales of their own" in note]
    assert re.search(words, note)
    assert "and 3 more groups" in note
    again = convert(tmp_path / "apart", tmp_path / "again", layout)
    assert note in again.notes
    shared = write(with_scheme(tiny(), name), tmp_path / "shared", layout)
    assert not any("tensor scales of their own" in note for note in shared.notes)
    plain = write(model, tmp_path / "plain", "plain", dequantize=True)
    assert not any("tensor scales of their own" in note for note in plain.notes)


def test_activation_scales_that_engines_would_not_apply_are_noted(tmp_path):
    model = quantized("w8a8-tensor-static")
    assert not any("static activation scales" in n for n in write(model, tmp_path / "alike").notes)
    name = "model.layers.1.mlp.up_proj.weight"
    other = replace(model.tensors[name], input_scale=4 * 0.03125)
    written = write(model.replace(tensors={name: other}), tmp_path / "apart")
    assert (
        "layers that engines fuse (q k v, gate up) have static activation scales of their own: vLLM applies one "
        "of them to all, and they differ by a factor of up to 4 (model.layers.1.mlp.gate_proj)"
    ) in written.notes


@pytest.mark.parametrize("name", ["w4a16-g32-sym", "w8a16-g32-sym", "w4a16-g32", "w3a16-g32-sym", "w8a16-g32-asym"])
def test_what_the_fast_kernels_do_not_read_is_noted(tmp_path, name):
    scheme = get_scheme(name)
    notes = [n for n in write(quantized(name), tmp_path / "out", "gptq_v2").notes if "Marlin" in n]
    if scheme.weight.symmetric and scheme.weight.bits in (4, 8):
        assert notes == []
        return
    sym = "true" if scheme.weight.symmetric else "false"
    (note,) = notes
    assert f"these have {scheme.weight.bits} bits with sym={sym} and run on its slower kernels" in note


def test_layers_that_differ_where_one_scheme_is_for_all(tmp_path):
    model = quantized("w4a16-g32")
    name = "model.layers.1.mlp.down_proj"
    other = quantize(tiny().tensors[f"{name}.weight"], "w4a16-g64", name=name)
    model = model.replace(tensors={f"{name}.weight": other})
    with pytest.raises(
        ValueError, match=r"awq has one scheme for all layers: .*q_proj is uint4 in group\(32\), .*down"
    ):
        write(model, tmp_path / "awq", "awq")
    assert list(tmp_path.iterdir()) == []


def test_formats_that_differ(tmp_path):
    model = quantized("w4a16-g32")
    name = "model.layers.1.mlp.down_proj"
    other = quantize(tiny().tensors[f"{name}.weight"], "fp8-rowwise", name=name)
    model = model.replace(tensors={f"{name}.weight": other})
    assert write(model, tmp_path / "out").layout == "compressed-tensors"
    config = config_of(tmp_path / "out")["quantization_config"]
    assert config["format"] == "mixed-precision"
    assert [g["format"] for g in config["config_groups"].values()] == ["pack-quantized", "float-quantized"]
    assert_same(model, read(tmp_path / "out"))


# --- values, settings, files beside -----------------------------------------------------------------------------


def test_values_of_a_quantised_model(tmp_path):
    model = quantized("w4a16-g32")
    with pytest.raises(ValueError, match=r"layer model.layers.0.self_attn.q_proj: plain holds unquantised.*dequantize"):
        write(model, tmp_path / "out", "plain")
    write(model, tmp_path / "out", "plain", dequantize=True)
    back = read(tmp_path / "out")
    for name, tensor in model.tensors.items():
        values = tensor if isinstance(tensor, np.ndarray) else tensor.dequantize()
        np.testing.assert_array_equal(back.tensors[name], values)
    with pytest.raises(ValueError, match="dequantize=True belongs to layout 'plain'"):
        write(model, tmp_path / "other", "gptq", dequantize=True)


def test_an_unquantised_model_has_nothing_to_pack(tmp_path):
    with pytest.raises(ValueError, match="no quantised layer for layout 'gptq'"):
        write(tiny(), tmp_path / "out", "gptq")
    assert list(tmp_path.iterdir()) == []


def test_online_rotations_are_refused(tmp_path):
    model = quantized("w4a16-g32").replace(linear_settings={"*.down_proj": {"input_transform": "hadamard"}})
    with pytest.raises(ValueError, match=r"layer model.layers.0.mlp.down_proj: its input is rotated"):
        write(model, tmp_path / "out")


def test_the_dtype_of_the_config_is_that_of_the_scales(tmp_path):
    written = write(quantized("w4a16-g32"), tmp_path / "out", "awq")
    assert written.notes == ("the config's dtype is float16, not bfloat16: engines cast scales to it",)
    assert config_of(tmp_path / "out")["torch_dtype"] == written.dtype == "float16"
    assert write(quantized("fp8-tensor"), tmp_path / "fp8", "fp8").dtype == "bfloat16"


def test_files_beside_are_copied(tmp_path):
    write(tiny(), tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {}}}))
    for name in ("tokenizer_config.json", "LICENSE", "generation_config.json", "notes.txt", "pytorch_model.bin"):
        (tmp_path / "a" / name).write_text("{}")
    model = quantized("w4a16-g32").replace(path=tmp_path / "a")
    written = write(model, tmp_path / "b", "gptq_v2")
    assert set(written.files) == {
        "LICENSE", "config.json", "generation_config.json", "model.safetensors", "quantize_config.json",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    legacy = json.loads((tmp_path / "b" / "quantize_config.json").read_text())
    assert legacy == config_of(tmp_path / "b")["quantization_config"]


def test_links_beside_are_read_but_not_handed_on(tmp_path):
    """A link to a private file must not become a readable copy in a folder that is published."""
    (tmp_path / "private").write_text("secret")
    write(tiny(), tmp_path / "a")
    (tmp_path / "a" / "LICENSE").write_text("free")
    (tmp_path / "a" / "README.md").symlink_to(tmp_path / "private")
    (tmp_path / "a" / "NOTICE").symlink_to("LICENSE")
    (tmp_path / "a" / "tokenizer_config.json").symlink_to("nowhere")
    (tmp_path / "a" / "vocab.json").symlink_to("vocab.json")
    os.mkfifo(tmp_path / "a" / "merges.txt")
    (tmp_path / "a" / "tokenizer_files").mkdir()
    for written in (write(quantized("w4a16-g32").replace(path=tmp_path / "a"), tmp_path / "b"),
                    convert(tmp_path / "a", tmp_path / "c", "plain")):  # fmt: skip
        assert {p.name for p in written.path.iterdir()} == {"config.json", "model.safetensors", "LICENSE"}
        assert set(written.files) == {p.name for p in written.path.iterdir()}
        assert (
            "not copied, because they are links or no regular files: NOTICE, README.md, merges.txt, "
            "tokenizer_config.json, vocab.json"
        ) in written.notes


def cache(tmp_path, folder):
    """The folder as Hugging Face caches it: every file a blob, the snapshot a folder of links."""
    root = tmp_path / "models--x--y"
    (root / "blobs").mkdir(parents=True)
    snapshot = root / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    for i, path in enumerate(sorted(folder.iterdir())):
        path.rename(root / "blobs" / f"{i:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{i:040x}")
    return snapshot


def test_the_cache_of_hugging_face_is_read_and_its_blobs_are_copied(tmp_path):
    model = quantized("w4a16-g32")
    write(model, tmp_path / "a", shard_bytes=60_000)
    for name in ("LICENSE", "generation_config.json"):
        (tmp_path / "a" / name).write_text("{}")
    snapshot = cache(tmp_path, tmp_path / "a")
    (tmp_path / "private").write_text("secret")
    (snapshot / "README.md").symlink_to(tmp_path / "private")
    (snapshot.parents[1] / "blobs" / "chained").symlink_to(tmp_path / "private")
    (snapshot / "NOTICE").symlink_to("../../blobs/chained")
    assert_same(read(snapshot), model)
    written = convert(snapshot, tmp_path / "b", "gptq_v2")
    assert {"LICENSE", "generation_config.json"} <= set(written.files)
    assert not any(path.is_symlink() for path in written.path.iterdir())
    assert "not copied, because they are links or no regular files: NOTICE, README.md" in written.notes
    assert_same(read(tmp_path / "b"), model)


def test_the_helper_makes_bfloat16_numbers():
    x = np.array([1.0000001, -3.3], np.float32)
    assert (bfloat16(x).view(np.uint32) & 0xFFFF == 0).all()


def test_the_embedded_model(tmp_path):
    """4 bits in groups of 128, in three layouts; its licence and card go with it."""
    model = qsim.models.load("tiny")
    tensors = {
        f"{name}.weight": quantize(one.weight, "w4a16-g128-sym", name=name) for name, one in model.linears().items()
    }
    rounded = model.replace(tensors=tensors)
    tokens = model.tokenizer.encode("def fibonacci(n):\n")
    want = rounded.logits(tokens)
    for layout in ("compressed-tensors", "gptq", "awq"):
        written = write(rounded, tmp_path / layout, layout)
        assert {"tokenizer.json", "LICENSE.python.txt", "README.md"} <= set(written.files)
        back = qsim.models.load(tmp_path / layout)
        np.testing.assert_array_equal(back.logits(back.tokenizer.encode("def fibonacci(n):\n")), want)
    assert written.total_bytes < 0.35 * sum(4 * t.size for t in model.tensors.values())
