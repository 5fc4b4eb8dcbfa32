"""Files of ours in other libraries, and theirs here: the same values, bit for bit where they round as often."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from qsim.checkpoints import convert, read, write
from qsim.layouts import Fact, compressed, write_plan
from qsim.layouts.compressed_config import compressed_layout
from qsim.layouts.parts import Notes, Parts
from qsim.safetensors import NUMPY_OF, Stored, open_folder
from qsim.scheme import QuantizedTensor, get_scheme, quantize

from .test_layers import random_codes
from .tiny import config_of, quantized, tiny

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]
torch = pytest.importorskip("torch")
ct = pytest.importorskip("compressed_tensors")
transformers = pytest.importorskip("transformers")

_TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn,
          "I32": torch.int32, "I64": torch.int64, "I8": torch.int8, "U8": torch.uint8}  # fmt: skip
_NAMES = {kind: name for name, kind in _TORCH.items()}
_SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}


def to_torch(stored: Stored):
    bits = np.ascontiguousarray(stored.bits)
    signed = torch.from_numpy(bits.view(_SIGNED[bits.itemsize]).reshape(-1).copy())
    return signed.view(_TORCH[stored.dtype]).reshape(bits.shape)


def from_torch(tensor) -> Stored:
    name = _NAMES[tensor.dtype]
    signed = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits = tensor.contiguous().reshape(-1).view(signed).numpy().view(NUMPY_OF[name]).reshape(tuple(tensor.shape))
    return Stored(dtype=name, bits=bits)


def their_scheme(qt: QuantizedTensor):
    """Their QuantizationScheme from the config that we write, and their compressor for its format."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    config = write_plan("compressed-tensors", {"layer": Fact(scheme=qt.scheme)}, [], None, "0")
    parsed = QuantizationConfig.model_validate(config)
    assert parsed.format == compressed_layout(qt.scheme)
    return parsed.config_groups["group_0"], BaseCompressor.get_value_from_registry(parsed.format)


INTEGERS = [
    f"w{bits}a16-{where}-{how}" for bits in range(2, 9) for where in ("g32", "channel") for how in ("sym", "asym")
]
OTHERS = ["w4a16-tensor-sym", "w4a16-tensor-asym", "w8a8", "w8a8-tensor", "w8a8-asym", "w4a8-g32", "fp8-tensor",
          "fp8-static", "fp8-rowwise", "fp8-weight-only", "fp8-block128", "mxfp4", "mxfp6", "mxfp8", "nvfp4",
          "nvfp4-weight-only"]  # fmt: skip


def layer(name: str) -> QuantizedTensor:
    if name in INTEGERS:
        return random_codes(name, 64, 128, seed=7)
    w = (np.random.default_rng(7).standard_normal((64, 128)) * 0.05).astype(np.float32)
    return quantize(w, name, input_scale=0.0625)


@pytest.mark.parametrize("name", [*INTEGERS, *OTHERS])
def test_compressed_tensors_decompresses_our_layers(name):
    """Their `decompress` of what we write gives our values, rounded to the dtype in which they compute."""
    qt = layer(name)
    scheme, compressor = their_scheme(qt)
    ours = {key: to_torch(s) for key, s in compressed.encode(qt).items()}
    theirs = compressor.decompress(dict(ours), scheme)["weight"]
    mine = torch.from_numpy(qt.dequantize())
    if name.startswith("nvfp4"):  # code * (scale / global), rounded to float32 and bfloat16, in place of our order
        other = torch.from_numpy(_nvfp4(qt)).to(theirs.dtype)
        assert torch.equal(theirs, other)
        np.testing.assert_allclose(mine.numpy(), theirs.float().numpy(), rtol=2**-8)
    else:
        assert torch.equal(theirs, mine.to(theirs.dtype))
    names = set(compressor.compression_param_names(scheme)) - {"input_global_scale"}
    assert names <= set(ours)
    assert set(ours) - names <= {"input_scale", "input_global_scale"}


