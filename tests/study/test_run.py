"""The run: what it writes, that it can be interrupted, and that two runs agree."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from qsim.study import StudyResult, StudySpec, diff_studies, read_result, run_study, write_study
from qsim.study.result import TABLES, to_json
from qsim.study.run import Run


def small(spec: StudySpec) -> StudySpec:
    """Fewer methods and one model, for runs that are made twice."""
    return replace(
        spec, methods=spec.methods[:2], speed=replace(spec.speed, models=("llama-3-8b",)),
        quality=replace(spec.quality, max_bytes=256, exact_bytes=16),
    )  # fmt: skip


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the validation, which is the same every time, and with two figures instead of twelve."""
    from qsim.study import report

    all_of_them = report.drawings
    monkeypatch.setattr("qsim.study.trust.trust_tables", lambda layers=True: ((), ()))
    monkeypatch.setattr(report, "drawings", lambda result: list(all_of_them(result))[:2])


def test_the_folder_holds_everything(written: Path, run: Run) -> None:
    assert sorted(p.name for p in written.iterdir()) == ["data", "index.html", "study.json", "study.toml"]
    for name, rows in run.result.tables():
        table = pd.read_csv(written / "data" / f"{name}.csv")
        assert len(table) == len(rows), name


def test_every_table_of_the_result_is_written(run: Run) -> None:
    expected = [name for name in TABLES if name != "profiles"]  # of the embedded model only
    assert [name for name, _ in run.result.tables()] == expected


def test_study_json_is_the_whole_result(written: Path, run: Run, tmp_path: Path) -> None:
    again = read_result(written)
    assert again == run.result
    assert to_json(again) == (written / "study.json").read_text(encoding="utf-8")
    write_study(again, tmp_path / "again")
    for path in (p for p in written.rglob("*") if p.is_file()):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(written)).read_bytes(), path.name


def test_two_runs_give_the_same_bytes(spec: StudySpec, tmp_path: Path, quickly: None) -> None:
    for name in ("a", "b"):
        run_study(small(spec), tmp_path / name)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    assert diff_studies(read_result(tmp_path / "a"), read_result(tmp_path / "b")) == ()


def interrupted(spec: StudySpec, out: Path) -> None:
    """A study that ends where the tensors begin, as by Ctrl-C."""

    def stop(done: int, total: int, step: str) -> None:
        if step == "tensors":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(spec, out, progress=stop)


def test_an_interrupted_study_goes_on(spec: StudySpec, tmp_path: Path, quickly: None) -> None:
    out = tmp_path / "s"
    interrupted(small(spec), out)
    assert [p.name for p in out.iterdir()] == [".parts"]
    said: list[tuple[int, int, str]] = []
    done = run_study(small(spec), out, progress=lambda *step: said.append(step))
    assert set(done.resumed) == {"quality-none:bf16", "quality-rtn:w4a16-g128"}
    assert not (out / ".parts").exists()
    assert done.result == run_study(small(spec)).result
    assert [s[0] for s in said] == sorted(s[0] for s in said)
    assert said[-1][:2] == (said[-1][1], said[-1][1])


def test_parts_of_another_question_are_not_taken(spec: StudySpec, tmp_path: Path, quickly: None) -> None:
    out = tmp_path / "s"
    interrupted(small(spec), out)
    other = replace(small(spec), quality=replace(small(spec).quality, window=32))
    assert run_study(other, out).resumed == ()


def test_a_finished_study_is_replaced_only_by_force(spec: StudySpec, tmp_path: Path, quickly: None) -> None:
    out = tmp_path / "s"
    run_study(small(spec), out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match="holds a finished study: choose another folder with --out, or replace it"):
        run_study(small(spec), out)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    (out / "mine.txt").write_text("keep me", encoding="utf-8")
    other = replace(small(spec), title="another")
    run_study(other, out, force=True)
    assert read_result(out).spec.title == "another"
    assert (out / "mine.txt").read_text(encoding="utf-8") == "keep me"


