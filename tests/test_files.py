"""The boundary: files become values or one sentence that names the file, and are written whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qsim import files
from qsim.errors import QsimError, QsimTypeError, nearest
from qsim.fields import Fields


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b'{"a": 1, "b": {"x": 1, "x": 2}}', "the key 'x' twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 70 + b"]" * 70, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not JSON"),
        (b"\xff\xfe{}", "not UTF-8 text: byte 0 is 0xff"),
        (b"{", "not JSON"),
        (b"", "not JSON"),
    ],
)
def test_a_damaged_json_file_is_one_sentence_with_its_path(tmp_path, data, rule):
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(QsimError, match=rule) as caught:
        files.read_json(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a = " + "[" * 3000, "a = 1\na = 2", "a = " + "9" * 5000, "a = 2020-99-99", "[a"])
def test_a_damaged_toml_text_is_one_sentence(text):
    with pytest.raises(QsimError, match=r"^chip\.toml ") as caught:
        files.parse_toml(text, "chip.toml")
    assert "\n" not in str(caught.value)


def test_what_is_no_regular_file_or_too_large_is_not_read(tmp_path):
    with pytest.raises(QsimError, match="is not a regular file"):
        files.read_text(tmp_path)
    (tmp_path / "large").write_bytes(b" " * 101)
    with pytest.raises(QsimError, match="has 101 bytes: at most 100 are read"):
        files.read_text(tmp_path / "large", limit=100)
    if hasattr(os, "mkfifo"):  # opening one would wait for a writer for ever
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(QsimError, match="is not a regular file"):
            files.read_text(tmp_path / "pipe")


def test_infinity_and_a_byte_order_mark_are_read_as_python_writes_them():
    assert files.parse_json('{"limit": Infinity}', "x") == {"limit": float("inf")}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "is empty"),
        ("a,b,a\n1,2,3\n", "line 1 has the column 'a' twice"),
        ("a,,c\n", "a column without a name"),
        ("a,b\n1,2\n\n1,2,3\n", "line 4 has 3 fields: the header has 2"),
        ('a,b\n1,"2\n', "is not CSV"),
        ("a,b\n\x00,1\n", "zero byte"),
    ],
)
def test_a_damaged_csv_file_is_one_sentence_with_the_line(tmp_path, text, rule):
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(QsimError, match=rule) as caught:
        files.read_csv(path)
    assert str(path) in str(caught.value)


def test_a_csv_file_is_names_and_texts(tmp_path):
    (tmp_path / "rows.csv").write_text('M, Kernel\n1," bf16"\n\n2,fp8\n')
    assert files.read_csv(tmp_path / "rows.csv") == (["m", "kernel"], [["1", "bf16"], ["2", "fp8"]])


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "record.json"
    files.write_text(path, "before")

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        files.write_whole(path, fail)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_links_are_not_copied(tmp_path):
    (tmp_path / "secret").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    assert not files.copy_regular(tmp_path / "link", tmp_path / "copy")
    assert files.copy_regular(tmp_path / "secret", tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "x"


def test_temporary_folders_of_ended_processes_are_removed(tmp_path):
    """One of a process that was killed goes; those of this one and of unknown names stay."""
    code = (
        "import os, signal; from qsim import files\n"
        "with files.temporary_folder() as f: print(f, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    here = {**os.environ, "TMPDIR": str(tmp_path)}
    left = subprocess.run([sys.executable, "-c", code], env=here, capture_output=True, text=True, check=False)
    folder = Path(left.stdout.strip())
    assert folder.is_dir()
    (tmp_path / "qsim-notes-1").mkdir()
    live = tmp_path / f"qsim-{os.getpid()}-abc"
    live.mkdir()
    code = "from qsim import files\nwith files.temporary_folder() as f: assert f.is_dir()"
    subprocess.run([sys.executable, "-c", code], env=here, check=True)
    assert not folder.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["qsim-notes-1", live.name])


def test_fields_are_typed_and_ranged():
    table = {
        "yes": True, "word": "4", "whole": 3, "part": 1.5, "huge": 10**400, "nan": float("nan"), "list": [1, 2],
        "mixed": [1, "a"], "inner": {"x": 1}, "null": None, "old": 7,
    }  # fmt: skip
    f = Fields(table, "m/config.json")
    assert f.integer("whole", 1, 5) == 3
    assert f.integer(("new", "old"), 1, 9) == 7
    assert f.number("whole", 0, 5) == 3.0
    assert f.number("null", 0, 1, 0.5) == 0.5
    assert f.flag("yes") is True
    assert f.items("list", int, length=2) == (1, 2)
    assert f.inner("inner").integer("x", 0, 1) == 1
    wrong = [
        (lambda: f.integer("yes", 0, 1), "m/config.json: yes must be an integer: got True"),
        (lambda: f.integer("part", 0, 9), "part must be an integer"),
        (lambda: f.integer("whole", 4, 9), "whole must be from 4 to 9: got 3"),
        (lambda: f.integer("absent", 0, 1), "absent is missing"),
        (lambda: f.number("huge", 0, 1e9), "got an integer of 1329 bits"),
        (lambda: f.number("nan", 0, 1e9), "must be from"),
        (lambda: f.number("yes", 0, 1), "must be a number"),
        (lambda: f.flag("whole"), "must be true or false"),
        (lambda: f.text("whole"), "must be a text"),
        (lambda: f.text("word", choices=("a", "b")), "must be one of a, b: got '4'"),
        (lambda: f.items("mixed", int), "must be a list of integers"),
        (lambda: f.items("list", int, length=3), "must have 3 entries: got 2"),
        (lambda: f.inner("whole"), "must hold a table"),
    ]
    for read, rule in wrong:
        with pytest.raises(QsimError, match=rule):
            read()


def test_an_unknown_name_is_answered_with_the_nearest():
    names = ["h100-sxm", "h100-pcie", "a100", *map(str, range(20))]
    assert nearest("device", "h100-sx", names, cutoff=0.6).endswith("the nearest are h100-sxm, h100-pcie")
    assert nearest("device", "zzz", names).endswith("nothing has a similar name")
    assert nearest("phase", "x", ["prefill", "decode"]).endswith("it is one of prefill, decode")


def test_a_refusal_of_a_type_is_both_errors():
    with pytest.raises(TypeError):
        raise QsimTypeError("x")
    assert issubclass(QsimTypeError, QsimError)


def test_a_refusal_is_one_line_however_long_what_was_given_is():
    text = str(QsimError(f"unknown scheme {'x' * 9000!r}:\nsee `qsim schemes`"))
    assert text.startswith("unknown scheme 'xxx")
    assert text.endswith("see `qsim schemes`")
    assert "\n" not in text
    assert len(text) <= 800
    path = "/a" * 200  # a path is never cut
    assert path in str(QsimError(f"{path} does not exist"))
