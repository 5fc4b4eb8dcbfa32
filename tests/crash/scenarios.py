"""What is stopped at every moment: `qsim quantize`, a conversion of a checkpoint, a study."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from tests.models.small import CONFIGS, random_tensors, write_folder
from tests.models.test_loading import byte_tokenizer_json

TEXT = "for i in range(10): print(i ** 2, 'some text to calibrate on')\n" * 3


class Scenario:
    """One command, run in a work folder that holds only what it writes.

    Arguments:
        base: what it reads.
        replaces: an older target is there, and is replaced.
    """

    name = ""

    def __init__(self, base: Path, replaces: bool) -> None:
        self.base, self.replaces = base, replaces
        self.label = f"{self.name}, {'replacing an older one' if replaces else 'new'}"

    def inputs(self) -> None:
        """Make what the command reads."""

    def older(self, out: Path) -> None:
        """Make the target that is replaced."""

    def command(self, out: Path) -> None:
        """The command; raises on a refusal."""
        raise NotImplementedError

    def state(self, out: Path) -> dict[str, str] | None:
        """The target as it stands, by file; None when there is none, or one that says itself that it is unfinished."""
        return snapshot(out) if os.path.lexists(out) else None


def snapshot(folder: Path) -> dict[str, str]:
    """Every file of a folder with a digest of its content, times and the history of the run left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        raw = path.read_bytes()
        if path.name == "quantization_record.json":
            raw = json.dumps(_timeless(json.loads(raw))).encode()
        found[path.relative_to(folder).as_posix()] = hashlib.sha256(raw).hexdigest()
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in ("time_s", "resumed", "notes")}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


class Quantize(Scenario):
    name = "quantize"

    def inputs(self) -> None:
        config = {**CONFIGS["llama"], "vocab_size": 256, "num_hidden_layers": 1}
        from qsim.models import ModelConfig

        for seed, folder in ((0, "model"), (1, "other")):
            write_folder(self.base / folder, config, random_tensors(ModelConfig.from_dict(config), seed))
            (self.base / folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer_json()))
        (self.base / "text.txt").write_text(TEXT)

    def _run(self, model: str, out: Path, *more: str) -> None:
        from qsim.cli import main

        arguments = ["quantize", str(self.base / model), "--calibration", str(self.base / "text.txt"), "--window", "32",
                     "--method", "gptq", "--scheme", "w4a16-g32", "--out", str(out), *more]  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main(arguments, standalone_mode=False)

    def older(self, out: Path) -> None:
        self._run("other", out)

    def command(self, out: Path) -> None:
        self._run("model", out, *(["--force"] if self.replaces else []))


class Convert(Scenario):
    name = "convert"

    def inputs(self) -> None:
        from qsim.checkpoints import write
        from tests.checkpoints.tiny import quantized

        for seed, folder in ((0, "model"), (1, "other")):
            write(quantized("w4a16-g32", seed, num_hidden_layers=1), self.base / folder, "gptq_v2")

    def older(self, out: Path) -> None:
        self._run("other", out, overwrite=False)

    def command(self, out: Path) -> None:
        self._run("model", out, overwrite=self.replaces)

    def _run(self, model: str, out: Path, **how: Any) -> None:
        from qsim.checkpoints import convert

        convert(self.base / model, out, "compressed-tensors", shard_bytes=40_000, **how)


class Study(Scenario):
    """A study whose numbers are given: what is written, and when, is that of `qsim study`."""

    name = "study"

    def older(self, out: Path) -> None:
        self._run("before", out)
        (out / "mine.txt").write_text("years of work")

    def command(self, out: Path) -> None:
        self._run("after", out)

    def _run(self, title: str, out: Path) -> None:
        from qsim.study import StudySpec, run_study

        with given_numbers():
            run_study(StudySpec(title=title), out, force=self.replaces)

    def state(self, out: Path) -> dict[str, str] | None:
        from qsim.study.folder import PARTS, settle

        settle(out)
        if not (out / "study.json").exists():
            return None
        return {k: v for k, v in snapshot(out).items() if not k.startswith((PARTS, ".study", "..ready"))}


@contextlib.contextmanager
def given_numbers() -> Iterator[None]:
    """Instead of a study's measurements: what it writes, and when, stays as it is."""
    from qsim.study import report, run
    from qsim.study.result import Environment, Measured, StudyResult
    from qsim.study.rows import MethodRow

    def result(spec: Any, quick: bool, parts: Any, steps: Any) -> StudyResult:
        rows: list[MethodRow] = []
        for name in ("gptq:w4a16-g64", "rtn:mxfp4"):

            def work(name: str = name) -> tuple[MethodRow, ...]:
                return (MethodRow(method=name, title=spec.title, algorithm="a", scheme="s", weight_bits=4.25),)

            rows += parts.get(f"quality-{name}", [spec.title, name], tuple[MethodRow, ...], work)
        env = Environment(qsim="1", python="3", packages={}, processor="p", cores=1, threads=1, kernel_path="portable")
        measured = Measured(model="m", parameters=1, linear_parameters=1, model_sha256="0", text="t", text_sha256="0",
                            calibration="c", calibration_sha256="0", base_bits_per_byte=1.0,
                            base_bits_per_byte_se=0.1, base_perplexity=2.0, widest_k=1)  # fmt: skip
        return StudyResult(spec=spec, quick=quick, environment=env, measured=measured,
                           methods=tuple(rows) if spec.title == "after" else (), notes=(spec.title,))  # fmt: skip

    kept = run._result, report.drawings, report.render
    run._result, report.drawings = result, lambda _: []  # type: ignore[assignment, misc]
    report.render = lambda found, _: f"<html>{found.notes}</html>"  # type: ignore[assignment]
    try:
        yield
    finally:
        run._result, report.drawings, report.render = kept


SCENARIOS = (Quantize, Convert, Study)
REFUSALS = (ValueError, OSError, click.ClickException)