def test_a_quick_study_says_what_it_leaves_out(run: Run, tmp_path: Path, quickly: None) -> None:
    out = tmp_path / "s"
    write_study(run.result, out)
    (out / "figures").mkdir()
    for name in ("mine.png", "quality_loss.png", "rooflines.svg"):
        (out / "figures" / name).write_bytes(b"")
    assert "A quick study" not in (out / "index.html").read_text(encoding="utf-8")
    write_study(replace(run.result, quick=True, claims=()), out)
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "A quick study. Quality is measured on 1,023 bytes of text in windows of 64 tokens" in page
    assert "AWQ tried 20 scales per layer, and 64 bytes of text went through the tensor-core emulator" in page
    left = {p.name for p in (out / "figures").iterdir()}
    assert left == {"mine.png"}  # those of the study before are gone: they would pass for this one's
    assert not (out / "data" / "claims.csv").exists()


def test_a_quick_study_fits_no_layer_again(monkeypatch: pytest.MonkeyPatch, spec: StudySpec) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("qsim.study.trust.trust_tables", lambda layers=True: asked.append(layers) or ((), ()))
    run_study(small(spec), quick=True)
    run_study(small(spec))
    assert asked == [False, True]


@pytest.mark.parametrize("name", ["notes.txt", "index.html"])
def test_a_folder_of_other_things_is_left_alone(spec: StudySpec, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="choose another folder"):
        run_study(small(spec), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_file_is_not_a_folder(spec: StudySpec, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x", encoding="utf-8")
    with pytest.raises(NotADirectoryError, match="is a file: --out names a folder"):
        run_study(small(spec), tmp_path / "f")


def test_nothing_is_written_outside_the_folder(
    spec: StudySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quickly: None
) -> None:
    monkeypatch.chdir(tmp_path)
    model = Path(spec.quality.model)
    before = sorted(p.name for p in model.iterdir())
    run_study(small(spec), "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert sorted(p.name for p in model.iterdir()) == before


def test_names_are_checked_before_any_work(spec: StudySpec, tmp_path: Path) -> None:
    wrong = replace(spec, speed=replace(spec.speed, models=("llama-9",)))
    with pytest.raises(ValueError, match="unknown model 'llama-9'"):
        run_study(wrong, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_damaged_or_foreign_study_is_refused(tmp_path: Path, run: Run) -> None:
    with pytest.raises(ValueError, match="holds no study"):
        read_result(tmp_path)
    file = tmp_path / "study.json"
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="is not a study of this version: spec: Field required"):
        read_result(file)
    table = json.loads(to_json(run.result))
    file.write_text(json.dumps({**table, "schema_version": 99}), encoding="utf-8")
    with pytest.raises(ValueError, match="has version 99; this program reads version 2"):
        read_result(file)


def test_everything_assumed_is_in_the_notes(run: Run) -> None:
    result: StudyResult = run.result
    assert any("no FP8 product on a100-sxm-80gb: priced as weight-only" in n for n in result.notes)
    assert any("fused layers: assumed" in n for n in result.notes)
    assert len(result.notes) == len(set(result.notes))


def test_differences_say_what_moved_and_whether_for_sure(run: Run) -> None:
    result = run.result
    assert diff_studies(result, result) == ()
    first = result.speed[0]
    speed = (replace(first, value=2 * first.value, low=2 * first.low, high=2 * first.high), *result.speed[1:])
    rows = (result.quality[0], replace(result.quality[1], loss=result.quality[1].loss + 1e-6), *result.quality[2:])
    other = replace(
        result, speed=speed, quality=rows, decisions=result.decisions[1:],
        spec=replace(result.spec, quality=replace(result.spec.quality, seed=7)),
    )  # fmt: skip
    changes = {c.part: c for c in diff_studies(result, other)}
    assert (changes["question"].what, changes["question"].after) == ("quality.seed", "7")
    assert changes["quality"].sure is False
    assert (changes["speed"].relative, changes["speed"].sure) == (pytest.approx(1.0), True)
    assert changes["decision"].after == "absent"
