"""`qsim study`, its subcommands, and `qsim bench`, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click.testing
import pytest

from qsim.cli import main
from qsim.cli.study_options import spec_from
from qsim.study.spec import check

NOTHING: dict[str, Any] = {
    "file": None, "model": (), "text": None, "calibration": None, "device": (), "overrides": (), "scheme": (),
    "method": (), "batch": None, "context": None, "max_loss": None, "rows": None, "profile": None, "max_bytes": None,
    "price": (), "workload": (),
}  # fmt: skip


def run(*args: str, code: int = 0, **env: str) -> click.testing.Result:
    result = click.testing.CliRunner().invoke(main, list(args), prog_name="qsim", env={"COLUMNS": "100", **env})
    assert result.exit_code == code, result.output
    return result


def asked(**given: Any) -> Any:
    return check(spec_from({**NOTHING, **given}))


def test_without_options_it_is_the_default_study() -> None:
    from qsim.study import StudySpec

    assert asked() == check(StudySpec())


def test_options_make_the_users_own_case(tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("text", encoding="utf-8")
    spec = asked(
        device=("l40s", "asic"), overrides=("memory.bandwidth_gbytes_per_s=6000",), scheme=("w4a16-g64",),
        method=("gptq:w3a16-g128",), batch=8, context=4096, text=text, max_loss=2.5, rows=text,
        profile="eager",
    )  # fmt: skip
    assert [m.name for m in spec.methods] == [
        "none:bf16", "rtn:w4a16-g64", "gptq:w4a16-g64", "awq:w4a16-g64", "gptq:w3a16-g128",
    ]  # fmt: skip
    assert [d.set for d in spec.speed.devices] == [{"memory.bandwidth_gbytes_per_s": 6000}] * 2
    assert spec.speed.devices[1].accumulator is not None  # the ASIC keeps the adder that it is given
    assert [(c.phase, c.batch, c.context) for c in spec.cases] == [
        ("decode", 8, 4096), ("prefill", 8, 4096), ("request", 8, 4096),
    ]  # fmt: skip
    assert (spec.quality.text, spec.max_lost, spec.evidence) == (str(text), 2.5, str(text))
    assert spec.speed.profile == "eager"


def test_a_case_of_the_command_line_is_a_workload() -> None:
    spec = asked(workload=("serve:64:2000:300", "prefill:1:8192"))
    assert [(c.phase, c.batch, c.context, c.new_tokens, c.measure) for c in spec.cases] == [
        ("serve", 64, 2000, 300, "tokens_per_s"), ("prefill", 1, 8192, 256, "ttft"),
    ]  # fmt: skip
    assert spec.cases[0].title == "Serving, 64 users of 2000 + 300"


def test_a_config_is_priced_and_a_checkpoint_is_measured_too(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 256, "hidden_size": 128,
              "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
              "intermediate_size": 256}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    only = asked(model=(str(tmp_path / "config.json"),))
    assert (only.speed.models, only.quality.model) == ((str(tmp_path / "config.json"),), "tiny")
    assert asked(model=(str(tmp_path),)).quality.model == "tiny"
    (tmp_path / "model.safetensors").write_bytes(b"")
    both = asked(model=(str(tmp_path), "llama-3-8b"))
    assert both.quality.model == str(tmp_path)
    assert both.speed.models == (str(tmp_path), "llama-3-8b")
    assert (both.quality.exact_bytes, only.quality.exact_bytes > 0) == (0, True)  # emulating it would take hours
    assert asked(max_bytes=4096).quality.max_bytes == 4096


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--set", "memory.bandwidth_gbytes_per_s=1"), "--set changes the devices named with --device: name one"),
        (("--device", "h1000"), "unknown device 'h1000'"),
        (("--scheme", "w4a17"), "unknown scheme 'w4a17'"),
        (("--method", "magic:fp8"), "--method: methods.0.algorithm: unknown method 'magic'"),
        (("--text", "no-such-file.txt"), "--text: no-such-file.txt does not exist"),
        (("--max-loss", "-1"), "--max-loss must be above 0 and at most 100 percent of a score: got -1"),
        (("--model", "llama-9"), "unknown model 'llama-9'"),
        (("--file", "no-such.toml"), "no-such.toml: No such file or directory"),
        (("--json", "--csv"), "--json and --csv both want stdout"),
        (("--case", "serv:1:2"), "unknown kind of case 'serv'"),
        (
            ("--case", "serve:32"),
            "must be KIND:N:PROMPT or KIND:N:PROMPT:NEW with whole numbers above 0: got 'serve:32'",
        ),
        (("--case", "serve:0:100"), "whole numbers above 0"),
        (("--case", "serve:4:100", "--batch", "2"), "--case and --batch or --context both say what runs"),
        (("--device", "asic", "--set", "memory.bandwith=1"), "unknown key 'memory.bandwith'"),
    ],
)
def test_a_mistake_is_one_sentence_and_makes_no_folder(
    args: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("study", *args, code=2)
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_traceback_on_request_from_a_subcommand_too(tmp_path: Path) -> None:
    result = run("study", "diff", str(tmp_path), str(tmp_path), "--verbose", code=2)
    assert "Traceback" in result.stderr
    assert "holds no study" in result.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two methods on little text, through the command."""
    root = tmp_path_factory.mktemp("cli")
    (root / "s.toml").write_text(
        "[quality]\nmax_bytes = 600\nexact_bytes = 0\noutlier_bytes = 0\nwindow = 128\ncalibration_tokens = 256\n",
        encoding="utf-8",
    )
    with pytest.MonkeyPatch.context() as patch:
        from qsim.study import report

        drawings = report.drawings
        patch.setattr("qsim.study.trust.trust_tables", lambda layers=True: ((), ()))
        patch.setattr(report, "drawings", lambda result: list(drawings(result))[:1])
        result = run("study", "--file", str(root / "s.toml"), "--out", str(root / "out"), "--device", "l40s", "--model",
                     "llama-3-8b", "--scheme", "w8a16-channel", "--method", "fp8:fp8-tensor", "--json")  # fmt: skip
    (root / "answers.json").write_text(result.stdout, encoding="utf-8")
    assert "[1/" in result.stderr
    return root