def _nvfp4(qt: QuantizedTensor) -> np.ndarray:
    from qsim.formats import decode

    total = compressed.encode(qt)["weight_global_scale"].bits
    return decode(qt.codes, "float4_e2m1fn", dtype=np.float32) * np.repeat(qt.scales / total, 16, axis=1)


@pytest.mark.parametrize("name", [n for n in [*INTEGERS, *OTHERS] if not n.startswith(("mx", "nvfp4"))])
def test_we_read_layers_that_compressed_tensors_compressed(name):
    """Their `compress` of a weight with our scales and zero points, read by us: the codes that were put in."""
    qt = layer(name)
    scheme, compressor = their_scheme(qt)
    state = {
        "weight": torch.from_numpy(qt.dequantize()),
        "weight_scale": torch.from_numpy(qt.scales),
        "weight_zero_point": torch.zeros(qt.scales.shape, dtype=torch.int8),
    }
    if qt.zeros is not None:
        half = 1 << (qt.element.bits - 1)
        state["weight_zero_point"] = torch.from_numpy((qt.zeros.astype(np.int16) - half).astype(np.int8))
    theirs = {key: from_torch(t) for key, t in compressor.compress(state, scheme).items()}
    mine = compressed.encode(qt)
    for key in ("weight", "weight_packed", "weight_zero_point", "weight_shape"):
        assert (key in theirs) == (key in mine)
        if key in theirs:
            np.testing.assert_array_equal(theirs[key].bits, mine[key].bits, err_msg=key)
    if qt.scheme.activation.is_quantized and not qt.scheme.activation.dynamic:
        theirs["input_scale"] = mine["input_scale"]
    back = compressed.decode(Parts("layer", theirs), qt.scheme, Notes(), fmt=compressed_layout(qt.scheme))
    np.testing.assert_array_equal(back.codes, qt.codes)
    np.testing.assert_array_equal(back.dequantize(), qt.dequantize())


@pytest.mark.parametrize("name", ["mxfp4", "mxfp6", "mxfp8", "nvfp4-weight-only"])
def test_we_read_blocks_that_compressed_tensors_compressed(name):
    """Codes, scales and tensor scale of their own quantiser, whose packed bytes are ours."""
    qt = layer(name)
    scheme, compressor = their_scheme(qt)
    state = {"weight": torch.from_numpy(qt.dequantize()), "weight_scale": torch.from_numpy(qt.scales)}
    mine = compressed.encode(qt)
    if qt.tensor_scale is not None:
        state["weight_global_scale"] = to_torch(mine["weight_global_scale"])
    theirs = {key: from_torch(t) for key, t in compressor.compress(state, scheme).items()}
    assert {k: (s.dtype, s.shape) for k, s in theirs.items()} == {k: (s.dtype, s.shape) for k, s in mine.items()}
    back = compressed.decode(Parts("layer", theirs), qt.scheme, Notes(), fmt=compressed_layout(qt.scheme))
    np.testing.assert_array_equal(back.scales, qt.scales)
    negative_zero = 1 << (qt.element.bits - 1)  # they keep no sign of zero
    same = (back.codes == qt.codes) | (back.codes | negative_zero == qt.codes)
    assert same.all()
    np.testing.assert_array_equal(back.dequantize(), qt.dequantize())


@pytest.mark.parametrize("bits", range(1, 9))
def test_dense_words_are_theirs(bits):
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    from qsim.layouts.words import pack_dense

    codes = np.random.default_rng(bits).integers(0, 1 << bits, (5, 77)).astype(np.uint8)
    half = 1 << (bits - 1)
    theirs = pack_to_int32(torch.from_numpy((codes.astype(np.int16) - half).astype(np.int8)), bits)
    np.testing.assert_array_equal(pack_dense(codes, bits).view(np.int32), theirs.numpy())


# --- whole models -----------------------------------------------------------------------------------------------


def load(folder: Path, **options):
    logging = transformers.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **options).eval()


