"""What `qsim quantize` writes for the embedded model is read by `qsim eval`, by compressed-tensors and transformers.

Their model has the same weights, in the dtype that it computes in, and logits close to ours.
"""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from click.testing import CliRunner

from qsim.cli import main
from qsim.models import load, tiny_text
from qsim.scheme import QuantizedTensor

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]
torch = pytest.importorskip("torch")
pytest.importorskip("compressed_tensors")
transformers = pytest.importorskip("transformers")

IDS = np.frombuffer(tiny_text("test").encode()[:96], np.uint8).astype(np.int64)
CASES = [
    # method, scheme, options, root mean square of the logits' difference, over that of the logits
    ("rtn", "w4a16-g128", [], 1e-3),
    ("gptq", "w3a16-g128", [], 1e-3),
    ("gptq", "w4a16-g128", ["--act-order", "on", "--static-groups"], 1e-3),
    ("awq", "w4a16-g128", [], 1e-3),
    ("smoothquant", "w8a8-channel-token", [], 0.02),
    ("fp8", "fp8-tensor", [], 0.03),
    ("fp8", "fp8-static", [], 0.03),
    ("fp8", "fp8-rowwise", [], 0.03),
    ("fp8", "fp8-block128", [], 0.03),
    ("rtn", "mxfp4", [], 0.15),
    ("rtn", "nvfp4", [], 0.1),
]
"""Weights alone leave float16's rounding of their weights. Where activations are quantised, compressed-tensors
decompresses to 16-bit activations, so that ours differ by what activations of 8 or 4 bits cost."""


def run(*arguments: object):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text(tiny_text("calibration")[:256], encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("method", "scheme", "options", "tolerance"),
    CASES,
    ids=[f"{m}-{s}{'-act-order' if o else ''}" for m, s, o, _ in CASES],
)
def test_what_is_written_is_read(tmp_path, text, method, scheme, options, tolerance):
    out = tmp_path / "out"
    arguments = ["quantize", "tiny", "--method", method, "--scheme", scheme, "--calibration", text, "--window", 64,
                 "--ignore", "model.layers.[1-6].*"]  # fmt: skip
    written = run(*arguments, *options, "--layout", "compressed-tensors", "--out", out)
    assert written.exit_code == 0, written.stderr
    measured = run("eval", out, "--max-bytes", 129, "--json")
    assert measured.exit_code == 0, measured.stderr
    assert json.loads(measured.stdout)["bits_per_byte"] > 0
    ours = load(out)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        out, local_files_only=True, quantization_config=transformers.CompressedTensorsConfig(dequantize=True)
    ).eval()
    state = theirs.state_dict()
    assert sum(isinstance(t, QuantizedTensor) for t in ours.tensors.values()) == 14
    for name, tensor in ours.tensors.items():
        if isinstance(tensor, QuantizedTensor):
            mine, other = torch.from_numpy(tensor.dequantize()), state[name]
            if scheme == "nvfp4":  # their code * (scale / global), rounded twice
                np.testing.assert_allclose(mine.numpy(), other.float().numpy(), rtol=2**-8)
            else:
                assert torch.equal(mine.to(other.dtype), other), name
    with torch.no_grad():
        logits = theirs.float()(torch.from_numpy(IDS.copy())[None]).logits[0].numpy()
    mine = ours.logits(IDS)
    assert np.linalg.norm(mine - logits) < tolerance * np.linalg.norm(logits)
