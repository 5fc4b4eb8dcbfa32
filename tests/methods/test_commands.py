"""`qsim quantize`: every method to a checkpoint that `qsim eval` reads, going on after an interruption, refusals."""

from __future__ import annotations

import csv
import errno
import io
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from qsim.checkpoints import write
from qsim.cli import main
from qsim.errors import QsimError
from qsim.methods import quantize_model, read_records
from qsim.models import ModelConfig, load
from qsim.scheme import QuantizedTensor
from tests.models.small import CONFIGS, random_tensors, write_folder
from tests.models.test_loading import byte_tokenizer_json

TEXT = "for i in range(10): print(i ** 2, 'some text to calibrate on')\n" * 12


def run(*args: object) -> object:
    return CliRunner().invoke(main, [str(a) for a in args], prog_name="qsim", env={"COLUMNS": "100"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small"
    config = {**CONFIGS["llama"], "vocab_size": 256}
    write_folder(path, config, random_tensors(ModelConfig.from_dict(config)))
    (path / "tokenizer.json").write_text(json.dumps(byte_tokenizer_json()))
    (path.parent / "text.txt").write_text(TEXT, encoding="utf-8")
    return path


def arguments(folder, out, *more):
    window = () if "--window" in more else ("--window", 32)
    return ("quantize", folder, "--calibration", folder.parent / "text.txt", *window, "--out", out, *more)


@pytest.mark.parametrize(
    ("more", "layout"),
    [
        (("--method", "rtn", "--scheme", "w4a16-g32", "--mse"), "compressed-tensors"),
        (("--method", "gptq", "--scheme", "w4a16-g32"), "compressed-tensors"),
        (("--method", "gptq", "--scheme", "w4a16-g32-sym", "--act-order", "on"), "gptq"),
        (("--method", "gptq", "--scheme", "w4a16-g32", "--act-order", "group-aware", "--rotate"), "compressed-tensors"),
        (("--method", "awq", "--scheme", "w4a16-g32", "--layout", "awq"), "awq"),
        (("--method", "smoothquant", "--outliers", "30", "--alpha", "search"), "compressed-tensors"),
        (("--method", "fp8", "--scheme", "fp8-static-kvfp8", "--layout", "fp8"), "fp8"),
        (("--method", "rtn", "--scheme", "mxfp4"), "compressed-tensors"),
        (("--method", "rtn", "--scheme", "nvfp4"), "compressed-tensors"),
    ],
    ids=lambda v: "-".join(v[1::2]) if isinstance(v, tuple) else v,
)
def test_every_method(folder, tmp_path, more, layout):
    out = tmp_path / "out"
    result = run(*arguments(folder, out, *more))
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split()[:4] == ["layer", "RTN", "error", "error"]
    assert [line.split()[1] for line in lines[1:8]] == [
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # fmt: skip
    assert lines[-1] == f"wrote {out} ({layout})"
    assert result.stderr.startswith("memory: at most ")
    assert "\n[100 %] " in result.stderr  # progress is told where stderr is no terminal
    model, records = load(out), read_records(out)
    assert len(records) == 14
    assert all(isinstance(model.tensors[f"{r.layer}.weight"], QuantizedTensor) for r in records)
    assert not list(tmp_path.glob("*.part"))
    measured = run("eval", out, "--text", folder.parent / "text.txt", "--window", 32)
    assert measured.exit_code == 0, measured.stderr
    assert "bits per byte" in measured.stdout


def test_the_checkpoint_is_the_model_that_was_found(folder, tmp_path):
    assert run(*arguments(folder, tmp_path / "out", "--scheme", "w4a16-g32")).exit_code == 0
    model = load(folder)
    found = quantize_model(model, "gptq", "w4a16-g32", TEXT, window=32).model
    ids = np.arange(20)
    np.testing.assert_array_equal(load(tmp_path / "out").logits(ids), found.logits(ids))


def test_records_as_json_csv_and_figure(folder, tmp_path):
    base = arguments(folder, tmp_path / "a", "--scheme", "w4a16-g32")
    result = run(*base, "--json", "--plot", tmp_path / "record.png")
    data = json.loads(result.stdout)
    assert data["method"] == "gptq"
    assert len(data["layers"]) == 14
    assert data["layers"] == json.loads((tmp_path / "a" / "quantization_record.json").read_text())["layers"]
    assert (tmp_path / "record.png").stat().st_size > 10_000
    result = run(*base, "--csv", "--overwrite")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [r["layer"] for r in rows] == [r["layer"] for r in data["layers"]]
    assert [float(r["error_ratio"]) for r in rows] == [r["error_ratio"] for r in data["layers"]]


def test_going_on_after_an_interruption(folder, tmp_path, monkeypatch):
    import qsim.methods.store as store

    kept, solved = store.Store.put_layer, []

    def stop(self, name, q, record):
        kept(self, name, q, record)
        solved.append(name)
        if len(solved) == 5:
            raise KeyboardInterrupt

    base = arguments(folder, tmp_path / "out", "--scheme", "w4a16-g32")
    monkeypatch.setattr(store.Store, "put_layer", stop)
    result = run(*base)
    assert result.exit_code == 1
    part = tmp_path / "out.part"
    assert f"interrupted: 5 layers are finished in {part}; the same command goes on from there" in result.stderr
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(store.Store, "put_layer", kept)
    other = run(*arguments(folder, tmp_path / "out", "--scheme", "w3a16-g32"))
    assert other.exit_code == 2
    assert "holds an unfinished run with another scheme" in other.stderr
    result = run(*base)
    assert result.exit_code == 0, result.stderr
    assert "; 5 found finished" in result.stdout
    assert not part.exists()
    whole = run(*arguments(folder, tmp_path / "whole", "--scheme", "w4a16-g32"))
    assert whole.exit_code == 0
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole")]
    assert files[0] == files[1]


def stopped_after(count, monkeypatch, error=KeyboardInterrupt):
    """Layers are kept as usual until that many are."""
    import qsim.methods.store as store

    kept, solved = store.Store.put_layer, []

    def stop(self, name, q, record):
        kept(self, name, q, record)
        solved.append(name)
        if len(solved) == count:
            raise error

    monkeypatch.setattr(store.Store, "put_layer", stop)


def test_an_interruption_at_any_phase_says_what_is_kept(folder, tmp_path, monkeypatch):
    base, part = arguments(folder, tmp_path / "out", "--scheme", "w4a16-g32"), tmp_path / "out.part"
    with monkeypatch.context() as patch:
        patch.setattr("qsim.models.load", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        result = run(*base)
    assert result.exit_code == 1
    assert "interrupted: no layer is finished; the same command starts again" in result.stderr
    with monkeypatch.context() as patch:
        stopped_after(3, patch)
        result = run(*base, "--restart")
    assert result.exit_code == 1
    says = f"interrupted: 3 layers are finished in {part}; the same command without --restart goes on from there"
    assert says in result.stderr
    with monkeypatch.context() as patch:
        patch.setattr("qsim.checkpoints.write", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        result = run(*base)
    assert result.exit_code == 1
    assert f"interrupted: 14 layers are finished in {part}; the same command goes on from there" in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
    result = run(*base)
    assert "; 14 found finished" in result.stdout


def test_a_full_disk_is_one_sentence_that_says_what_is_kept(folder, tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device", "layer.x.piece")
    stopped_after(2, monkeypatch, full)
    result = run(*arguments(folder, tmp_path / "out", "--scheme", "w4a16-g32"))
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        "qsim: layer.x.piece: No space left on device: free some space and repeat; 2 layers are finished in "
        f"{tmp_path / 'out.part'}; the same command goes on from there"
    )


def test_restart_removes_a_run_and_nothing_else(folder, tmp_path, monkeypatch):
    base, part = arguments(folder, tmp_path / "out", "--method", "rtn", "--scheme", "w4a16-g32"), tmp_path / "out.part"
    part.mkdir()
    (part / "model.safetensors").write_text("years of work")
    for more in ((), ("--restart",)):
        result = run(*base, *more)
        assert result.exit_code == 2
        assert f"{part} is not" in result.stderr
        assert (part / "model.safetensors").read_text() == "years of work"
    (part / "model.safetensors").unlink()
    with monkeypatch.context() as patch:
        stopped_after(3, patch)
        assert run(*base).exit_code == 1
    result = run(*base, "--restart")
    assert result.exit_code == 0, result.stderr
    assert "found finished" not in result.stdout
    assert {p.name for p in tmp_path.iterdir()} == {"out"}


def test_the_source_is_never_replaced(folder, tmp_path, monkeypatch):
    source = tmp_path / "model"
    shutil.copytree(folder, source)
    shutil.copy(folder.parent / "text.txt", source / "text.txt")
    (tmp_path / "link").symlink_to(source)
    before = {p: p.read_bytes() for p in source.iterdir()}
    monkeypatch.chdir(tmp_path)
    part = tmp_path / "x.part"
    shutil.copytree(folder, part)
    for model, out in (("model", "model"), ("model", "./model/"), ("link", "model"), ("model", "model/new"),
                       ("model", "link/new"), ("x.part", "x")):  # fmt: skip
        result = run(
            "quantize", model, "--method", "rtn", "--scheme", "w4a16-g32", "--out", out, "--force", "--restart"
        )
        assert result.exit_code == 2, (model, out)
        assert "must be folders apart" in result.stderr, (model, out, result.stderr)
    result = run("quantize", folder, "--calibration", "model/text.txt", "--out", "model", "--force")
    assert "the source model/text.txt must be folders apart" in result.stderr
    assert {p: p.read_bytes() for p in source.iterdir()} == before
    assert (part / "model.safetensors").is_file()
    with pytest.raises(ValueError, match="must be folders apart"):
        write(load(source), source, overwrite=True)


def test_the_record_appears_with_the_checkpoint(folder, tmp_path, monkeypatch):
    from qsim.methods import QuantizationResult

    base = arguments(folder, tmp_path / "out", "--method", "rtn", "--scheme", "w4a16-g32")
    with monkeypatch.context() as patch:

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device", "quantization_record.json")

        patch.setattr(QuantizationResult, "to_json", full)
        assert run(*base).exit_code == 2
    assert not (tmp_path / "out").exists()
    assert run(*base).exit_code == 0
    assert len(read_records(tmp_path / "out")) == 14


def test_what_is_damaged_is_said(folder, tmp_path, monkeypatch):
    base, part = arguments(folder, tmp_path / "out", "--method", "rtn", "--scheme", "w4a16-g32"), tmp_path / "out.part"
    with monkeypatch.context() as patch:
        stopped_after(3, patch)
        assert run(*base).exit_code == 1
    piece = part / "layer.model.layers.0.self_attn.q_proj.piece"
    piece.write_bytes(piece.read_bytes()[:-7])
    result = run(*base)
    assert result.exit_code == 0, result.stderr
    assert "; 2 found finished" in result.stdout
    assert f"note: {piece} was set aside as {piece.name}.damaged and its work done again: its checksum is wrong" in (
        result.stdout)  # fmt: skip
    assert not part.exists()
    part.mkdir()
    (part / "run.json").write_text("{")
    result = run(*arguments(folder, tmp_path / "out", "--method", "rtn", "--scheme", "w4a16-g32", "--force"))
    assert result.exit_code == 2
    assert f"{part / 'run.json'} is not JSON" in result.stderr
    record = tmp_path / "out" / "quantization_record.json"
    for text in ("{", "[]", '{"layers": 3}', '{"layers": [{}]}', '{"layers": [3]}'):
        record.write_text(text)
        with pytest.raises(QsimError, match="quantization_record.json"):
            read_records(tmp_path / "out")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--layout", "awq", "--scheme", "w3a16-g32"), "AWQ holds 4-bit integers: got uint3; use layout 'compressed"),
        (("--layout", "compressed-tensors", "--scheme", "w4a16-g32", "--act-order", "on"), "layer model.layers.0"),
        (("--layout", "zip", "--scheme", "w4a16-g32"), "'zip' is not one of 'auto', 'plain', 'compressed-tensors'"),
        (("--method", "rtn", "--scheme", "nf4-g32x"), "unknown scheme"),
        (("--method", "rtn", "--scheme", "nf4-g64"), "no checkpoint layout holds scheme nf4-g64"),
        (
            ("--method", "gptq", "--alpha", "0.5"),
            "--alpha is an option of smoothquant, not of gptq; gptq has --act-order",
        ),
        (("--method", "smoothquant", "--alpha", "much"), "--alpha must be a number or `search`: got 'much'"),
        (("--scheme", "fp8"), "GPTQ rounds weights to integer codes"),
        (("--scheme", "w4a16-g48"), "divide K: got group_size=48, K=64"),
        (("--scheme", "w4a16-g32", "--window", "9000"), "at least one window of 9000 tokens"),
    ],
)
def test_mistakes_are_one_sentence(folder, tmp_path, more, message):
    result = run(*arguments(folder, tmp_path / "out", *more))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len([line for line in result.stderr.splitlines() if not line.startswith("memory:")]) == 1
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("*.safetensors"))


def test_targets(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    result = run(*arguments(folder, tmp_path / "out", "--scheme", "w4a16-g32"))
    assert result.exit_code == 2
    assert "exists: choose another folder" in result.stderr
    result = run("quantize", folder, "--out", tmp_path / "new", "--scheme", "w4a16-g32")
    assert "gptq with w4a16-g32 needs calibration text" in result.stderr
    result = run("quantize", folder, "--out", tmp_path / "new", "--method", "rtn", "--scheme", "nvfp4")
    assert "checkpoints with nvfp4 activations store their tensor scale" in result.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize(("layout", "symmetric"), [("gptq", True), ("gptq_v2", True), ("auto", False), ("awq", False)])
def test_the_gptq_layout_is_symmetric_unless_asked(tmp_path, method, layout, symmetric):
    """The kernels that serve it fast read nothing else."""
    config = {**CONFIGS["llama"], "hidden_size": 128, "intermediate_size": 128, "vocab_size": 256}
    write_folder(tmp_path / "m", config, random_tensors(ModelConfig.from_dict(config)))
    np.save(tmp_path / "ids.npy", np.arange(256))
    common = ("quantize", tmp_path / "m", "--method", method, "--calibration", tmp_path / "ids.npy", "--window", 32)
    result = run(*common, "--layout", layout, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    said = "scheme w4a16-g128-sym: layout" in result.stderr
    assert said == symmetric
    found = load(tmp_path / "out").tensors["model.layers.0.mlp.up_proj.weight"]
    assert found.tensor_scheme.symmetric == symmetric
    if symmetric:
        assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["sym"] is True
        asked = run(*common, "--scheme", "w4a16-g128", "--out", tmp_path / "asked", "--layout", "gptq_v2")
        assert asked.exit_code == 0, asked.stderr
        assert "note: vLLM's Marlin kernels read GPTQ weights of 4 and 8 bits with sym=true only" in asked.stdout
        assert "Marlin kernels read GPTQ weights" not in result.stdout
        assert "scheme w4a16-g128-sym" not in asked.stderr
        assert not load(tmp_path / "asked").tensors["model.layers.0.mlp.up_proj.weight"].tensor_scheme.symmetric
