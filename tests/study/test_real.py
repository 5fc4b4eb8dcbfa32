"""A study of a checkpoint: what it takes is said first, everything is measured on it, and what is finished stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

import hwmodels
from qsim.checkpoints import write
from qsim.cli import main
from qsim.models import load
from qsim.models.outline import outline
from qsim.study import StudySpec, read_result, run_study
from qsim.study import quality as q
from qsim.study.cost import cost_of, text_bytes


@pytest.fixture(scope="module")
def gguf(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random checkpoint as one GGUF file, with its tokenizer and weights in Q8_0."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    write(load(checkpoint), path, "gguf", tensor_type="q8_0")
    return path


def test_the_outline_of_a_file_is_that_of_the_model(checkpoint: Path, gguf: Path) -> None:
    for path in (checkpoint, gguf, "tiny"):
        found, model = outline(path), load(path)
        assert found.parameters == model.parameters
        assert found.linear_parameters == sum(n.weight.shape[0] * n.weight.shape[1] for n in model.linears().values())
        assert found.config == model.config
        assert found.tokenizer is not None


def test_a_gguf_file_is_priced_by_its_own_config(checkpoint: Path, gguf: Path) -> None:
    from qsim.study import targets  # noqa: F401

    one, two = hwmodels.get_architecture(str(checkpoint)), hwmodels.get_architecture(str(gguf))
    assert (one.parameters, one.block_parameters) == (two.parameters, two.block_parameters)


def test_the_cost_grows_with_text_methods_and_model(spec: StudySpec, gguf: Path) -> None:
    def cost(**changes: Any) -> Any:
        return cost_of(replace(spec, quality=replace(spec.quality, **changes)))

    base, more = cost(), cost(max_bytes=0)
    assert base.tokens == 1024
    assert more.tokens > base.tokens
    assert base.variants == sum(len(q.variants(spec, m)) for m in spec.methods)
    assert cost(model="tiny").memory_bytes > 4 * outline("tiny").parameters
    assert cost(model=str(gguf)).parameters == base.parameters


def test_weights_that_are_stored_quantised_are_taken_by_their_values(spec: StudySpec, gguf: Path) -> None:
    found = q.subject(replace(spec, quality=replace(spec.quality, model=str(gguf)))).model
    assert not any(linear.is_quantized for linear in found.linears().values())
    assert "stored quantised" in found.notes[-1]


def test_a_checkpoint_is_measured_with_progress_and_resume(
    gguf: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qsim.study import report

    drawings = report.drawings
    monkeypatch.setattr("qsim.study.trust.trust_tables", lambda layers=True: ((), ()))
    monkeypatch.setattr(report, "drawings", lambda result: list(drawings(result))[:1])

    def study() -> Any:
        return CliRunner().invoke(main, [
            "study", "--model", str(gguf), "--text", str(text), "--calibration", str(text), "--max-bytes", "512",
            "--method", "rtn:w4a16-g128", "--method", "rtn:w8a8-channel-token", "--device", "h100-sxm",
            "--out", str(tmp_path / "s"),
        ], prog_name="qsim")  # fmt: skip

    with monkeypatch.context() as patch:
        patch.setattr("qsim.study.tensors.outlier_layer", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        stopped = study()
    assert stopped.exit_code == 1
    first, *rest = stopped.stderr.splitlines()
    assert first.startswith("measuring small (0 M parameters): 512 tokens through 3 variants, about 1 minutes")
    assert any("RTN W8A8" in line or "W8A8" in line for line in rest)
    assert "parts of the study are finished" in stopped.stderr
    done = study()
    assert done.exit_code == 0, done.stderr
    assert "3 parts from an earlier run" in done.stdout
    result = read_result(tmp_path / "s")
    assert result.measured.model == "small"
    assert {row.method for row in result.quality} >= {"rtn:w4a16-g128", "rtn:w8a8-channel-token"}
    assert result.exact == ()  # the emulator of tensor cores is for the embedded model, unless a study file asks
    assert [v.way for v in result.verdicts][:2] == ["w8a8-per-tensor", "w8a8-per-token"]
    assert result.profiles == ()  # outliers of others are given to the embedded model only


def test_the_cost_is_announced_before_anything_is_measured(spec: StudySpec, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qsim.study.quality.subject", stop)
    with pytest.raises(KeyboardInterrupt):
        run_study(spec, announce=said.append)
    assert said[0].parameters == outline(spec.quality.model).parameters


def test_a_large_checkpoint_is_scored_on_less_text_unless_somebody_says(gguf: Path, monkeypatch: Any) -> None:
    from qsim.cli.study_options import spec_from

    unsaid = ("file", "batch", "context", "max_loss", "rows", "profile", "max_bytes", "text", "calibration",
              "workload")  # fmt: skip
    given: dict[str, Any] = dict.fromkeys(unsaid)
    given |= {"model": (str(gguf),), "device": (), "overrides": (), "scheme": (), "method": (), "price": ()}
    assert spec_from(given).quality.max_bytes == 131072
    monkeypatch.setattr("qsim.models.outline.outline", lambda _: SimpleNamespace(parameters=270_000_000))
    assert spec_from(given).quality.max_bytes == 32768
    assert spec_from(given | {"max_bytes": 100_000}).quality.max_bytes == 100_000
    assert [text_bytes(n) for n in (10**7, 10**8, 8 * 10**9)] == sorted((131072, 32768, 16384), reverse=True)
