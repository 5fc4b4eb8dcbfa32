"""Every lesson links to the page in the state of its question, and the question has an answer there."""

from __future__ import annotations

import json
import re
from pathlib import Path

from qsim.explore.numbers import formats
from qsim.explore.page import CASES, MODEL
from qsim.explore.parameters import export

from .browser import computed

ROOT = Path(__file__).parents[2]
MODULES = ["law.js", "charts.js", "codec.js", "numbers.js", "views.js", "questions.js", "state.js", "answers.js"]
OPEN = """
Law.load(data.parameters);
Numbers.init(data.config.formats);
return data.links.map((link) => {
  const { state, wrong } = State.fromText(link, data.config, data.parameters), question = Questions.ALL[state.question];
  if (!question) return { wrong, ask: "", answer: null };
  const found = Answers.local(Answers.questionOf(state)), device = state.cases[state.on].device;
  const how = { width: 600, batch: state.batch, phase: state.phase, device, cases: state.cases };
  found.views = { speedup: Views.speedup(found.curves, how) };
  const answer = question.answer(state, found);
  return { wrong, ask: question.ask(state), answer: answer === null ? question.none : question.say(answer) };
});
"""


def test_every_lesson_opens_the_page_with_its_question(tmp_path: Path) -> None:
    links = {}
    for path in sorted((ROOT / "examples/notebooks").glob("[0-9]_*.ipynb")):
        first = "".join(json.loads(path.read_text("utf-8"))["cells"][0]["source"])
        found = re.search(r"\]\(\.\./\.\./(reports/explore/index\.html)#([^)]+)\)", first)
        assert found is not None, f"{path.name} has no link to the page"
        assert (ROOT / found[1]).is_file()
        links[path.name] = found[2]
    assert len(links) >= 8
    config = {"model": MODEL, "cases": list(CASES), "formats": formats()}
    data = {"parameters": export(), "config": config, "links": list(links.values())}
    for name, here in zip(links, computed(MODULES, data, OPEN, tmp_path), strict=True):
        assert here["wrong"] == [], name
        assert here["ask"].startswith("Before you look"), name
        assert here["answer"], name
