"""Notes have codes; programs read the code and never the words."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from pydantic import TypeAdapter

import hwmodels
from qsim.notes import Note, code_of, pick, without

NOTE = Note("does_not_fit", "too large for it", where="lm_head")


def test_a_note_is_its_text_and_knows_its_code() -> None:
    assert NOTE == "too large for it"
    assert f"{NOTE}; {Note('x', 'y')}" == "too large for it; y"
    assert json.dumps([NOTE]) == '["too large for it"]'
    assert (code_of(NOTE), NOTE.where, code_of("a plain sentence")) == ("does_not_fit", "lm_head", "")
    assert "does_not_fit" in repr(NOTE)
    with pytest.raises(AttributeError, match="cannot be changed"):
        NOTE.code = "other"


def test_a_note_keeps_its_code_where_values_travel() -> None:
    for again in (pickle.loads(pickle.dumps(NOTE)), copy.deepcopy(NOTE)):
        assert (again, again.code, again.where) == (NOTE, NOTE.code, NOTE.where)
    adapter: TypeAdapter[tuple[Note, ...]] = TypeAdapter(tuple[Note, ...])
    (again,) = adapter.validate_json(adapter.dump_json((NOTE,)))
    assert (str(again), again.code, again.where) == (str(NOTE), NOTE.code, NOTE.where)


def test_notes_are_told_apart_by_their_codes() -> None:
    other = Note("waves", "does_not_fit: the words do not matter")
    assert without([NOTE, other, "plain"], "does_not_fit") == [other, "plain"]
    assert pick([other, NOTE], "does_not_fit") is NOTE
    assert pick([other], "does_not_fit") is None


def test_other_words_change_no_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortage in words that nothing here looks for: requests and the study treat it as before."""
    from qsim.study import hardware
    from qsim.study.spec import Case, DeviceSpec, Speed, StudySpec, check

    monkeypatch.setattr("hwmodels.prediction._shortage", lambda *how: Note("does_not_fit", "zu klein"))
    p = hwmodels.predict("rtx-4090", "llama-3-70b", "bf16")
    assert p.notes[0] == "zu klein"
    request = hwmodels.predict_request("rtx-4090", "llama-3-70b", "bf16", prompt=64, new_tokens=8, capacity=False)
    assert "zu klein" not in request.notes
    cases = (Case(name="one", batch=1, context=64),)
    spec = check(StudySpec(cases=cases, speed=Speed(devices=(DeviceSpec(name="rtx-4090"),), models=("llama-3-70b",))))
    rows, notes = hardware.speed_table(spec)
    assert any("zu klein" in row.notes for row in rows)
    assert not any("zu klein" in note for note in notes)