def test_the_answers_are_printed_as_json(folder: Path) -> None:
    rows = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    assert len(rows) == 5
    assert {row["device"] for row in rows} == {"l40s"}
    assert all(row["low"] < row["value"] < row["high"] for row in rows)


def test_an_existing_study_stays_without_force(folder: Path) -> None:
    result = run("study", "--file", str(folder / "s.toml"), "--out", str(folder / "out"), code=2)
    assert "holds a finished study" in result.stderr


def test_render_draws_again_from_the_json_alone(folder: Path, tmp_path: Path) -> None:
    result = run("study", "render", str(folder / "out" / "study.json"), "--out", str(tmp_path / "again"))
    assert "wrote" in result.stdout
    assert (tmp_path / "again" / "study.json").read_bytes() == (folder / "out" / "study.json").read_bytes()
    assert not (tmp_path / "again" / ".parts").exists()


def test_diff_has_an_exit_code(folder: Path, tmp_path: Path) -> None:
    out = folder / "out"
    assert run("study", "diff", str(out), str(out)).stdout == "no difference\n"
    table = json.loads((out / "study.json").read_text(encoding="utf-8"))
    table["quality"][1]["loss"] += 0.5
    (tmp_path / "study.json").write_text(json.dumps(table), encoding="utf-8")
    rows = json.loads(run("study", "diff", str(out), str(tmp_path), "--json", code=1).stdout)
    assert [(row["part"], row["sure"]) for row in rows] == [("quality", True)]
    assert "quality" in run("study", "diff", str(out), str(tmp_path), code=1).stdout


def test_bench_times_kernels_against_both_limits() -> None:
    args = ("bench", "--scheme", "w8a8", "--batch", "1,4", "--shape", "256x512")
    found = json.loads(run(*args, "--json").stdout)
    assert found["bandwidth_bytes_per_s"] > 1e8
    rows = [r for r in found["rows"] if r["kernel"] == "w8a8"]
    assert [r["tokens"] for r in rows] == [1, 4]
    for r in rows:
        assert r["gop_per_s"] == pytest.approx(2 * r["tokens"] * 256 * 512 / r["time_s"] / 1e9)
        assert r["of_bandwidth"] == pytest.approx(r["gbytes_per_s"] * 1e9 / found["bandwidth_bytes_per_s"])


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--shape", "12"), "'12' is not a shape like 4096x11008"),
        (("--scheme", "bf16"), "bf16 quantises nothing"),
        (("--scheme", "w4a16-g128", "--shape", "256x100"), "must divide"),
        (("--batch", "0"), "numbers are positive"),
    ],
)
def test_bench_refuses_what_it_cannot_time(args: tuple[str, ...], says: str) -> None:
    assert says in run("bench", *args, code=2).stderr
