"""The folder of a study: it takes its place whole, goes on after a kill, and leaves what is not its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from qsim import files
from qsim.cli import main
from qsim.errors import QsimError
from qsim.study import StudySpec, read_result, read_spec, run_study
from qsim.study import folder as folder_module
from qsim.study.folder import Parts, prepare, settle
from tests.crash.scenarios import given_numbers, snapshot


@pytest.fixture(autouse=True)
def _given() -> object:
    with given_numbers():
        yield


def spec(title: str) -> StudySpec:
    return StudySpec(title=title)


def stop_at(step: str) -> object:
    def progress(done: int, total: int, what: str) -> None:
        if what == step:
            raise KeyboardInterrupt

    return progress


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """An unfinished study in a folder that holds a finished one, begun with --force."""
    out = tmp_path / "s"
    run_study(spec("before"), out)
    with pytest.raises(KeyboardInterrupt):
        run_study(spec("after"), out, force=True, progress=stop_at("figures and page"))
    return out


def test_an_interrupted_replacement_leaves_the_study_before(begun: Path) -> None:
    assert read_result(begun).spec.title == "before"
    done = run_study(spec("after"), begun, force=True)
    assert done.resumed == ("quality-gptq:w4a16-g64", "quality-rtn:mxfp4")
    assert done.notes == ()
    assert read_result(begun).spec.title == "after"
    assert not (begun / ".parts").exists()


def test_another_question_does_not_replace_a_finished_study_because_one_was_begun(begun: Path) -> None:
    with pytest.raises(QsimError, match="holds a finished study: choose another folder with --out"):
        run_study(spec("third"), begun)
    assert read_result(begun).spec.title == "before"
    run_study(spec("after"), begun)  # the one that was allowed to
    assert read_result(begun).spec.title == "after"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-3]), "its checksum is wrong"),
        (lambda p: p.write_bytes(b""), "cut off"),
        (lambda p: p.write_bytes(next(p.parent.glob("quality-rtn*.piece")).read_bytes()), "belongs to another"),
    ],
)
def test_a_damaged_part_is_made_again_and_said(begun: Path, damage: object, says: str) -> None:
    part = next((begun / ".parts").glob("quality-gptq*.piece"))
    damage(part)  # type: ignore[operator]
    done = run_study(spec("after"), begun)
    assert done.resumed == ("quality-rtn:mxfp4",)
    (note,) = done.notes
    assert says in note
    assert str(part) in note


def test_a_part_of_another_version_is_made_again(tmp_path: Path) -> None:
    prepare(tmp_path, "question", force=False)
    Parts(tmp_path).get("x", 1, list[int], lambda: [1])
    parts = Parts(tmp_path)
    assert parts.get("x", 1, dict[str, str], lambda: {"a": "b"}) == {"a": "b"}
    assert parts.resumed == []
    assert "it was written by another version" in parts.notes[0]
    parts = Parts(tmp_path)
    assert parts.get("x", 1, dict[str, str], lambda: {}) == {"a": "b"}
    assert parts.get("x", 2, dict[str, str], lambda: {}) == {}
    assert parts.resumed == ["x"]


def test_a_folder_of_the_users_called_parts_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".parts").mkdir()
    (tmp_path / ".parts" / "engine.step").write_text("years of work")
    for force in (False, True):
        with pytest.raises(QsimError, match="parts is not of an unfinished study: choose another folder"):
            run_study(spec("a"), tmp_path, force=force)
    assert (tmp_path / ".parts" / "engine.step").read_text() == "years of work"
    assert [p.name for p in tmp_path.iterdir()] == [".parts"]


def test_moves_that_a_kill_cut_short_are_finished_by_whoever_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "s"
    run_study(spec("after"), whole)
    for stop in range(1, 5):
        made: list[object] = []

        def replace(a: Path, b: Path, made: list[object] = made, stop: int = stop) -> None:
            if ".ready" in Path(a).parts:
                made.append(b)
                if len(made) == stop:
                    raise KeyboardInterrupt
            Path(a).replace(b)

        run_study(spec("before"), out, force=True)
        with monkeypatch.context() as patch:
            patch.setattr(files, "replace", replace)
            with pytest.raises(KeyboardInterrupt):
                run_study(spec("after"), out, force=True)
        assert not (out / "study.json").exists()  # nothing that would pass for a whole study
        assert read_result(out).spec.title == "after"
        found = {k: v for k, v in snapshot(out).items() if not k.startswith(".parts")}
        assert found == snapshot(whole)


def test_only_files_of_a_study_are_moved_or_removed(tmp_path: Path) -> None:
    """A folder from elsewhere must not reach beyond the study's own files."""
    ready = tmp_path / "s" / ".ready"
    (ready / "data").mkdir(parents=True)
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "s" / "mine.txt").write_text("years of work")
    (ready / "study.json").write_text("{}")
    (ready / "mine.txt").write_text("other")
    (ready / "obsolete.json").write_text(json.dumps(["../thesis.txt", "mine.txt", "data/../../thesis.txt"]))
    with pytest.raises(QsimError, match="ready holds mine.txt, which no study writes: move it away"):
        settle(tmp_path / "s")
    (ready / "mine.txt").unlink()
    settle(tmp_path / "s")
    assert not ready.exists()
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert (tmp_path / "s" / "mine.txt").read_text() == "years of work"


def test_ctrl_c_says_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def study(*more: str) -> object:
        return CliRunner().invoke(main, ["study", "--out", str(tmp_path / "s"), *more], prog_name="qsim")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folder_module.Parts, "get", interrupted)
        result = study()
    assert result.exit_code == 1
    assert "interrupted: no part of the study is finished; the same command starts again" in result.stderr
    with monkeypatch.context() as patch:
        patch.setattr("qsim.study.report.write_study", interrupted)
        result = study()
    assert result.exit_code == 1
    where = tmp_path / "s" / ".parts"
    says = f"interrupted: 2 parts of the study are finished in {where}; the same command goes on from there"
    assert says in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b"{", b"", b"a = [" + b"[" * 5000, b"title = 3"])
def test_files_that_are_no_study_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    for name, read in (("study.json", read_result), ("study.toml", read_spec)):
        (tmp_path / name).write_bytes(content)
        if (name, content) == ("study.toml", b""):  # a study of defaults
            continue
        with pytest.raises(QsimError, match=name) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)
