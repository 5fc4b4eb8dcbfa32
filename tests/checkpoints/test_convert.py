"""From layout to layout: exact, one layer at a time, and with little memory."""

import subprocess
import sys
import textwrap
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qsim.checkpoints import convert, read, write
from qsim.safetensors import Stored, open_folder
from qsim.scheme import QuantizedTensor

from .test_broken import rewrite
from .tiny import assert_same, config_of, quantized, tiny

ROOT = Path(__file__).parents[2]


def files_of(folder: Path) -> dict[str, tuple[str, bytes]]:
    return {name: (entry.dtype, entry.bits().tobytes()) for name, entry in open_folder(folder).items()}


@pytest.mark.parametrize("target", ["compressed-tensors", "gptq", "gptq_v2", "awq"])
@pytest.mark.parametrize("source", ["compressed-tensors", "gptq_v2", "awq"])
@pytest.mark.parametrize("how", ["sym", "asym"])
def test_integers_from_layout_to_layout(tmp_path, source, target, how):
    """A converted folder is byte for byte the one that is written directly."""
    model = quantized(f"w4a16-g32-{how}")
    if how == "asym":
        changed = {
            n: replace(t, zeros=np.maximum(t.zeros, 1))
            for n, t in model.tensors.items()
            if isinstance(t, QuantizedTensor) and t.zeros is not None
        }
        model = model.replace(tensors=changed)
    write(model, tmp_path / "a", source)
    written = convert(tmp_path / "a", tmp_path / "b", target)
    assert written.layout == target
    assert_same(read(tmp_path / "b"), model)
    write(model, tmp_path / "direct", target)
    assert files_of(tmp_path / "b") == files_of(tmp_path / "direct")
    assert config_of(tmp_path / "b") == config_of(tmp_path / "direct")


def test_fp8_between_its_layouts(tmp_path):
    for name in ("fp8-tensor", "fp8-static", "fp8-block128", "fp8-tensor-kvfp8"):
        write(quantized(name), tmp_path / name / "a", "fp8")
        convert(tmp_path / name / "a", tmp_path / name / "b", "compressed-tensors")
        convert(tmp_path / name / "b", tmp_path / name / "c", "fp8")
        assert files_of(tmp_path / name / "a") == files_of(tmp_path / name / "c")
        assert config_of(tmp_path / name / "a") == config_of(tmp_path / name / "c")


def test_from_file_to_file_nothing_changes(tmp_path):
    for name in ("bf16", "nvfp4-weight-only", "mxfp4", "mxfp8", "w3a16-g32", "w8a8", "w4a8"):
        write(tiny() if name == "bf16" else quantized(name), tmp_path / name / "a")
        convert(tmp_path / name / "a", tmp_path / name / "b", shard_bytes=50_000)
        assert files_of(tmp_path / name / "a") == files_of(tmp_path / name / "b")
        assert config_of(tmp_path / name / "a") == config_of(tmp_path / name / "b")


def test_unquantised_tensors_keep_their_bits(tmp_path):
    """Every dtype, NaN payloads of the KV scales aside, whatever the config's dtype is."""
    write(quantized("w4a16-g32"), tmp_path / "a", "compressed-tensors")
    odd = np.random.default_rng(0).standard_normal(128).astype(np.float32)
    rewrite(tmp_path / "a", lambda t: t.update({"model.norm.weight": Stored(dtype="F32", bits=odd)}))
    convert(tmp_path / "a", tmp_path / "b", "gptq_v2")
    entry = open_folder(tmp_path / "b")["model.norm.weight"]
    assert entry.dtype == "F32"
    np.testing.assert_array_equal(entry.bits(), odd)


def test_config_keys_are_kept(tmp_path):
    write(quantized("w4a16-g32"), tmp_path / "a", "compressed-tensors")
    config = config_of(tmp_path / "a") | {"a_key_of_the_future": [1, 2]}
    import json

    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    written = convert(tmp_path / "a", tmp_path / "b", "awq")
    assert config_of(tmp_path / "b")["a_key_of_the_future"] == [1, 2]
    assert written.notes == ("unknown config keys were ignored: a_key_of_the_future",)


def test_to_values(tmp_path):
    model = quantized("w4a16-g32")
    write(model, tmp_path / "a", "gptq_v2")
    convert(tmp_path / "a", tmp_path / "b", "plain", dequantize=True)
    back = read(tmp_path / "b")
    for name, tensor in model.tensors.items():
        want = tensor.dequantize() if isinstance(tensor, QuantizedTensor) else tensor
        np.testing.assert_array_equal(back.tensors[name], want)


