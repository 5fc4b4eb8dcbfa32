"""The README's examples print what the README shows."""

from __future__ import annotations

import doctest
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from qsim.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONSOLE = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    (command, output.rstrip())
    for block in CONSOLE
    for command, output in re.findall(r"^\$ (qsim [^\n]*)\n(.*?)(?=^\$ |\Z)", block, re.DOTALL | re.MULTILINE)
]


def test_there_is_something_to_check():
    assert len(COMMANDS) >= 2
    assert ">>> " in README


@pytest.mark.parametrize(("command", "output"), COMMANDS, ids=[c for c, _ in COMMANDS])
def test_commands_print_what_is_shown(command, output, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(main, shlex.split(command)[1:], catch_exceptions=False)
    assert result.exit_code == 0
    shown = [line.rstrip() for line in output.splitlines()]
    printed = [line.rstrip() for line in result.output.rstrip().splitlines()]
    assert printed == shown


def test_python_examples():
    blocks = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    parsed = doctest.DocTestParser().get_doctest(blocks, {}, "README.md", "README.md", 0)
    results = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(parsed)
    assert results.attempted >= 6
    assert results.failed == 0


TYPED = re.findall(r"^    (?:.*&&\s+)?(?:\.venv/bin/)?(qsim [^#\n]*)", README, re.MULTILINE)


@pytest.mark.parametrize("line", TYPED)
def test_commands_without_output_are_understood(line, tmp_path):
    """Their verbs, options and values exist; they are too slow to run here."""
    words = [str(tmp_path) if word == "DIR" else word for word in shlex.split(line)[1:]]
    context = main.make_context("qsim", words.copy())
    name, command, rest = main.resolve_command(context, words)
    assert command is not None
    command.make_context(name, rest, parent=context)


def test_what_to_type_first_is_shown():
    assert {line.split()[1] for line in TYPED} >= {"cast", "predict", "study", "quantize", "eval"}


def test_the_sentence_under_the_first_figure_is_what_its_script_prints():
    spec = importlib.util.spec_from_file_location("readme_figure", ROOT / "reports" / "readme_figure.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    gain = {(s, b): float(script.gain(s, b).value) for s in script.SCHEMES for b in (1, 128)}
    assert f"4-bit weights make it {gain['w4a16-g128', 1]:.1f} times as fast" in README.replace("\n", " ")
    assert gain["fp8-rowwise-kvfp8", 128] > gain["w4a16-g128", 128], "a smaller cache gains more than smaller weights"


def test_the_first_screen_answers_and_says_what_is_no_answer():
    first = README[: README.index("## What is in it")]
    assert "| Chat, one user |" in first
    assert "Unsmoothed INT8 is no answer" in first
    assert all(name in first for name in ("OPT", "Llama-3-70B", "qsim evidence"))
    assert "RTN W8A8" not in README


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_the_first_table_is_that_of_the_shipped_study():
    """`python reports/readme_table.py` prints it."""
    from qsim.study import read_result

    spec = importlib.util.spec_from_file_location("readme_table", ROOT / "reports" / "readme_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = read_result(ROOT / "reports" / "study")
    assert module.table(result) in README
    answers = [d for d in result.decisions if d.model == "llama-3-8b" and d.device in module.DEVICES]
    assert all(d.title in module.cell(d) for d in answers)
    same = sum(a.agrees for a in result.agreement)
    assert f"{same} of {len(result.agreement)}" in README