def assert_same_weights(model, theirs) -> None:
    """Every tensor, in the dtype that transformers chose."""
    state = theirs.state_dict()
    for name, tensor in model.tensors.items():
        if name.endswith(("k_scale", "v_scale")):
            continue
        mine = tensor.dequantize() if isinstance(tensor, QuantizedTensor) else tensor
        assert torch.equal(torch.from_numpy(mine).to(state[name].dtype), state[name]), name


@pytest.mark.parametrize(
    "name",
    ["w4a16-g32", "w4a16-g128-sym", "w3a16-g32", "w8a16-channel", "w8a8", "w4a8-g32", "fp8-rowwise", "fp8-static",
     "fp8-tensor-kvfp8", "fp8-block128", "mxfp4", "mxfp8", "nvfp4-weight-only"],
)  # fmt: skip
def test_transformers_loads_compressed_tensors(tmp_path, name):
    model = quantized(name)
    write(model, tmp_path / "out", "compressed-tensors", shard_bytes=60_000)
    theirs = load(tmp_path / "out", quantization_config=transformers.CompressedTensorsConfig(dequantize=True))
    assert_same_weights(model, theirs)


@pytest.mark.parametrize(("name", "tolerance"), [("w4a16-g32-sym", 1e-2), ("w3a16-g32-sym", 1e-2),
                                                 ("nvfp4-weight-only", 5e-2)])  # fmt: skip
def test_transformers_runs_compressed_tensors(tmp_path, name, tolerance):
    """Loaded compressed, decompressed by their hook: logits within what float16 (bfloat16) activations cost.

    Asymmetric layers load with `dequantize=True` only: compressed-tensors 0.20 makes room for zero points that are not
    packed.
    """
    model = quantized(name)
    write(model, tmp_path / "out", "compressed-tensors")
    theirs, tokens = load(tmp_path / "out"), np.arange(24)
    with torch.no_grad():
        logits = theirs(torch.from_numpy(tokens)[None]).logits[0].float().numpy()
    assert_same_weights(model, theirs)
    np.testing.assert_allclose(model.logits(tokens), logits, atol=tolerance)


