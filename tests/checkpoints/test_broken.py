"""What is broken in a checkpoint is named; old spellings and unknown keys are read and said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from qsim.checkpoints import convert, read, write
from qsim.errors import QsimError
from qsim.models import load
from qsim.safetensors import INDEX, Stored, exactly, open_folder, write_file

from .tiny import assert_same, config_of, quantized, tiny


@pytest.fixture
def folder(tmp_path):
    write(quantized("w4a16-g32"), tmp_path / "model", "gptq_v2", shard_bytes=60_000)
    return tmp_path / "model"


def edit(folder: Path, change) -> None:
    config = config_of(folder)
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))


def rewrite(folder: Path, change) -> None:
    """Change the tensors of a folder, as one file."""
    tensors = {name: Stored(dtype=e.dtype, bits=e.bits()) for name, e in open_folder(folder).items()}
    for path in [*folder.glob("*.safetensors"), folder / INDEX]:
        path.unlink(missing_ok=True)
    change(tensors)
    write_file(folder / "model.safetensors", tensors)


def test_a_truncated_shard(folder):
    shard = sorted(folder.glob("*.safetensors"))[1]
    data = shard.read_bytes()
    for size in (4, 40, len(data) // 2, len(data) - 1):
        shard.write_bytes(data[:size])
        with pytest.raises(ValueError, match=shard.name):
            read(folder)


def test_a_shard_that_is_missing(folder):
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ValueError, match=rf"{shard.name} is missing: .* places tensor model\."):
        read(folder)


Q = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (f"{Q}.qzeros", rf"model.safetensors: tensor {Q}.qzeros is missing; there are g_idx, qweight, scales"),
        (f"{Q}.scales", rf"model.safetensors: tensor {Q}.scales is missing"),
        (f"{Q}.qweight", rf"has no tensor {Q}.qweight or {Q}.weight, \(256, 128\) by config.json"),
        ("model.norm.weight", r"has no tensor model.norm.weight, \(128,\) by config.json"),
    ],
)
def test_a_tensor_that_is_missing(folder, key, words):
    rewrite(folder, lambda tensors: tensors.pop(key))
    with pytest.raises(ValueError, match=words):
        read(folder)


def test_a_tensor_of_the_wrong_shape(folder):
    def shorten(tensors):
        for last in ("qweight", "qzeros", "scales"):
            part = tensors[f"{Q}.{last}"]
            columns = part.shape[1] // 2
            tensors[f"{Q}.{last}"] = Stored(dtype=part.dtype, bits=np.ascontiguousarray(part.bits[:, :columns]))

    rewrite(folder, shorten)
    with pytest.raises(ValueError, match=rf"tensor {Q}\.\w+ holds a weight \(128, 128\), \(256, 128\) by config.json"):
        read(folder)


def test_a_quantised_tensor_where_none_belongs(folder):
    def move(tensors):
        for last in ("qweight", "qzeros", "scales", "g_idx"):
            tensors[f"model.norm.{last}"] = tensors[f"{Q}.{last}"]

    rewrite(folder, move)
    with pytest.raises(ValueError, match=r"tensor model.norm.\w+ belongs to no Linear of llama"):
        read(folder)


def test_an_fp8_weight_without_a_scale(tmp_path):
    write(quantized("fp8-tensor"), tmp_path / "out", "fp8")
    rewrite(tmp_path / "out", lambda tensors: tensors.pop(f"{Q}.weight_scale"))
    with pytest.raises(ValueError, match=rf"tensor {Q}.weight is F8_E4M3, but {Q}.weight_scale is missing"):
        read(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bits": 5}, "GPTQ holds 2, 3, 4, 8 bits: got bits=5"),
        ({"checkpoint_format": "marlin"}, "formats gptq and gptq_v2: got 'marlin'"),
        ({"is_marlin_format": True}, "got 'marlin'"),
        ({"pack_dtype": "int16"}, "pack_dtype int32: got 'int16'"),
        (
            {"quant_method": "bitsandbytes"},
            "quant_method must be one of compressed-tensors, gptq, awq, fp8: got 'bit",
        ),
        ({"quant_method": "awq", "version": "gemv"}, "read in version gemm: got 'gemv'"),
        ({"quant_method": "awq", "bits": 8}, "AWQ holds 4 bits: got bits=8"),
        ({"quant_method": "compressed-tensors"}, "config_groups is missing"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "codes float8_e4m3fn: got 'e5m2'"),
    ],
)
def test_a_config_that_is_not_read(folder, change, words):
    edit(folder, lambda config: config.update(change))
    with pytest.raises(ValueError, match=rf"config.json: .*{words}"):
        read(folder)


def test_a_config_without_a_key(folder):
    edit(folder, lambda config: config.pop("group_size"))
    with pytest.raises(ValueError, match="config.json.*group_size is missing"):
        read(folder)


def test_unknown_keys_are_listed_once(folder):
    edit(folder, lambda config: config.update(colour="blue", a_key_of_the_future={"x": 1}))
    back = read(folder)
    assert back.notes == ("unknown keys of quantization_config (gptq) were ignored: a_key_of_the_future, colour",)
    assert_same(back.replace(notes=()), quantized("w4a16-g32"))


def test_no_config_for_quantised_tensors(folder):
    config = config_of(folder)
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    assert_same(read(folder), quantized("w4a16-g32"))  # the legacy file beside says it
    (folder / "quantize_config.json").unlink()
    with pytest.raises(ValueError, match="belongs to a quantised checkpoint, but config.json has no quantization_con"):
        read(folder)


def test_legacy_configs(tmp_path):
    write(quantized("w4a16-g32"), tmp_path / "awq", "awq")
    config = config_of(tmp_path / "awq")
    del config["quantization_config"]
    (tmp_path / "awq" / "config.json").write_text(json.dumps(config))
    legacy = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
    (tmp_path / "awq" / "quant_config.json").write_text(json.dumps(legacy))
    assert_same(read(tmp_path / "awq"), quantized("w4a16-g32"))

    write(quantized("w4a16-g32-sym"), tmp_path / "gptq", "gptq")
    config = config_of(tmp_path / "gptq")
    del config["quantization_config"]
    (tmp_path / "gptq" / "config.json").write_text(json.dumps(config))
    legacy = {"bits": 4, "group_size": 32, "damp_percent": 0.01, "desc_act": False, "sym": True,
              "true_sequential": True, "model_name_or_path": None, "model_file_base_name": None}  # fmt: skip
    (tmp_path / "gptq" / "quantize_config.json").write_text(json.dumps(legacy))
    assert_same(read(tmp_path / "gptq"), quantized("w4a16-g32-sym"))


@pytest.mark.parametrize("name", ["w4a16-g32-sym", "w4a16-g32", "w8a8", "fp8-rowwise", "w8a8-tensor-static"])
@pytest.mark.parametrize("status", ["frozen", "calibration"])
def test_floats_beside_their_scales_are_rounded_with_these(tmp_path, name, status):
    """A checkpoint that was calibrated but not compressed: float weights, scales and zero points, status frozen."""
    model = quantized(name)
    write(model, tmp_path / "out", "compressed-tensors")
    edit(tmp_path / "out", lambda config: config.update(quantization_status=status))
    originals = tiny().tensors
    half = 1 << (model.tensors[f"{Q}.weight"].element.bits - 1)

    def thaw(tensors):
        for layer in model.linears():
            for last in ("weight", "weight_packed", "weight_shape", "weight_zero_point"):
                tensors.pop(f"{layer}.{last}", None)
            tensors[f"{layer}.weight"] = exactly(originals[f"{layer}.weight"], "bfloat16")
            zeros = model.tensors[f"{layer}.weight"].zeros
            if zeros is not None:
                signed = (zeros.astype(np.int16) - half).astype(np.int8)
                tensors[f"{layer}.weight_zero_point"] = Stored(dtype="I8", bits=signed)

    rewrite(tmp_path / "out", thaw)
    back = read(tmp_path / "out")
    assert len(back.notes) == 1
    assert back.notes[0].startswith("weights are stored as floats beside their scales: rounded with these")
    for layer in model.linears():
        got, written = back.tensors[f"{layer}.weight"], model.tensors[f"{layer}.weight"]
        assert got.scheme == written.scheme
        np.testing.assert_array_equal(got.scales, written.scales)
        if name == "fp8-rowwise":
            np.testing.assert_array_equal(got.codes, written.codes)
            continue
        # `_quantize` of compressed-tensors: round(clamp(x / scale + zero_point)) in signed integers
        columns = written.tensor_scheme.group_size
        scales = written.scales if columns is None else np.repeat(written.scales, columns, axis=1)
        zeros = np.float32(0)
        if written.zeros is not None:
            zeros = np.repeat(written.zeros.astype(np.float32) - np.float32(half), columns, axis=1)
        want = np.rint(np.clip(originals[f"{layer}.weight"] / scales + zeros, -half, half - 1)).astype(np.int32)
        found = got.integers.astype(np.int32) - (0 if written.zeros is None else half)
        np.testing.assert_array_equal(found, want)


def test_codes_that_are_not_packed_as_the_format_says(tmp_path):
    """One to a byte under pack-quantized, and packed under int-quantized: read as they are stored."""
    for name, other in (("w4a16-g32", "int-quantized"), ("w8a8", "pack-quantized")):
        model = quantized(name)
        write(model, tmp_path / name, "compressed-tensors")
        edit(tmp_path / name, lambda config, other=other: config.update(format=other))
        assert_same(read(tmp_path / name), model)


def test_scales_that_were_never_found_are_refused(tmp_path):
    write(quantized("w8a8"), tmp_path / "out", "compressed-tensors")

    def thaw(tensors):
        tensors[f"{Q}.weight"] = exactly(tiny().tensors[f"{Q}.weight"], "bfloat16")
        tensors[f"{Q}.weight_scale"] = Stored(dtype="F32", bits=np.zeros((256, 1), np.float32))

    rewrite(tmp_path / "out", thaw)
    with pytest.raises(QsimError, match=rf"tensor {Q}.weight_scale must be positive to round the stored weight with"):
        read(tmp_path / "out")


@pytest.mark.parametrize("method", [True, False])
def test_the_older_key_of_compressed_tensors(tmp_path, method):
    model = quantized("w4a16-g32")
    write(model, tmp_path / "out", "compressed-tensors")
    config = config_of(tmp_path / "out")
    config["compression_config"] = config.pop("quantization_config")
    if not method:
        del config["compression_config"]["quant_method"]
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    assert_same(read(tmp_path / "out"), model)
    assert read(tmp_path / "out").notes == ()
    assert_same(load(tmp_path / "out"), model)
    written = convert(tmp_path / "out", tmp_path / "other", "gptq_v2")
    assert written.layout == "gptq_v2"
    assert "compression_config" not in config_of(tmp_path / "other")
    assert_same(read(tmp_path / "other"), model)


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
@pytest.mark.parametrize("value", [3, [], "gptq", True])
def test_a_quantization_config_that_is_no_object(folder, key, value):
    config = config_of(folder)
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    for reader in (read, load):
        with pytest.raises(QsimError, match=f"config.json: {key} must hold a table of named values: got"):
            reader(folder)


def test_configs_that_are_nested_too_deeply(folder):
    deep = "[" * 100_000 + "]" * 100_000
    config = json.dumps(config_of(folder))
    (folder / "config.json").write_text(config[:-1] + f', "x": {deep}}}')
    with pytest.raises(QsimError, match="config.json is nested too deeply"):
        read(folder)
    plain = json.loads(config)
    del plain["quantization_config"]
    (folder / "config.json").write_text(json.dumps(plain))
    broken = {f'{{"bits": {deep}}}': "is nested too deeply", "[]": "is not a JSON object", "": "is not JSON"}
    for text, words in broken.items():
        (folder / "quantize_config.json").write_text(text)
        with pytest.raises(QsimError, match=f"quantize_config.json {words}"):
            read(folder)


def test_a_quantised_embedding_is_named(tmp_path):
    write(quantized("w8a8"), tmp_path / "out", "compressed-tensors")
    name = "model.embed_tokens"

    def quantise(tensors):
        tensors[f"{name}.weight"] = Stored(dtype="I8", bits=np.zeros((64, 128), np.int8))
        tensors[f"{name}.weight_scale"] = Stored(dtype="F32", bits=np.ones((64, 1), np.float32))

    rewrite(tmp_path / "out", quantise)
    words = (
        rf"tensor {name}.\w+ is of the embedding, stored quantised: only weights of Linears .*store {name}.weight as"
    )
    with pytest.raises(QsimError, match=words):
        read(tmp_path / "out")


def test_stored_and_configured_differ(folder):
    """The tensors decide, and the difference is noted."""
    edit(folder, lambda config: config.update(dynamic={rf"-:{Q}": {}}))
    assert read(folder).notes == (
        f"the config leaves layers unquantised that are stored quantised: read as stored ({Q})",
    )

    def unpack(tensors):
        for last in ("qweight", "qzeros", "scales", "g_idx"):
            del tensors[f"{Q}.{last}"]
        tensors[f"{Q}.weight"] = exactly(tiny().tensors[f"{Q}.weight"], "bfloat16")

    rewrite(folder, unpack)
    assert read(folder).notes == ()
    edit(folder, lambda config: config.pop("dynamic"))
    assert read(folder).notes == (f"the config quantises layers that are stored unquantised: read as stored ({Q})",)


def test_biases_of_autogptq_and_other_extras(folder):
    def add(tensors):
        tensors[f"{Q}.bias"] = Stored(dtype="F16", bits=np.zeros(256, np.float16))
        tensors["model.rotary_emb.inv_freq"] = Stored(dtype="F32", bits=np.ones(16, np.float32))

    rewrite(folder, add)
    assert read(folder).notes == (
        f"a bias that the architecture does not have is 0 and was not used ({Q}.bias)",
        "tensors that the architecture does not have were not used: model.rotary_emb.inv_freq",
    )


@pytest.mark.parametrize("spelling", ["{0}.{1}_scale", "{0}.attn.{1}_scale", "{0}.{1}_proj.output_scale",
                                      "{0}.{1}_proj.{1}_scale", "{0}.kv_scale"])  # fmt: skip
def test_names_that_kv_scales_have_had(tmp_path, spelling):
    write(quantized("fp8-tensor-kvfp8"), tmp_path / "out", "fp8")

    def add(tensors):
        for i in range(2):
            for which in "kv":
                name = spelling.format(f"model.layers.{i}.self_attn", which)
                tensors[name] = Stored(dtype="F32", bits=np.array(0.5, np.float32))

    rewrite(tmp_path / "out", add)
    back = read(tmp_path / "out")
    assert back.notes == ()
    assert all(back.tensors[f"model.layers.{i}.self_attn.{w}_scale"] == 0.5 for i in range(2) for w in "kv")


def test_kv_scales_without_a_scheme(tmp_path):
    write(quantized("fp8-tensor"), tmp_path / "out", "fp8")
    name = "model.layers.0.self_attn.k_scale"
    rewrite(tmp_path / "out", lambda t: t.update({name: Stored(dtype="F32", bits=np.array([0.5], np.float32))}))
    back = read(tmp_path / "out")
    assert back.kv_cache is None
    assert back.notes == (
        f"KV scales are stored, but the config does not quantise the KV cache: they are not used ({name})",
    )


def test_a_path_that_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist"):
        read(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="a.txt is a file"):
        read(tmp_path / "a.txt")
    with pytest.raises(ValueError, match="has no config.json"):
        read(tmp_path)
    write(tiny(), tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickles are never read"):
        read(tmp_path / "pickled")
    shutil.rmtree(tmp_path / "pickled")
