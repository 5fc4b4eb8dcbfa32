"""A study small enough for a test: two blocks of 128, a page of text, three devices, five methods."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from qsim.models import ModelConfig
from qsim.models.families import expected_tensors
from qsim.study import Case, DeviceSpec, Quality, Speed, StudySpec, run_study
from qsim.study.method import Method, parse_method
from qsim.study.run import Run
from qsim.study.spec import DEFAULT_DEVICES

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 256, "hidden_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64,
    "intermediate_size": 256, "max_position_embeddings": 128,
}  # fmt: skip
METHODS = ("none:bf16", "rtn:w4a16-g128", "gptq:w4a16-g128", "fp8:fp8-rowwise", "rtn:mxfp4")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama: weights in BF16's values, a tokenizer whose ids are bytes."""
    from qsim.formats import cast
    from qsim.models.tokenizer import byte_vocabulary

    folder = tmp_path_factory.mktemp("small-llama")
    config = ModelConfig.from_dict(CONFIG)
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in expected_tensors(config).items():
        x = rng.standard_normal(shape)
        x = x * (1.0 if "embed" in name else 1.3 / np.sqrt(shape[-1])) if len(shape) == 2 else 1 + 0.2 * x
        tensors[name] = np.asarray(cast(x.astype(np.float32), "bfloat16"), np.float32)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    tokenizer = {"model": {"type": "BPE", "vocab": byte_vocabulary(), "merges": []}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 1500 bytes of English."""
    path = tmp_path_factory.mktemp("text") / "page.txt"
    words = "the quick brown fox jumps over the lazy dog while rivers run and mountains wait in silence".split()
    rng = np.random.default_rng(1)
    path.write_text(" ".join(rng.choice(words, 270)) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def spec(checkpoint: Path, text: Path) -> StudySpec:
    """The question of the small study."""
    asic = next(d for d in DEFAULT_DEVICES if d.name == "asic")
    return StudySpec(
        methods=tuple(Method(**parse_method(m)) for m in METHODS),
        cases=(
            Case(name="chat", title="Chat", batch=1, context=2048, measure="tpot"),
            Case(name="serving", title="Serving", batch=16, context=2048, measure="tokens_per_s"),
            Case(name="offline", title="Offline", phase="request", batch=0, context=512, new_tokens=64,
                 measure="tokens_per_s"),
        ),
        quality=Quality(model=str(checkpoint), text=str(text), calibration=str(text), max_bytes=1024, window=64,
                        exact_bytes=64, calibration_tokens=512, max_loss=0.1),
        speed=Speed(models=("llama-3-8b", "llama-3-70b"), batches=(1, 8, 64),
                    devices=(DeviceSpec(name="h100-sxm"), DeviceSpec(name="a100-sxm-80gb"), asic)),
    )  # fmt: skip


@pytest.fixture(scope="session")
def run(spec: StudySpec) -> Run:
    """The small study, finished, in memory."""
    return run_study(spec)


@pytest.fixture(scope="session")
def written(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder."""
    from qsim.study import write_study

    out = tmp_path_factory.mktemp("study")
    write_study(run.result, out)
    return out
