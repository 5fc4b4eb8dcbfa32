"""Sentences for people are plain English: what can be checked by a pattern is checked here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

COUNTED = (
    r"bits?|bytes?|nats?|ms|us|GB|FLOPs?|dB|scales?|rows?|tables?|seconds?|values?|codes?|words?|products?|points|"
    r"files?|lines?|tokens?|sequences?|operations?|instances?|entry|entries|elements?|zero points?|curves?|columns?|"
    r"sentences?|factors?|pairs?|vectors?|queries|query|kernels|launch(?:es)?|requests?|panels?|colours?|markers?|windows|one|two"
)
EACH = (
    "byte|row|token|second|kind|group|block|element|column|channel|tensor|layer|file|step|line|method|layout|family|device|"
    "head|weight|model|product|word|combination|case|scheme|format|sequence|expert|cell|verb|bit|value|chip|section|"
    "operator|instruction|slot|tile|GPU|core|window|parameter|user|request|page|128x128 block|output row|entry|message"
)
DISTRIBUTIVE = re.compile(rf"\b(?:{COUNTED}) an? (?:{EACH})\b")
"""'one scale a row' for 'one scale per row': correct in old prose, and misread by everyone."""

ALLOWED = {
    "the files a tensor": "of which a tensor is made",
    "files a tensor of": "of which a tensor is made",
    "scales a tensor of": "that a tensor of this shape has",
    "the bits a GPU": "that a GPU gives",
}
"""A clause without 'that', in which the article is the subject's: what is meant."""

TEXTS = sorted(
    path
    for pattern in ("*.md", "qsim/**/*", "hwmodels/**/*", "examples/**/*", "reports/*", "tests/**/*.py")
    for path in ROOT.glob(pattern)
    if path.suffix in {".py", ".md", ".toml", ".j2", ".ipynb", ".pyi"} and path != Path(__file__)
)


def prose(text: str) -> str:
    """One line of a source: wrapped comments, docstrings and neighbouring string literals are joined; no pictures."""
    text = re.sub(r"[^\n]{3000,}", "", text)
    text = re.sub(r"""(?<!")"\s*\n\s*f?"(?!")|\\n",\s*\n\s*"|\n\s*#:?\s""", " ", text)
    return re.sub(r"\s+", " ", text)


def distributive(text: str) -> list[str]:
    found = []
    line = prose(text)
    for hit in DISTRIBUTIVE.finditer(line):
        around = line[max(0, hit.start() - 25) : hit.end() + 25]
        if not any(phrase in around for phrase in ALLOWED):
            found.append(around)
    return found


@pytest.mark.parametrize(
    "text",
    [
        '"""A scale a row."""', "bits a byte", "ms a token", 'f"{n} bytes a row"', "# one scale\n    # a tensor",
        '("one scale "\n    "a row")', "tokens\n    a second", "| KL, nats a token |", "one entry an output row",
    ],
)  # fmt: skip
def test_the_pattern_finds_it_in_every_place(text):
    assert distributive(text)


@pytest.mark.parametrize(
    "text", ["one scale per row", "gives a token a number", "bits, a byte", "as a value a caller passes", "holds a row",
             "of the bits a GPU gives"],
)  # fmt: skip
def test_the_pattern_leaves_other_sentences_alone(text):
    assert not distributive(text)


def test_a_rate_is_said_with_per():
    hits = {path.relative_to(ROOT): distributive(path.read_text("utf-8")) for path in TEXTS}
    wrong = [f"{path}: ...{hit}..." for path, found in hits.items() for hit in found]
    assert not wrong, "write 'X per Y', not 'X a Y':\n" + "\n".join(wrong)


def test_every_exception_of_the_pattern_is_used():
    everything = [prose(path.read_text("utf-8")) for path in TEXTS]
    assert [phrase for phrase in ALLOWED if not any(phrase in text for text in everything)] == []
