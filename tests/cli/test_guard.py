"""Every exception becomes words and an exit code in one place: the user's mistakes, the machine's, and our own."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import qsim
from qsim.cli import main
from qsim.cli.guard import Interrupted
from qsim.cli.streams import ALIKE, alike
from qsim.cli.verbs import VERBS
from qsim.errors import QsimError

ROOT = Path(__file__).parents[2]


def run(*args: str) -> click.testing.Result:
    return CliRunner().invoke(main, list(args), prog_name="qsim", env={"COLUMNS": "80"})


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> click.testing.Result:
    """`qsim bench` where the work under it raises."""

    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("qsim.study.bench.bench", broken)
    return run("bench")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (QsimError("group_size must divide K:\n got 96"), "group_size must divide K: got 96"),
        (click.UsageError("no such thing."), "no such thing"),
        (click.BadParameter("is wrong"), "Invalid value: is wrong"),
        (click.FileError("a.txt", "is locked"), "Could not open file 'a.txt': is locked"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.toml"), "a.toml: No such file or directory"),
        (PermissionError(errno.EACCES, "Permission denied", "b"), "b: Permission denied"),
        (OSError(errno.EXDEV, "Invalid link", "a", None, "b"), "a to b: Invalid link"),
        (OSError(errno.ENOSPC, "No space left on device", "c"), "c: No space left on device: free some, or write else"),
        (OSError("the device has no name"), "the device has no name"),
        (OSError(), "OSError"),
        (MemoryError(), "not enough memory: ask for a smaller model, batch, context or window, or free some memory"),
        (
            MemoryError("Unable to allocate 74.5 GiB"),
            "not enough memory (unable to allocate 74.5 GiB): ask",
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, says: str
) -> None:
    result = raising(monkeypatch, error)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = [one for one in result.stderr.splitlines() if not one.startswith("timing")]
    assert line.startswith(f"qsim: {says}")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("of a library"), TypeError("wrong"), KeyError("layer"), IndexError(), AttributeError("x"),
        RecursionError("deep"), OverflowError("large"), ZeroDivisionError("division by zero"), AssertionError(),
        NotImplementedError(), RuntimeError("a\nb"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), EOFError(),
        subprocess.CalledProcessError(1, "x"), ExceptionGroup("many", [ValueError("one")]),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_everything_else_is_a_bug_of_ours_with_how_to_report_it(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    result = raising(monkeypatch, error)
    assert result.exit_code == 70
    lines = [one for one in result.stderr.splitlines() if one and not one.startswith("timing")]
    assert lines[0].startswith("qsim: this is a bug in qsim: ")
    assert type(error).__name__ in lines[0]
    assert lines[1].startswith(f"  version       qsim {qsim.__version__}, Python ")
    assert lines[2] == "  command line  qsim bench"
    assert lines[3].startswith("Please report these lines in the issue tracker")
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (KeyboardInterrupt(), "qsim: interrupted"),
        (Interrupted("3 layers are finished"), "qsim: interrupted: 3 layers are finished"),
        (click.Abort(), "qsim: interrupted"),
    ],
)
def test_an_interruption_is_a_sentence_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, says: str
) -> None:
    result = raising(monkeypatch, error)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == says


@pytest.mark.parametrize("error", [QsimError("wrong"), KeyError("x"), OSError("disk"), KeyboardInterrupt()])
def test_the_traceback_is_shown_on_request_for_every_kind(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("qsim.study.bench.bench", broken)
    for args in (("bench", "--verbose"), ("--verbose", "bench")):
        text = run(*args).stderr
        assert "Traceback (most recent call last)" in text
        assert text.index("in broken") < text.index("qsim: ")
    assert "Traceback" not in run("bench").stderr


def test_a_verbs_own_exit_code_passes() -> None:
    assert run("--help").exit_code == 0
    assert run().exit_code == 2
    assert run().output.startswith("Usage: qsim")
    with pytest.raises(QsimError):  # a caller from Python gets the exception itself
        main(["cast", "1", "--to", "e4m33"], prog_name="qsim", standalone_mode=False)


def shell(command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command.replace('qsim', f'{sys.executable} -m qsim')}"], cwd=ROOT,
        env={**os.environ, **env}, capture_output=True, text=True,
    )  # fmt: skip


def test_a_closed_pipe_is_quiet() -> None:
    done = shell("qsim formats --csv | true")
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_a_full_disk_under_stdout_is_one_sentence() -> None:
    done = shell("qsim cast 1 --to e4m3 > /dev/full")
    assert (done.returncode, done.stderr) == (2, "qsim: No space left on device: free some, or write elsewhere\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
@pytest.mark.parametrize(
    "args", ["cast 0.3 --to e4m3", "mma hopper.wgmma.f32.e4m3", "predict llama-3-8b", "formats int4", "cast 1 --to µ"]
)
def test_any_terminal_can_show_all_output(args: str, encoding: str) -> None:
    runner = CliRunner(charset=encoding)
    result = runner.invoke(main, args.split(), prog_name="qsim", env={"COLUMNS": "80"})
    assert result.exit_code == (2 if "µ" in args else 0)
    assert result.output.encode(encoding)
    assert "?" not in result.output
    usual = CliRunner().invoke(main, args.split(), prog_name="qsim", env={"COLUMNS": "80"}).output
    assert result.output == alike(usual, encoding)


def test_a_character_without_likeness_is_a_question_mark_and_never_an_error() -> None:
    assert alike("5 µs × │ 漢", "ascii") == "5 us x | ?"
    assert alike("5 µs × │ 漢", "latin-1") == "5 µs × | ?"
    assert alike("\udcff", "utf-8") == "?"
    assert all(text.isascii() for text in ALIKE.values())


def test_every_character_that_our_output_holds_has_a_likeness() -> None:
    for path in (ROOT / "qsim" / "cli").glob("*.py"):
        strange = {c for c in path.read_text(encoding="utf-8") if not c.isascii()}
        assert strange <= ALIKE.keys(), path.name


def test_a_help_page_is_readable_everywhere() -> None:
    for verb in VERBS:
        assert CliRunner(charset="ascii").invoke(main, [verb, "--help"], prog_name="qsim").exit_code == 0