def test_transformers_in_float32_agrees_to_float32(tmp_path):
    """INT8 weights with float32 scales in a float32 model: the same values, and logits to 1e-4."""
    model = quantized("w8a16-channel-sym", torch_dtype="float32")
    from dataclasses import replace

    scheme = model.tensors["model.layers.0.mlp.up_proj.weight"].scheme
    part = replace(scheme.weight, scale_format="float32")
    changed = {
        f"{n}.weight": quantize(tiny().tensors[f"{n}.weight"], scheme.replace(weight=part)) for n in model.linears()
    }
    model = model.replace(tensors=changed)
    write(model, tmp_path / "out", "compressed-tensors")
    theirs, tokens = load(tmp_path / "out"), np.arange(24)
    with torch.no_grad():
        logits = theirs(torch.from_numpy(tokens)[None]).logits[0].numpy()
    assert_same_weights(model, theirs)
    np.testing.assert_allclose(model.logits(tokens), logits, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_transformers_loads_fp8_blocks(tmp_path, dtype):
    pytest.importorskip("accelerate")
    model = quantized("fp8-block128")
    write(model, tmp_path / "out", "fp8")
    assert_same_weights(model, load(tmp_path / "out", dtype=getattr(torch, dtype)))


def test_transformers_loads_plain_and_dequantised(tmp_path):
    model = quantized("w4a16-g32")
    write(model, tmp_path / "out", "plain", dequantize=True, shard_bytes=100_000)
    theirs = load(tmp_path / "out", dtype=torch.float32)
    assert_same_weights(model, theirs)
    tokens = np.arange(24)
    with torch.no_grad():
        logits = theirs(torch.from_numpy(tokens)[None]).logits[0].numpy()
    np.testing.assert_allclose(model.logits(tokens), logits, atol=1e-4)


@pytest.mark.parametrize("scheme", ["W4A16", "W4A16_ASYM", "W8A8", "FP8_DYNAMIC", "MXFP4A16", "NVFP4A16"])
def test_we_read_a_model_that_their_compressor_wrote(tmp_path, scheme):
    """Quantised by compressed-tensors' own observers and saved by transformers; read by us with their values."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    write(tiny(), tmp_path / "plain", dtype="float32")
    theirs = load(tmp_path / "plain", dtype=torch.float32)
    config = QuantizationConfig(config_groups={scheme: ["Linear"]}, ignore=["lm_head"])
    apply_quantization_config(theirs, config)
    for module in theirs.modules():
        args = getattr(getattr(module, "quantization_scheme", None), "weights", None)
        if args is None:
            continue
        w = module.weight.data
        size = args.group_size or w.shape[1]
        grouped = w.reshape(w.shape[0], -1, size)
        low, high = grouped.amin(-1), grouped.amax(-1)
        extra = {}
        if hasattr(module, "weight_global_scale"):
            extra["global_scale"] = generate_gparam(low.min().reshape(1), high.max().reshape(1))
            module.weight_global_scale.data = extra["global_scale"]
        scale, zero = calculate_qparams(low, high, args, **extra)
        if scheme.startswith("MXFP4"):
            scale = 2.0 ** (scale.float() - 127)
        module.weight_scale.data = scale.to(module.weight_scale.dtype).reshape(module.weight_scale.shape)
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.data = zero.to(module.weight_zero_point.dtype).reshape(
                module.weight_zero_point.shape
            )
    compressor = ModelCompressor.from_pretrained_model(theirs)
    compressor.compress_model(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    compressor.update_config(tmp_path / "theirs")
    model = read(tmp_path / "theirs")
    assert not [n for n in model.notes if "unknown keys of quantization_config" in n]
    assert all(isinstance(one.weight, QuantizedTensor) for one in model.linears().values())
    compressor.decompress_model(theirs)
    state = theirs.state_dict()
    for name, one in model.linears().items():
        mine, other = torch.from_numpy(one.weight.dequantize()), state[f"{name}.weight"]
        if scheme.startswith("NVFP4"):
            np.testing.assert_allclose(mine.numpy(), other.float().numpy(), rtol=2**-8)
        else:
            assert torch.equal(mine.to(other.dtype), other), name
    written = convert(tmp_path / "theirs", tmp_path / "again", "compressed-tensors")
    assert written.layout == "compressed-tensors"
    a, b = open_folder(tmp_path / "theirs"), open_folder(tmp_path / "again")
    assert {n: (e.dtype, e.bits().tobytes()) for n, e in a.items()} == {
        n: (e.dtype, e.bits().tobytes()) for n, e in b.items()
    }


def test_their_converter_reads_our_awq(tmp_path):
    """compressed-tensors' own AWQ converter and ours give the same packed tensors."""
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter

    model = quantized("w4a16-g32")
    write(model, tmp_path / "awq", "awq")
    config = config_of(tmp_path / "awq")["quantization_config"]
    converter = AutoAWQConverter.from_autoawq_config(config | {"modules_to_not_convert": None})
    tensors = {n: to_torch(Stored(dtype=e.dtype, bits=e.bits())) for n, e in open_folder(tmp_path / "awq").items()}
    theirs = converter.process(tensors)
    convert(tmp_path / "awq", tmp_path / "ct", "compressed-tensors")
    mine = open_folder(tmp_path / "ct")
    assert set(theirs) == set(mine)
    for name, entry in mine.items():
        assert torch.equal(theirs[name], to_torch(Stored(dtype=entry.dtype, bits=entry.bits()))), name


def test_their_converter_reads_our_fp8_blocks(tmp_path):
    from compressed_tensors.entrypoints.convert.converters.fp8block_dequantizer import FP8BlockDequantizer

    model = quantized("fp8-block128", intermediate_size=320)  # ragged blocks
    written = write(model, tmp_path / "fp8", "fp8")
    assert "blocks at the edge are smaller" in written.notes[0]
    tensors = {n: to_torch(Stored(dtype=e.dtype, bits=e.bits())) for n, e in open_folder(tmp_path / "fp8").items()}
    names = [name for name, t in model.tensors.items() if isinstance(t, QuantizedTensor)]
    converter = FP8BlockDequantizer(targets=[n.removesuffix(".weight") for n in names], weight_block_size=[128, 128],
                                    dtype=torch.float32)  # fmt: skip
    theirs = converter.process(tensors)
    for name in names:
        np.testing.assert_array_equal(theirs[name].numpy(), model.tensors[name].dequantize())


def test_gptq_by_the_formula_of_autogptq(tmp_path):
    """AutoGPTQ's own unpacking, written out in torch, of 2, 4 and 8 bits in version 1."""
    for bits in (2, 4, 8):
        model = quantized(f"w{bits}a16-g32-sym")
        write(model, tmp_path / str(bits), "gptq")
        files = open_folder(tmp_path / str(bits))
        shifts = torch.arange(0, 32, bits, dtype=torch.int32)
        mask = (1 << bits) - 1
        for name, tensor in model.tensors.items():
            if not isinstance(tensor, QuantizedTensor):
                continue
            at = name.removesuffix(".weight")
            get = {k: to_torch(Stored(dtype=files[f"{at}.{k}"].dtype, bits=files[f"{at}.{k}"].bits()))
                   for k in ("qweight", "qzeros", "scales", "g_idx")}  # fmt: skip
            zeros = (get["qzeros"][:, :, None] >> shifts[None, None, :]) & mask
            zeros = (zeros + 1).reshape(get["scales"].shape)
            weight = (get["qweight"][:, None, :] >> shifts[None, :, None]) & mask
            weight = weight.reshape(-1, weight.shape[-1])
            index = get["g_idx"].long()
            values = get["scales"].float()[index] * (weight - zeros[index])
            np.testing.assert_array_equal(values.T.numpy(), tensor.dequantize())


def test_transformers_takes_the_configs_it_has_no_kernels_for():
    """GPTQ and AWQ need a GPU there: their config classes take ours, and ours takes what they save."""
    from transformers.utils import quantization_config as theirs

    from qsim.layouts import read_plan

    for name, layout, kind in (
        ("w4a16-g128", "gptq", theirs.GPTQConfig), ("w8a16-channel-sym", "gptq_v2", theirs.GPTQConfig),
        ("w4a16-g128", "awq", theirs.AwqConfig), ("w4a16-g64-sym", "awq", theirs.AwqConfig),
        ("fp8-block128", "fp8", theirs.FineGrainedFP8Config),
    ):  # fmt: skip
        scheme = get_scheme(name)
        config = write_plan(layout, {"layer": Fact(scheme=scheme)}, ["lm_head"], None, "0")
        saved = json.loads(kind.from_dict(dict(config)).to_json_string(use_diff=False))
        notes = Notes()
        assert read_plan(saved, notes).layer("layer").scheme == scheme
        assert notes.lines() == ()


def test_the_library_reads_every_file(tmp_path):
    from safetensors.torch import load_file

    for i, (name, layout) in enumerate([("w4a16-g32", "awq"), ("fp8-tensor", "fp8"), ("nvfp4-weight-only", "auto")]):
        written = write(quantized(name), tmp_path / str(i), layout, shard_bytes=50_000)
        shards = [f for f in written.files if f.endswith(".safetensors")]
        index = json.loads((tmp_path / str(i) / "model.safetensors.index.json").read_text())
        total = 0
        for shard in shards:
            for key, tensor in load_file(tmp_path / str(i) / shard).items():
                assert index["weight_map"][key] == shard
                total += tensor.numel() * tensor.element_size()
        assert total == index["metadata"]["total_size"]
    assert get_scheme("fp8-tensor").weight.is_quantized
