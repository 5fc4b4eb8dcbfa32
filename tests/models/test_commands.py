"""`qsim eval` and `qsim generate` on a folder."""

from __future__ import annotations

import csv
import io
import json

import pytest
from click.testing import CliRunner

from qsim.cli import main
from qsim.models import ModelConfig

from .small import CONFIGS, random_tensors, write_folder
from .test_loading import byte_tokenizer_json

TEXT = "for i in range(10): print(i ** 2, 'ä€')\n" * 7


def run(*args: str, **more: object) -> object:
    return CliRunner().invoke(main, list(args), prog_name="qsim", env={"COLUMNS": "80"}, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small"
    config = {**CONFIGS["llama"], "vocab_size": 256, "zeal": 1}
    write_folder(path, config, random_tensors(ModelConfig.from_dict(config)))
    (path / "tokenizer.json").write_text(json.dumps(byte_tokenizer_json()))
    (path.parent / "text.txt").write_text(TEXT, encoding="utf-8")
    return path


def test_eval(folder):
    text = str(folder.parent / "text.txt")
    result = run("eval", str(folder), "--text", text, "--window", "50")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == f"small: 300 bytes of {text}, 300 tokens in windows of 50"
    assert lines[1].startswith("  bits per byte    ")
    assert " ± 0." in lines[1]
    assert lines[-1] == "note: unknown config keys were ignored: zeal"
    assert "against" not in result.stdout


def test_eval_of_a_scheme_is_against_the_model_before(folder):
    text = str(folder.parent / "text.txt")
    args = ("eval", str(folder), "--text", text, "--window", "50", "--scheme", "w4a16-g32", "--max-bytes", "120")
    data = json.loads(run(*args, "--json").stdout)
    assert data["model"] == "small w4a16-g32"
    assert data["reference"] == "small"
    assert data["bytes"] == data["tokens"] == 119
    assert 0 < data["kl"] < 1
    assert data["kl_se"] > 0
    row = next(csv.DictReader(io.StringIO(run(*args, "--csv").stdout)))
    assert float(row["kl"]) == data["kl"]
    shown = run(*args).stdout
    assert "\nagainst small\n" in shown
    assert "KL divergence" in shown
    assert "note: weights rounded to nearest: w4a16-g32" in shown
    exact = ("--engine", "exact", "--instruction", "ampere.mma.f32.bf16")
    bits = json.loads(run(*args, "--json", *exact).stdout)
    assert bits["kl"] != data["kl"]
    assert json.loads(run(*args, "--json", *exact[2:]).stdout)["kl"] == bits["kl"]
    outliers = run(*args, "--outliers", "100")
    assert "synthetic outliers" in outliers.stdout.splitlines()[0]


def test_eval_protocols_and_references(folder):
    text = str(folder.parent / "text.txt")
    args = ("eval", str(folder), "--text", text, "--window", "50")
    assert "GPTQ's windows of 50" in run(*args, "--protocol", "gptq").stdout
    assert "windows of 50 every 25" in run(*args, "--protocol", "sliding").stdout
    assert "+0.0000 ± 0\n" in run(*args, "--reference", str(folder)).stdout


def test_generate(folder):
    args = ("generate", "def f", "--model", str(folder), "--max-new-tokens", "8")
    result = run(*args)
    assert result.exit_code == 0, result.stderr
    data = json.loads(run(*args, "--json").stdout)
    assert result.stdout == "def f" + data["text"] + "\n"
    assert result.stderr.startswith("small: 8 tokens; first after ")
    assert " tokens/s" in result.stderr
    assert len(data["tokens"]) == 8
    assert data["stop"] == "length"
    assert (
        run("generate", "-", *args[2:], "--json", input="def f").stdout.split('"prefill_s"')[0]
        == run(*args, "--json").stdout.split('"prefill_s"')[0]
    )
    drawn = [run(*args, "--temperature", "1", "--seed", s).stdout for s in ("1", "1", "2")]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("eval", "nowhere"), "nowhere does not exist"),
        (("generate", "x", "--model", "nowhere"), "nowhere does not exist"),
        (("generate", "x", "--top-p", "2", "--model", "FOLDER"), "top_p must be above 0 and at most 1: got 2.0"),
        (("generate", "", "--model", "FOLDER"), "the prompt has no tokens"),
        (("eval", "FOLDER", "--scheme", "w9a16"), "unknown scheme 'w9a16'"),
        (("eval", "FOLDER", "--window", "100"), "window must be between 2 and the context length (64)"),
        (("eval", "FOLDER", "--engine", "fused", "--instruction", "a"), "--instruction belongs to --engine exact"),
        (("eval", "FOLDER", "--json", "--csv"), "--json and --csv both want stdout"),
    ],
)
def test_mistakes_are_one_sentence(folder, args, message):
    text = () if args[0] == "generate" else ("--text", str(folder.parent / "text.txt"))
    result = run(*[str(folder) if a == "FOLDER" else a for a in args], *text)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" not in result.stderr
