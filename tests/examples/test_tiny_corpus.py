"""The corpus of the tiny model: what is read, what may be held out, and that a library always splits the same way."""

from __future__ import annotations

import hashlib
import json
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from tiny_lm import corpus


def prose(seed: int, words: int = 300) -> bytes:
    """Lines of words that no other seed shares 13 in a row with."""
    generator = random.Random(seed)
    text = " ".join(f"w{generator.randrange(500)}" for _ in range(words))
    return b"\n".join(text[i : i + 60].encode() for i in range(0, len(text), 60)) + b"\n"


@pytest.fixture
def library(tmp_path):
    root = tmp_path / "lib"
    contents = {f"module_{i:03}.py": prose(i) for i in range(60)}
    contents |= {
        "copy_of_5.py": prose(5),
        "near_copy_of_6.py": prose(6)[:-40] + b"and another end\n",
        "long_excerpt_of_7.py": prose(1007) + prose(7)[:900] + prose(2007, 3000),
        "package/tests/test_it.py": prose(90),
        "nul.py": b"x = '\0'\n" + prose(91),
        "latin1.py": "é".encode("latin-1") + prose(92),
        "empty.py": b"",
        "stub.py": b"x = 1\n",
        "site-packages/installed.py": prose(93),
        "__pycache__/cached.py": prose(94),
        "_sysconfigdata__linux_x86_64-linux-gnu.py": prose(95),
        "config-3.11-x86_64-linux-gnu/python-config.py": prose(96),
        "notes.txt": prose(97),
    }
    for path, content in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


@pytest.fixture
def small_quotas(monkeypatch):
    monkeypatch.setattr(corpus, "HELD_OUT_BYTES", {"test": 8000, "validation": 5000, "calibration": 3000})
    monkeypatch.setattr(corpus, "TEXT_BYTES", {"calibration": 2000, "test": 4000})


def test_only_the_librarys_own_python_files_are_listed(library):
    found = {path.as_posix() for path in corpus.find_files(library)}
    assert {"module_000.py", "package/tests/test_it.py", "empty.py", "latin1.py"} <= found
    for left_out in ("site-packages", "__pycache__", "_sysconfigdata", "config-3.11", "notes.txt"):
        assert not any(left_out in path for path in found)
    assert corpus.find_files(library) == sorted(corpus.find_files(library), key=lambda path: path.as_posix())


def test_a_folder_without_python_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no .py files"):
        corpus.find_files(tmp_path)


def test_copies_empty_files_and_nul_are_dropped(library):
    paths = {document.path for document in corpus.read_documents(library)}
    assert "copy_of_5.py" in paths  # the first of its content by path
    assert paths.isdisjoint({"module_005.py", "empty.py", "nul.py"})


def brute_force_shared(contents):
    """The same marks by tuples of words."""
    grams = []
    for content in contents:
        words = re.findall(rb"\w+", content)
        grams.append([tuple(words[i : i + 13]) for i in range(len(words) - 12)])
    return [[any(gram in other for other in grams if other is not own) for gram in own] for own in grams]


def test_shared_grams_against_brute_force():
    contents = [
        prose(1, 80),
        prose(2, 80) + prose(1, 80)[30:200],
        prose(1, 80)[100:260],
        b"short",
        b"",
        prose(3, 80) * 2,
    ]
    for got, expected in zip(corpus.shared_grams(contents), brute_force_shared(contents), strict=True):
        np.testing.assert_array_equal(got, np.array(expected, bool))


@pytest.mark.parametrize(
    ("flags", "length"), [([], 0), ([0, 0], 0), ([1], 1), ([0, 1, 1, 0, 1], 2), ([1, 1, 1], 3), ([1, 0, 1, 1, 1, 1], 4)]
)
def test_longest_run(flags, length):
    assert corpus.longest_run(np.array(flags, bool)) == length


def test_files_that_occur_elsewhere_are_never_held_out(library, monkeypatch):
    monkeypatch.setattr(corpus, "HELD_OUT_BYTES", {"test": 1 << 30})  # take all that may be taken
    held = {d.path for d in corpus.split_documents(corpus.read_documents(library)) if d.split == "test"}
    assert {"module_000.py", "package/tests/test_it.py"} <= held
    assert held.isdisjoint({"module_006.py", "near_copy_of_6.py"})  # most is shared
    assert "module_007.py" not in held  # much of it is in another file,
    assert "long_excerpt_of_7.py" not in held  # which is little of that file, but one long run
    assert held.isdisjoint({"latin1.py", "stub.py"})  # not text; too small


def test_splits_meet_their_quotas_in_order_of_hash(library, small_quotas):
    documents = corpus.split_documents(corpus.read_documents(library))
    assert [d.path for d in documents] == [d.path for d in corpus.read_documents(library)]
    last_of = {}
    for split, quota in corpus.HELD_OUT_BYTES.items():
        chosen = sorted((d.sha256, len(d.content)) for d in documents if d.split == split)
        assert sum(size for _, size in chosen) >= quota > sum(size for _, size in chosen[:-1])
        last_of[split] = (chosen[0][0], chosen[-1][0])
    assert last_of["test"][1] < last_of["validation"][0] < last_of["validation"][1] < last_of["calibration"][0]
    streams = [corpus.stream(documents, split) for split in corpus.SPLITS]
    assert sum(map(len, streams)) == sum(1 + len(d.content) for d in documents)


def test_texts_take_the_beginning_of_every_file_up_to_one_limit(library, small_quotas):
    documents = corpus.split_documents(corpus.read_documents(library))
    content = {d.path: d.content for d in documents}
    for split, budget in corpus.TEXT_BYTES.items():
        excerpts = corpus.choose_excerpts(documents, split)
        assert [e.path for e in excerpts] == [d.path for d in documents if d.split == split]
        text = corpus.text(documents, split)
        assert text == b"".join(b"\0" + content[e.path][: e.length] for e in excerpts)
        assert budget - 61 * len(excerpts) <= len(text) <= budget  # a line is lost from each at most
        for excerpt in excerpts:
            assert excerpt.length == excerpt.file_bytes or content[excerpt.path][: excerpt.length].endswith(b"\n")


def test_saved_corpus_is_complete_and_the_same_every_time(library, small_quotas, tmp_path):
    record = corpus.save(tmp_path / "a", library)
    assert corpus.save(tmp_path / "b", library) == record
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(
        [*(f"{split}.bin" for split in corpus.SPLITS), "calibration.txt", "test.txt", "corpus.csv", "corpus.json"]
    )
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert json.loads((tmp_path / "a" / "corpus.json").read_text()) == record
    assert hashlib.sha256((tmp_path / "a" / "corpus.csv").read_bytes()).hexdigest() == record["sha256"]
    assert all(text["grams_in_training"] == 0 for text in record["texts"].values())
    (library / "module_000.py").write_bytes(prose(0) + b"x\n")
    assert corpus.save(tmp_path / "c", library)["sha256"] != record["sha256"]
