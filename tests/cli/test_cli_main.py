"""The command as a whole: its map, its speed, its manners."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import qsim
from qsim.cli import main
from qsim.cli.verbs import VERBS

ROOT = Path(__file__).parents[2]


def run(*args: str, **env: str) -> click.testing.Result:
    return CliRunner().invoke(main, list(args), prog_name="qsim", env={"COLUMNS": "80", **env})


def test_help_is_a_map_of_the_verbs_and_each_says_the_same_in_its_own_help() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert result.output.index("Learn:") < result.output.index("  formats") < result.output.index("  cast")
    lines = result.output.splitlines()
    for verb in VERBS.values():
        assert f"  {verb.name.ljust(max(map(len, VERBS)))}  {verb.says}" in lines
        assert run(verb.name, "--help", COLUMNS="120").output.splitlines()[2].strip() == verb.says


def test_every_verb_has_a_file_and_every_file_of_a_verb_is_shown() -> None:
    decorated = {p.stem for p in (ROOT / "qsim" / "cli").glob("*.py") if "@verb(" in p.read_text(encoding="utf-8")}
    assert decorated == set(VERBS)


def test_every_shown_verb_loads_and_explains_itself() -> None:
    ctx = click.Context(main)
    for verb in main.list_commands(ctx):
        assert isinstance(main.get_command(ctx, verb), click.Command)
        result = run(verb, "--help")
        assert result.exit_code == 0
        assert "--verbose" in result.output


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from qsim.cli import main\n"
        "main(['--help'], prog_name='qsim', standalone_mode=False)\n"
        "print('loaded', sorted({'numpy', 'numba', 'matplotlib', 'rich', 'pandas', 'scipy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_module_runs_as_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qsim", "cast", "-0.3", "--to", "e4m3", "--json"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert '"result": -0.3125' in done.stdout


def test_shell_completion_offers_the_verbs() -> None:
    env = {**os.environ, "_QSIM_COMPLETE": "bash_complete", "COMP_WORDS": "qsim ca", "COMP_CWORD": "1"}
    code = "from qsim.cli import main; main(prog_name='qsim')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=env)
    assert "plain,cast" in done.stdout.split()


def test_unknown_verb_names_the_nearest() -> None:
    result = run("fromats")
    assert result.exit_code == 2
    assert "the nearest is formats" in result.stderr


@pytest.mark.parametrize(
    "where", [("--verbose", "cast", "1", "--to", "e4m33"), ("cast", "1", "--to", "e4m33", "--verbose")]
)
def test_a_mistake_is_one_sentence_and_a_traceback_on_request(where: tuple[str, ...]) -> None:
    plain = run("cast", "1", "--to", "e4m33")
    assert plain.exit_code == 2
    assert plain.stdout == ""
    assert plain.stderr.startswith("qsim: unknown format 'e4m33': the nearest are ")
    assert len(plain.stderr.splitlines()) == 1
    verbose = run(*where)
    assert verbose.exit_code == 2
    assert "Traceback" in verbose.stderr
    assert verbose.stderr.endswith(plain.stderr)


def test_version() -> None:
    assert run("--version").output == f"qsim {qsim.__version__}\n"


TABLES = ("formats", "cast", "mma", "eval", "outliers", "devices", "predict", "roofline", "sweep", "calibrate",
          "validate", "bench", "study", "serve", "plan")  # fmt: skip
"""Verbs that print a table."""
MEANS_ONE_THING = {
    "--device": ("NAME",), "--scheme": ("NAME",), "--batch": ("B", None), "--context": ("L", None),
    "--set": ("[DEVICE:]KEY=VALUE",), "--plot": ("FILE",), "--profile": ("NAME",), "--model": ("MODEL",),
    "--text": ("FILE",), "--outliers": ("SIZE|PROFILE",), "--max-bytes": ("N",),
}  # fmt: skip
"""Options that several verbs have -> what their value is called."""


@pytest.mark.parametrize("verb", TABLES)
def test_every_table_leaves_as_json_and_csv(verb: str) -> None:
    command = main.get_command(click.Context(main), verb)
    assert command is not None
    options = {opt for p in command.params for opt in p.opts}
    assert {"--json", "--csv", "--verbose"} <= options


def test_an_option_means_the_same_everywhere() -> None:
    ctx = click.Context(main)
    for verb in main.list_commands(ctx):
        command = main.get_command(ctx, verb)
        assert command is not None
        for p in command.params:
            for opt in set(p.opts) & MEANS_ONE_THING.keys():
                assert p.metavar in MEANS_ONE_THING[opt], f"qsim {verb} {opt} takes {p.metavar}"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(shell: str) -> None:
    out = run("--completion", shell).output
    assert "_QSIM_COMPLETE" in out
    assert "qsim" in out


def test_shell_completion_offers_devices_and_models() -> None:
    for words, offered in (("qsim predict llama-3-8b --device l40", "l40s"), ("qsim predict llama-3-7", "llama-3-70b"),
                           ("qsim sweep llama-3-8b --scheme nvf", "nvfp4")):  # fmt: skip
        env = {**os.environ, "_QSIM_COMPLETE": "bash_complete", "COMP_WORDS": words,
               "COMP_CWORD": str(len(words.split()) - 1)}  # fmt: skip
        code = "from qsim.cli import main; main(prog_name='qsim')"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=env)
        assert f"plain,{offered}" in done.stdout.split(), words


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("predict", "llama-3-8b", "--batch", "many"), "'--batch': 'many' is not a valid integer"),
        (("predict",), "Missing argument 'MODEL'"),
        (("sweep", "llama-3-8b", "--bach", "1"), "--bach"),
        (("study", "diff", "a"), "Missing argument 'B'"),
        (("--nosuch",), "--nosuch"),
    ],
)
def test_what_click_finds_is_one_sentence_like_all_others(args: tuple[str, ...], says: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("qsim: ")
    assert says in line
    assert " (see qsim" in line
    assert line.endswith("--help)")


def test_every_option_says_what_it_does() -> None:
    ctx = click.Context(main)
    for verb in main.list_commands(ctx):
        command = main.get_command(ctx, verb)
        assert command is not None
        inner = list(command.commands.values()) if isinstance(command, click.Group) else []
        for one in (command, *inner):
            for p in one.params:
                assert not isinstance(p, click.Option) or p.help, f"qsim {verb} {p.opts[0]} has no help"


def test_what_replaces_files_is_called_force_everywhere() -> None:
    ctx = click.Context(main)
    for verb in ("quantize", "study"):
        command = main.get_command(ctx, verb)
        assert command is not None
        assert any("--force" in p.opts for p in command.params)


REPEATED = [
    ("predict", "llama-3-8b", "--tp", "1", "--tp", "2"),
    ("predict", "llama-3-8b", "--scheme", "bf16", "--scheme", "fp8"),
    ("roofline", "llama-3-8b", "--tp", "1", "--tp", "2"),
    ("sweep", "llama-3-8b", "--batch", "1", "--batch", "2"),
    ("validate", "--data", "a", "--data", "b"),
]


@pytest.mark.parametrize("args", REPEATED)
def test_an_option_of_one_value_is_not_taken_twice(args: tuple[str, ...]) -> None:
    """click would keep the last one without a word."""
    found = run(*args)
    assert found.exit_code == 2
    assert "2 times: it takes one value" in found.output


def test_every_verb_refuses_repeats() -> None:
    ctx = click.Context(main)
    for verb in main.list_commands(ctx):
        command = main.get_command(ctx, verb)
        for one in (command, *(command.commands.values() if isinstance(command, click.Group) else ())):
            assert one is not None
            options = [p for p in one.params if isinstance(p, click.Option) and not p.multiple and not p.is_flag]
            for option in options:
                twice = [option.opts[0], "1"] * 2
                with pytest.raises(click.UsageError, match="it takes one value"):
                    one.make_parser(click.Context(one)).parse_args(twice)