def test_what_the_target_cannot_hold_is_refused_first(tmp_path):
    write(quantized("w3a16-g32"), tmp_path / "a", "gptq_v2")
    seen = []
    with pytest.raises(
        ValueError, match=r"layer model.layers.0.self_attn.q_proj: AWQ holds 4-bit.*'compressed-tensors'"
    ):
        convert(tmp_path / "a", tmp_path / "b", "awq", progress=lambda *step: seen.append(step))
    assert seen == []
    with pytest.raises(ValueError, match="plain holds unquantised weights"):
        convert(tmp_path / "a", tmp_path / "b", "plain")
    assert not (tmp_path / "b").exists()


def test_what_only_the_values_tell_leaves_nothing(tmp_path):
    model = quantized("w4a16-g32")
    name = "model.layers.1.mlp.down_proj.weight"
    broken = replace(model.tensors[name], zeros=model.tensors[name].zeros * 0)
    write(model.replace(tensors={name: broken}), tmp_path / "a", "gptq_v2")
    with pytest.raises(ValueError, match=r"layer model\.layers\..*: GPTQ version 1 stores zero points minus one"):
        convert(tmp_path / "a", tmp_path / "b", "gptq")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_source_and_target_are_apart(tmp_path):
    write(tiny(), tmp_path / "a")
    for target in (tmp_path / "a", tmp_path / "a" / "b", tmp_path):
        with pytest.raises(ValueError, match="must be folders apart"):
            convert(tmp_path / "a", target, overwrite=True)
    assert_same(read(tmp_path / "a"), tiny())


def test_the_divisor_meaning_of_gptqmodel(tmp_path):
    write(quantized("fp8-block128"), tmp_path / "a", "fp8")

    def invert(tensors):
        for name, tensor in tensors.items():
            if name.endswith("weight_scale_inv"):
                tensors[name] = Stored(dtype="F32", bits=np.float32(1) / tensor.bits)

    rewrite(tmp_path / "a", invert)
    with pytest.raises(ValueError, match=r'scale_inv="divide"'):
        read(tmp_path / "a")
    model = read(tmp_path / "a", scale_inv="divide")
    for name, tensor in quantized("fp8-block128").tensors.items():
        if isinstance(tensor, QuantizedTensor):
            np.testing.assert_allclose(model.tensors[name].dequantize(), tensor.dequantize(), rtol=2e-7)
    convert(tmp_path / "a", tmp_path / "b", "compressed-tensors", scale_inv="divide")
    assert_same(read(tmp_path / "b").replace(notes=()), model.replace(notes=()))
    import json

    config = config_of(tmp_path / "a")
    config["quantization_config"] |= {"weight_scale_semantics": "inverse"}
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    assert "weight_scale_inv divides" in read(tmp_path / "a").notes[0]


# --- memory -----------------------------------------------------------------------------------------------------

LARGE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "head_dim": 128}
LARGEST = 512 * 2048  # codes of the largest layer, one byte each
SHARD = 1 << 20


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """46 million weights: 26 MB in 4 bits."""
    folder = tmp_path_factory.mktemp("large")
    model = quantized("w4a16-g32-sym", **LARGE)
    write(model, folder / "gptq", "gptq", shard_bytes=SHARD * 16)
    return folder


@pytest.mark.parametrize("target", ["compressed-tensors", "awq"])
def test_conversion_holds_one_layer_and_one_shard(large, tmp_path, target):
    """At most the codes of the largest layer a few times, and a shard: not the 26 MB of the whole."""
    total = sum(p.stat().st_size for p in (large / "gptq").glob("*.safetensors"))
    tracemalloc.start()
    convert(large / "gptq", tmp_path / "out", target, shard_bytes=SHARD)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total > 20e6
    assert peak < 5 * LARGEST + 2 * SHARD


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the high-water mark is reset through /proc")
def test_resident_memory_of_a_conversion(large, tmp_path):
    """Of the whole process, beyond what its imports took."""
    code = """
        import sys
        from qsim.checkpoints import convert

        def status(key):
            return int(next(x for x in open("/proc/self/status") if x.startswith(key + ":")).split()[1])

        source, warm, target, shard = *sys.argv[1:4], int(sys.argv[4])
        convert(warm, target + "-warm", "compressed-tensors")
        open("/proc/self/clear_refs", "w").write("5")
        before = status("VmRSS")
        convert(source, target, "compressed-tensors", shard_bytes=shard)
        print(status("VmHWM") - before)
    """
    write(quantized("w4a16-g32-sym"), tmp_path / "warm", "gptq")
    arguments = [str(large / "gptq"), str(tmp_path / "warm"), str(tmp_path / "out"), str(SHARD)]
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code), *arguments], cwd=ROOT, text=True,
                            capture_output=True, check=True)  # fmt: skip
    assert int(result.stdout) * 1024 < 5 * LARGEST + 4 * SHARD
