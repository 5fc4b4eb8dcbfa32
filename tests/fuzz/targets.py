"""What is fuzzed: every place where a file or an array of a user becomes a value.

A target takes an example and a folder of its own. It may return, or raise QsimError; anything else is a fault.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from hypothesis import strategies as st

import hwmodels
import qsim
from qsim.errors import QsimError
from qsim.models import ModelConfig

from ..checkpoints.tiny import tiny
from ..models.small import CONFIGS
from . import nasty
from .of_arrays import (
    FORMATS,
    SCHEMES,
    try_blocks,
    try_decode,
    try_encode,
    try_gptq,
    try_linear,
    try_matmul,
    try_quantize,
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """One way in.

    Attributes:
        name: of the test.
        examples: strategy of what is given.
        use: gives it to the project; (example, folder).
        names_file: whether a refusal must name the file that was written, by its name.
        share: how many of the examples of a run it gets, beside 1.0 for the others.
    """

    name: str
    examples: st.SearchStrategy[Any]
    use: Callable[[Any, Path], object]
    names_file: str = ""
    share: float = 1.0


# --- model configs --------------------------------------------------------------------------------------------

_CONFIG_KEYS = (
    "rope_scaling", "rope_theta", "sliding_window", "num_experts", "num_local_experts", "n_embd", "head_dim",
    "layer_types", "quantization_config", "text_config", "kv_lora_rank", "tie_word_embeddings", "model_type",
)  # fmt: skip
_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
_MIXTURE = {
    "model_type": "mixtral", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2,
    "vocab_size": 96, "max_position_embeddings": 64,
}  # fmt: skip
_LATENT = {
    "model_type": "deepseek_v3", "hidden_size": 128, "intermediate_size": 256, "moe_intermediate_size": 64,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": 48,
    "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "n_routed_experts": 8, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "first_k_dense_replace": 1, "vocab_size": 96, "max_position_embeddings": 64,
}  # fmt: skip
_CONFIGS = [*CONFIGS.values(), {**CONFIGS["llama"], "rope_scaling": _ROPE}, _MIXTURE, _LATENT]


def _price(data: bytes, folder: Path) -> None:
    path = folder / "config.json"
    path.write_bytes(data)
    arch = hwmodels.get_architecture(str(path))
    assert 0 <= arch.active_parameters <= arch.parameters
    p = hwmodels.predict("h100-sxm", arch, "bf16", "decode", 2, 128)
    assert 0 < float(p.low_s) <= float(p.time_s) <= float(p.high_s)


def _model_config(config: Any, _folder: Path) -> None:
    ModelConfig.from_dict(config)


# --- checkpoints ----------------------------------------------------------------------------------------------

_HEADER = {
    "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "c": {"dtype": "F8_E4M3", "shape": [0, 7], "data_offsets": [32, 32]},
    "__metadata__": {"format": "pt"},
}
_INDEX = {"metadata": {"total_size": 32}, "weight_map": {"a.weight": "s.safetensors", "b": "s.safetensors"}}


def _load(folder: Path) -> None:
    qsim.models.load(folder)


def _file(data: bytes, folder: Path) -> None:
    from qsim.safetensors import open_file

    (folder / "model.safetensors").write_bytes(data)
    for entry in open_file(folder / "model.safetensors").values():
        entry.bits()


@cache
def _gguf_file() -> bytes:
    """A small model as a GGUF file, its header first."""
    import tempfile

    from qsim.checkpoints import write
    from qsim.models import load

    model = tiny(num_hidden_layers=1, vocab_size=256).replace(tokenizer=load("tiny").tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        write(model, Path(folder) / "a.gguf", "gguf", tensor_type="q8_0")
        return (Path(folder) / "a.gguf").read_bytes()


def _gguf(data: bytes, folder: Path) -> None:
    (folder / "model.gguf").write_bytes(data)
    _load(folder / "model.gguf")


@st.composite
def _gguf_files(draw: Any) -> bytes:
    """The file with some bytes changed, most in its header, or cut."""
    data = bytearray(_gguf_file())
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, 6000 if draw(st.integers(0, 3)) else len(data) - 1))
        new = draw(st.one_of(st.binary(min_size=1, max_size=9), st.sampled_from(
            [bytes(8), bytes([255]) * 8, (1 << 40).to_bytes(8, "little"), (8).to_bytes(4, "little")])))  # fmt: skip
        data[at : at + len(new)] = new
    return bytes(data[: draw(st.integers(0, len(data)))] if not draw(st.integers(0, 4)) else data)


def _index(data: bytes, folder: Path) -> None:
    from qsim.safetensors import open_folder

    text = json.dumps({k: v for k, v in _HEADER.items() if k in ("a.weight", "b")}).encode()
    (folder / "s.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(32))
    (folder / "model.safetensors.index.json").write_bytes(data)
    for entry in open_folder(folder).values():
        entry.bits()


@cache
def _quantised(layout: str) -> dict[str, bytes]:
    """The files of a small quantised checkpoint of a layout."""
    import tempfile

    from qsim.algorithms import quantize_model
    from qsim.checkpoints import write

    scheme = {
        "gptq": "w4a16-g64-sym",
        "awq": "w4a16-g64",
        "compressed-tensors": "w8a8-channel-token",
        "fp8": "fp8-tensor",
    }
    model = tiny(num_hidden_layers=1, vocab_size=64)
    method = "fp8" if layout == "fp8" else "rtn"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        write(quantize_model(model, method, scheme[layout]).model, out, layout)
        return {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}


def _quantisation_config(example: tuple[str, Any], folder: Path) -> None:
    layout, change = example
    for name, data in _quantised(layout).items():
        (folder / name).write_bytes(data)
    config = json.loads(_quantised(layout)["config.json"])
    config["quantization_config"] = change
    (folder / "config.json").write_text(json.dumps(config))
    _load(folder)


@st.composite
def _quantisation_configs(draw: Any) -> tuple[str, Any]:
    layout = draw(st.sampled_from(("gptq", "awq", "compressed-tensors", "fp8")))
    base = json.loads(_quantised(layout)["config.json"])["quantization_config"]
    keys = (
        "bits", "group_size", "desc_act", "dynamic", "modules_to_not_convert", "ignore", "config_groups", "targets",
        "weights", "quantization_status", "format", "kv_cache_scheme", "weight_block_size", "quant_method",
    )  # fmt: skip
    return layout, draw(nasty.trees(base, keys))


def _weights_of_quantised(example: tuple[str, bytes], folder: Path) -> None:
    layout, data = example
    for name, whole in _quantised(layout).items():
        (folder / name).write_bytes(whole)
    (folder / "model.safetensors").write_bytes(data)
    _load(folder)


@st.composite
def _quantised_headers(draw: Any) -> tuple[str, bytes]:
    layout = draw(st.sampled_from(("gptq", "awq", "compressed-tensors", "fp8")))
    raw = _quantised(layout)["model.safetensors"]
    size = int.from_bytes(raw[:8], "little")
    return layout, draw(nasty.safetensors(json.loads(raw[8 : 8 + size]), raw[8 + size :]))


def _tokenizer(data: bytes, folder: Path) -> None:
    from qsim.models.tokenizer import load_tokenizer

    (folder / "tokenizer.json").write_bytes(data)
    load_tokenizer(folder)


@cache
def _tokenizer_tree() -> Any:
    from qsim.models.tokenizer import byte_vocabulary

    return {"version": "1.0", "model": {"type": "BPE", "vocab": dict(list(byte_vocabulary().items())[:8]),
                                        "merges": []}, "added_tokens": []}  # fmt: skip


# --- devices, schemes, studies --------------------------------------------------------------------------------


@cache
def _device_tree() -> Any:
    text = (resources.files("hwmodels") / "devices" / "asic.toml").read_text(encoding="utf-8")
    return {k: v for k, v in tomllib.loads(text).items() if k != "sources"}


def _toml(tree: Any) -> bytes:
    """A table as TOML; what TOML cannot hold is left out."""
    try:
        return tomli_w.dumps(tree).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError, AttributeError, OverflowError):
        return repr(tree).encode("utf-8", "surrogatepass")


def _device(tree: Any, folder: Path) -> None:
    path = folder / "chip.toml"
    path.write_bytes(_toml(tree))
    device = hwmodels.get_device(str(path))
    p = hwmodels.predict(device, "llama-3.2-1b", "bf16", "decode", 1, 128)
    assert 0 < float(p.low_s) <= float(p.time_s) <= float(p.high_s)


def _overrides(example: tuple[str, Any], _folder: Path) -> None:
    key, value = example
    hwmodels.get_device("asic", {key: value})


def _set_text(text: str, _folder: Path) -> None:
    hwmodels.get_device("asic", [text])


def _predict(example: dict[str, Any], _folder: Path) -> None:
    p = hwmodels.predict(example["device"], "llama-3.2-1b", example["scheme"], example["phase"], example["batch"],
                         example["context"])  # fmt: skip
    time = np.asarray(p.time_s, dtype=float)
    assert time.size == 0 or bool(np.all((np.asarray(p.low_s) <= time) & (time <= np.asarray(p.high_s))))


def _scheme_config(config: Any, _folder: Path) -> None:
    from qsim.layouts import from_config

    from_config(config)


def _scheme_toml(tree: Any, _folder: Path) -> None:
    try:
        text = tomli_w.dumps(tree)
    except (TypeError, ValueError, AttributeError, OverflowError):
        return
    qsim.Scheme.from_toml(text)


@cache
def _scheme_tree() -> Any:
    return tomllib.loads(qsim.get_scheme("w4a16-g128").to_toml())


def _study(tree: Any, folder: Path) -> None:
    from qsim.study.study_file import read_spec

    (folder / "study.toml").write_bytes(_toml(tree))
    read_spec(folder / "study.toml")


_STUDY = {
    "title": "x", "methods": ["rtn:w4a16-g128", {"algorithm": "gptq", "scheme": "w4a16-g128"}],
    "cases": [{"name": "chat", "phase": "decode", "batch": 4, "context": 512}],
    "quality": {"model": "tiny", "max_bytes": 4096},
    "speed": {"devices": [{"name": "h100-sxm", "set": {"memory.bandwidth_gbytes_per_s": 3000}}]},
}  # fmt: skip


def _timings(text: bytes, folder: Path) -> None:
    path = folder / "timings.csv"
    path.write_bytes(text)
    hwmodels.fit(path, "h100-sxm")


@st.composite
def _timing_tables(draw: Any) -> bytes:
    rows = [["kernel", "m", "n", "k", "latency_s"]]
    rows += [["bf16", str(m), "4096", "4096", f"{1e-5 * (1 + m / 64):.3g}"] for m in range(1, 900, 80)]
    for _ in range(draw(st.integers(0, 4))):
        row = draw(st.integers(0, len(rows) - 1))
        column = draw(st.integers(0, len(rows[row]) - 1)) if rows[row] else 0
        what = draw(st.sampled_from(("set", "drop", "row")))
        if what == "set" and rows[row]:
            rows[row][column] = str(draw(nasty.values()))[:80]
        elif what == "drop" and rows[row]:
            rows[row].pop(column)
        else:
            rows.insert(row, list(rows[row]))
    text = "\n".join(",".join(row) for row in rows).encode("utf-8", "surrogatepass")
    return text if draw(st.integers(0, 4)) else draw(nasty.damaged(text))


def _names(text: Any, _folder: Path) -> None:
    """Every look-up of a name; each must refuse by itself."""
    from qsim.models import load

    refusals = []
    for look in (qsim.get_scheme, qsim.get_format, hwmodels.get_device, hwmodels.get_architecture, load):
        try:
            look(text)
        except QsimError as error:
            refusals.append(error)
    for error in refusals:
        check_sentence(str(error))
    if refusals:
        raise refusals[0]


def check_sentence(text: str) -> None:
    """A refusal is one line of reasonable length."""
    assert text.strip(), "an empty refusal"
    assert "\n" not in text, text
    assert len(text) < 900, text


_WIDE = nasty.arrays()
TARGETS: tuple[Target, ...] = (
    Target(name="config-priced", names_file="config.json", use=_price,
           examples=st.sampled_from(_CONFIGS).flatmap(lambda c: nasty.json_texts(c, _CONFIG_KEYS)), share=2.0),
    Target(name="config-run", use=_model_config,
           examples=st.sampled_from(_CONFIGS[:-2]).flatmap(lambda c: nasty.trees(c, _CONFIG_KEYS)), share=2.0),
    Target(name="safetensors", names_file="model.safetensors", use=_file,
           examples=nasty.safetensors(_HEADER, bytes(32))),
    Target(name="gguf", use=_gguf, examples=st.deferred(_gguf_files), names_file="model.gguf"),
    Target(name="index", use=_index, examples=nasty.json_texts(_INDEX, ("metadata", "weight_map"))),
    Target(name="quantisation-config", use=_quantisation_config, examples=_quantisation_configs(), share=2.0),
    Target(name="quantised-weights", use=_weights_of_quantised, examples=_quantised_headers()),
    Target(name="tokenizer", use=_tokenizer, names_file="tokenizer.json",
           examples=st.deferred(lambda: nasty.json_texts(_tokenizer_tree(), ("model", "vocab", "merges")))),
    Target(name="device-file", use=_device, examples=st.deferred(lambda: nasty.trees(_device_tree())), share=2.0),
    Target(name="device-override", use=_overrides, examples=st.tuples(
        st.one_of(st.sampled_from(("memory.bandwidth_gbytes_per_s", "compute.peaks.bfloat16.dense_tflops", "kind",
                                   "compute.peaks.x.dense_tflops", "memory", "compute.peaks", "sources.x", "")),
                  st.text(max_size=30)), nasty.values())),
    Target(name="device-override-text", use=_set_text, examples=st.one_of(
        st.text(max_size=40), st.builds("memory.bandwidth_gbytes_per_s={}".format, nasty.values()))),
    Target(name="predict-arguments", use=_predict, examples=st.fixed_dictionaries({
        "device": st.sampled_from(("h100-sxm", "asic", "rtx-4090", "groq-like", "sn40l-like")),
        "scheme": st.sampled_from(("bf16", "fp8", "w4a16-g128", "mxfp4", "nvfp4", "w8a8")),
        "phase": st.one_of(st.sampled_from(("prefill", "decode")), nasty.values()),
        "batch": st.one_of(st.integers(1, 512), nasty.values(), st.lists(st.integers(1, 9), max_size=3)),
        "context": st.one_of(st.integers(1, 9999), nasty.values())})),
    Target(name="scheme-config", use=_scheme_config,
           examples=_quantisation_configs().map(lambda example: example[1])),
    Target(name="scheme-toml", use=_scheme_toml, examples=st.deferred(lambda: nasty.trees(_scheme_tree()))),
    Target(name="study-file", use=_study, examples=nasty.trees(_STUDY, ("speed", "quality", "cases", "accumulator"))),
    Target(name="timings", use=_timings, examples=_timing_tables(), share=0.1),
    Target(name="encode", use=try_encode, examples=st.tuples(_WIDE, st.sampled_from(FORMATS)), share=2.0),
    Target(name="decode", use=try_decode, examples=st.tuples(_WIDE, st.sampled_from(FORMATS))),
    Target(name="blocks", use=try_blocks, examples=st.tuples(
        _WIDE, st.sampled_from(("mxfp4", "mxfp8_e4m3", "mxint8", "nvfp4", "mxfp6_e2m3")))),
    Target(name="quantize", use=try_quantize, examples=st.tuples(_WIDE, st.sampled_from(SCHEMES)), share=2.0),
    Target(name="linear", use=try_linear, examples=st.tuples(
        st.one_of(nasty.arrays(), nasty.hnp.arrays(np.float32, (3, 128), elements=st.floats(width=32))),
        st.sampled_from(("w4a16-g128", "w8a8-channel-token", "fp8-tensor", "mxfp4", "w3a16-g64-sym")))),
    Target(name="gptq", use=try_gptq, share=0.5, examples=st.tuples(
        st.one_of(nasty.hnp.arrays(np.float32, (4, 32), elements=st.floats(width=32)), _WIDE),
        st.one_of(nasty.hnp.arrays(np.float64, (32, 32), elements=st.floats(-9, 9)).map(lambda a: a @ a.T), _WIDE))),
    Target(name="matmul", use=try_matmul, examples=st.tuples(
        _WIDE, _WIDE, st.sampled_from(("hopper.wgmma.f32.e4m3", "hopper.wgmma.f32.bf16", "x", None)))),
    Target(name="names", use=_names, examples=st.one_of(st.text(max_size=30), nasty.values())),
)  # fmt: skip
