"""Long verbs say what they do: plain lines with the time that has passed where stderr is no terminal."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from qsim.cli import main, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_steps_are_a_line_each(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 0.0, 61.0, 62.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with progress.steps() as say:
        for done, what in enumerate(("one", "two")):
            say(done, 2, what)
        say(2, 2, "done")
    assert capsys.readouterr().err == "[1/2] 0 s  one\n[2/2] 61 s  two\n[2/2] 62 s  done\n"


def test_small_steps_are_a_line_in_some_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.work() as say:
        for done in range(100):
            clock[0] = 0.2 * done
            say(done / 10, 10.0, "layer")
        say(10.0, 10.0, "done")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "[0%] 0 s  layer",
        "[25%] 5 s  layer",
        "[50%] 10 s  layer",
        "[75%] 15 s  layer",
        "[100 %] 20 s  done",
    ]


def test_a_report_has_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.reporter("fitting") as say:
        say("kernels")
    assert capsys.readouterr().err == "fitting, 0 s: kernels\n"


@pytest.mark.parametrize("kind", ["steps", "work", "reporter"])
def test_a_terminal_has_a_live_line_that_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    if kind == "reporter":
        with progress.reporter("fitting") as say:
            say("kernels")
    else:
        with getattr(progress, kind)() as count:
            count(1, 2, "kernels")
    assert "\n[1/2]" not in out.getvalue()
    assert "\x1b[2K" in out.getvalue()  # the line is erased


def test_the_long_verbs_say_something_when_piped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "t.txt"
    text.write_text("for i in range(10): print(i)\n" * 20, encoding="utf-8")
    sizes = [(m, n) for m in (1, 64, 512) for n in (2048, 4096, 8192, 16384)]
    rows = [f"cublas_bf16,{m},{n},4096,{5e-6 + n * 8192 / 2.5e12 + m * n * 1e-11}" for m, n in sizes]
    (tmp_path / "t.csv").write_text("kernel,m,n,k,latency_s\n" + "\n".join(rows), encoding="utf-8")
    monkeypatch.setattr("hwmodels.validation.validate.validate", lambda data: None)
    monkeypatch.setattr("hwmodels.validation.report.group_rows", lambda result: [])
    monkeypatch.setattr("hwmodels.serving.points.read_points", lambda path: ())
    for line, said in (
        (f"eval --text {text} --window 64", r"\[\d+/\d+\] \d+ s  windows of text"),
        (f"calibrate {tmp_path / 't.csv'} --device h100", r"calibrating, \d+ s: fitting"),
        ("validate", r"validating, \d+ s: fitting"),
    ):
        result = CliRunner().invoke(main, line.split(), prog_name="qsim")
        assert result.exit_code == 0, result.output
        assert re.search(said, result.stderr), line
        assert not re.search(said, result.stdout)
