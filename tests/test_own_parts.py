"""The guide's device, number format and model family, from a package of its own, through every public door."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import hwmodels
from qsim.errors import QsimError
from qsim.families import Family, families, register_family
from qsim.formats import FloatFormat, register

from .guides import blocks, declare

ROOT = Path(__file__).parents[1]
TITLE = "How to add a device, a number format or a model family"

USE = """
import json, sys
from pathlib import Path
import numpy as np
from click.testing import CliRunner
import hwmodels, qsim
from qsim.cli import main
from qsim.models import ModelConfig
from tests.models.small import random_tensors, write_folder

place = Path(sys.argv[1])

def run(*args):
    done = CliRunner().invoke(main, [str(a) for a in args], prog_name="qsim", env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.stderr
    return done.output

# the device
for name in ("example-npu", "npu"):
    assert hwmodels.get_device(name).title == "Example NPU"
assert "example-npu" in [d.name for d in hwmodels.list_devices()]
step = hwmodels.predict("npu", "llama-3-8b", "bf16")
assert step.fidelity == "transferred" and step.time_s > 16e9 / 3e12
assert "Example NPU" in run("devices", "npu", "--json") or "example-npu" in run("devices", "npu")
wider = ("--set", "memory.bandwidth_gbytes_per_s=6000")
doubled = json.loads(run("predict", "llama-3-8b", "--device", "npu", *wider, "--json"))
assert 0.4 < doubled["time_s"] / step.time_s < 0.7
assert len(hwmodels.sweep("npu", "llama-3-8b", batch=[1, 2])) == 2
assert "example-npu" in run("sweep", "llama-3-8b", "--device", "npu", "--batch", "1,8", "--csv")

# the format: 1, 2 and 2 bits; the largest value is 2^(3-1) * 1.75 = 7
assert qsim.decode(qsim.encode(np.float32([100, 0.3, -1.1]), "t5"), "tiny5").tolist() == [7.0, 0.25, -1.0]
assert "tiny5" in [f.name for f in qsim.list_formats()] and "tiny5" in run("formats")
assert "0.25" in run("cast", "0.3", "--to", "t5")

# the family: priced and run from one config
config = {"model_type": "example", "architectures": ["ExampleForCausalLM"], "width": 64, "depth": 2,
          "num_attention_heads": 4, "intermediate_size": 256, "vocab_size": 512, "max_position_embeddings": 64}
tensors = random_tensors(ModelConfig.from_dict(config))
count = 2 * 512 * 64 + 64 + 2 * (4 * 64 * 64 + 2 * 64 * 256 + 2 * 64)
assert hwmodels.get_architecture(config).parameters == count == sum(t.size for t in tensors.values())
write_folder(place / "model", config, tensors)
model = qsim.load(place / "model")
assert model.logits([1, 2, 3]).shape == (3, 512)
assert not any("gate" in name for name in model.linears())
quantised = qsim.quantize_model(model, "rtn", "w8a16-channel").model
assert np.abs(quantised.logits([1, 2, 3]) - model.logits([1, 2, 3])).max() < 0.1
priced = json.loads(run("predict", place / "model" / "config.json", "--device", "h100", "--json"))
assert priced["weights_gbytes"] * 1e9 == 2 * count
"""


def test_the_guide_is_followed_as_it_is_written(tmp_path: Path) -> None:
    device, entries = blocks(TITLE, "toml")
    package = tmp_path / "site" / "my_package"
    package.mkdir(parents=True)
    (package / "example_npu.toml").write_text(device)
    (package / "__init__.py").write_text(blocks(TITLE, "python")[0])
    declare(tmp_path / "site", entries)
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path / 'site')!r}]\n{USE}"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path)], capture_output=True, text=True,
                          cwd=tmp_path, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_what_takes_the_name_of_another_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "h100-sxm.toml"
    path.write_text(blocks(TITLE, "toml")[0])
    with pytest.raises(QsimError, match="hwmodels has a device 'h100-sxm' already"):
        hwmodels.register_device(path)
    path = path.rename(tmp_path / "mine.toml")
    path.write_text(blocks(TITLE, "toml")[0].replace('"npu"', '"a100"'))
    with pytest.raises(QsimError, match="hwmodels has a device 'a100' already"):
        hwmodels.register_device(path)
    path.write_text(blocks(TITLE, "toml")[0].replace('"npu"', '"A 100"'))
    with pytest.raises(QsimError, match="aliases must be a list of lower-case names"):
        hwmodels.register_device(path)
    assert "mine" not in hwmodels.device_names()
    with pytest.raises(QsimError, match="format name 'e4m3' is taken by float8_e4m3fn"):
        register(FloatFormat(name="e4m3", exponent_bits=3, mantissa_bits=4, bias=3))
    llama = families()["llama"]
    other = Family(name="other", model_types=("llama",), architectures=(), shape=llama.shape, defaults={})
    with pytest.raises(QsimError, match="model type 'llama' is that of the family llama"):
        register_family(other)
    with pytest.raises(QsimError, match="must be a Family: got str"):
        register_family("llama")  # type: ignore[arg-type]
