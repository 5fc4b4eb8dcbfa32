"""Who may write: one place creates, moves and removes files; whole files and folders; what a kill leaves behind."""

from __future__ import annotations

import ast
import errno
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from qsim import files
from qsim.errors import QsimError
from qsim.folders import check_apart, recover, whole_folder
from qsim.hidden import own_tag
from qsim.pieces import MANIFEST, Pieces, forget

ROOT = Path(__file__).parents[1]

# --- nothing goes round `qsim.files` ----------------------------------------------------------------------------

_CALLS = {
    "os": {"replace", "rename", "renames", "remove", "unlink", "rmdir", "removedirs", "mkdir", "makedirs", "mkfifo",
           "link", "symlink", "truncate", "chmod", "open", "fdopen"},
    "shutil": {"rmtree", "move", "copy", "copy2", "copyfile", "copyfileobj", "copytree", "make_archive"},
    "tempfile": {"mkstemp", "mkdtemp", "TemporaryDirectory", "NamedTemporaryFile", "TemporaryFile", "mktemp"},
    "np": {"save", "savez", "savez_compressed", "savetxt", "memmap"},
}  # fmt: skip
_METHODS = {"write_text", "write_bytes", "unlink", "rmdir", "mkdir", "touch", "rename", "symlink_to", "hardlink_to",
            "chmod", "to_csv", "to_json", "to_parquet", "savefig", "save_file", "tofile"}  # fmt: skip
ALLOWED = {
    ("qsim/files.py", "*"): "the one place",
    ("qsim/scheme/saved.py", "np.savez"): "into the file that write_whole opened",
    (
        "qsim/methods/calibration.py",
        "np.memmap",
    ): "hidden states in a temporary folder, in a file made by qsim.files",
    ("qsim/_cache.py", "mkdir"): "a folder of compiled code among the temporary ones, which Numba fills",
    ("qsim/_cache.py", "tempfile.mkdtemp"): "the same, where another user's folder has the name",
    ("qsim/cli/streams.py", "os.open"): "the null device, in place of a pipe that nobody reads",
    ("qsim/cli/quantize.py", "to_json"): "QuantizationResult's, which writes through qsim.files",
    ("qsim/plots/style.py", "savefig"): "into memory",
    ("qsim/study/report.py", "to_csv"): "a string",
    ("qsim/models/gguf_tokenizer.py", "to_json"): "a string",
    ("hwmodels/fitting/sample.py", "to_csv"): "a string",
}
"""file, call: why it is none that can leave a file half-written."""


def writes(path: Path) -> list[tuple[int, str]]:
    """Calls in a source that create, move or remove a file, with their lines."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "shutil", "tempfile"):
            found += [(node.lineno, f"{node.module}.{a.name}") for a in node.names if a.name in _CALLS[node.module]]
        if not isinstance(node, ast.Call):
            continue
        f = node.func
        if isinstance(f, ast.Attribute):
            base = f.value.id if isinstance(f.value, ast.Name) else ""
            if base in _CALLS:
                found += [(node.lineno, f"{base}.{f.attr}")] if f.attr in _CALLS[base] else []
            elif base != "files" and f.attr in _METHODS and not any(k.arg == "columns" for k in node.keywords):
                found.append((node.lineno, f.attr))
        name = f.id if isinstance(f, ast.Name) else f.attr if isinstance(f, ast.Attribute) else ""
        if name in ("open", "ZipFile"):
            given = [*node.args[:2], *(k.value for k in node.keywords if k.arg == "mode")]
            modes = [a.value for a in given if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            if any(re.fullmatch(r"[rwaxbt+]*[wax+][rwaxbt+]*", m) for m in modes):
                found.append((node.lineno, "open"))
    return found


def test_files_are_written_in_one_place():
    used = set()
    wrong = []
    for path in sorted([*(ROOT / "qsim").rglob("*.py"), *(ROOT / "hwmodels").rglob("*.py")]):
        where = path.relative_to(ROOT).as_posix()
        for line, call in writes(path):
            key = next((k for k in ((where, "*"), (where, call)) if k in ALLOWED), None)
            used.add(key)
            if key is None:
                wrong.append(f"{where}:{line} calls {call}: write through qsim.files")
    assert not wrong, "\n".join(wrong)
    assert set(ALLOWED) <= used, f"no longer needed: {set(ALLOWED) - used}"


@pytest.mark.parametrize("line", [
    "open(p, 'w')", "open(p, mode='ab')", "p.open('wb')", "open(p, 'r+b')", "p.write_text('x')", "os.replace(a, b)",
    "from os import rename", "shutil.rmtree(p)", "tempfile.mkdtemp()", "from tempfile import TemporaryDirectory",
    "np.savez(p, a=1)", "p.mkdir()", "frame.to_csv(p)", "os.open(p, os.O_WRONLY)",
])  # fmt: skip
def test_that_check_finds_every_way_to_write(line, tmp_path):
    (tmp_path / "x.py").write_text(line)
    assert writes(tmp_path / "x.py")


def test_that_check_lets_readers_be(tmp_path):
    (tmp_path / "x.py").write_text("open(p)\nopen(p, 'rb')\np.open()\nfiles.write_text(p, 'x')\nwrite_json(p, 1)\n")
    assert not writes(tmp_path / "x.py")


# --- whole files ------------------------------------------------------------------------------------------------


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def gone_tag() -> str:
    """The tag of a process of this machine that has ended."""
    code = "from qsim.hidden import own_tag; print(own_tag())"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def left(path: Path, role: str, tag: str, number: int = 0) -> Path:
    return path.with_name(f".{path.name}.{role}-{tag}-{number:08x}")


def test_a_write_that_fails_leaves_the_file_before(tmp_path):
    target = tmp_path / "a.txt"
    files.write_text(target, "before")

    def full(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left on device") as caught:
        files.write_whole(target, full)
    assert caught.value.filename == str(target)
    assert caught.value.errno == errno.ENOSPC

    def interrupted(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_whole(target, interrupted)
    assert target.read_text() == "before"
    assert names(tmp_path) == {"a.txt"}


def test_permissions_links_and_long_names(tmp_path):
    target = tmp_path / "a.txt"
    files.write_text(target, "1")
    (tmp_path / "usual").write_text("")
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)
    target.chmod(0o600)
    (tmp_path / "link").symlink_to(target)
    files.write_text(tmp_path / "link", "2")
    assert (tmp_path / "link").is_symlink()
    assert target.read_text() == "2"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    long = tmp_path / ("x" * 250 + ".json")
    files.write_json(long, {})
    assert files.read_json(long) == {}
    assert names(tmp_path) == {"a.txt", "link", "usual", long.name}


def test_a_device_or_a_pipe_is_written_to_and_not_replaced(tmp_path):
    files.write_text(os.devnull, "x")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    files.write_text(tmp_path / "pipe", "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


def test_what_a_killed_writer_left_goes_with_the_next_write_and_only_that(tmp_path):
    target, gone, own = tmp_path / "a.txt", gone_tag(), own_tag()
    elsewhere = re.sub(r"\.\w{6}\.", ".000000.", gone, count=1)
    reused = own.rpartition(".")[0] + ".ffffff"  # the number of this process, given before to another
    old = left(target, "part", elsewhere, 1)
    for path in (left(target, "part", gone), left(target, "part", reused), old,
                 left(target, "part", own), left(target, "part", elsewhere), left(tmp_path / "b.txt", "part", gone),
                 tmp_path / ".a.txt.part-notes"):  # fmt: skip
        path.write_text("half")
    week = time.time() - 8 * 24 * 3600
    os.utime(old, (week, week))
    files.write_text(target, "x")
    assert names(tmp_path) == {
        "a.txt", left(target, "part", own).name, left(target, "part", elsewhere).name,
        left(tmp_path / "b.txt", "part", gone).name, ".a.txt.part-notes",
    }  # fmt: skip


def test_temporary_folders_of_killed_processes_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in (f"qsim-{gone_tag()}-abc", f"qsim-{own_tag()}-live", "qsim-mine", "qsim-1-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "hidden.f32").write_bytes(bytes(100))
    with files.temporary_folder() as folder:
        assert folder.is_dir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert names(tmp_path) == {f"qsim-{own_tag()}-live", "qsim-mine", "qsim-1-2", folder.name}
    assert not folder.exists()


def test_room_for_a_memory_map_is_taken_at_once(tmp_path):
    files.create_sized(tmp_path / "x", 1 << 20)
    status = (tmp_path / "x").stat()
    assert status.st_size == 1 << 20
    assert status.st_blocks * 512 >= 1 << 20  # no holes
    assert not np.memmap(tmp_path / "x", dtype=np.uint8, mode="r").any()
    with pytest.raises(FileExistsError):
        files.create_sized(tmp_path / "x", 1)


# --- whole folders ----------------------------------------------------------------------------------------------


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "out"

    def interrupted():
        with whole_folder(target, lambda _: None) as folder:
            (folder / "a").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path / "deep") == set()
    for text in ("1", "2"):
        with whole_folder(target, lambda _: None) as folder:
            (folder / text).write_text(text)
            assert not (target / text).exists()
        assert names(tmp_path / "deep") == {"out"}
        assert names(target) == {text}


@pytest.mark.parametrize("failing", [1, 2])
def test_the_folder_before_comes_back_when_a_move_fails(tmp_path, monkeypatch, failing):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("precious")
    moves = []

    def replace(a, b):
        moves.append(b)
        if len(moves) == failing:
            raise KeyboardInterrupt
        os.replace(a, b)

    monkeypatch.setattr(files, "replace", replace)
    with pytest.raises(KeyboardInterrupt), whole_folder(target, lambda _: None) as folder:
        (folder / "new").write_text("x")
    assert names(tmp_path) == {"out"}
    assert (target / "old").read_text() == "precious"


def test_a_kill_between_the_two_moves_loses_nothing(tmp_path):
    target, gone = tmp_path / "out", gone_tag()
    old = left(target, "old", gone)
    old.mkdir()
    (old / "weights").write_text("precious")
    left(target, "partial", gone).mkdir()
    alive = left(target, "partial", own_tag())
    alive.mkdir()
    (said,) = recover(target)
    assert said == f"{target} was being replaced when a process was killed: the folder before is back"
    assert (target / "weights").read_text() == "precious"
    assert names(tmp_path) == {"out", alive.name}
    old.mkdir()
    assert recover(target) == []  # replaced already: the old one is no longer needed
    assert names(tmp_path) == {"out", alive.name}
    (target / "weights").unlink()
    target.rmdir()
    left(target, "old", own_tag()).mkdir()  # its process is about to move the new one in
    assert recover(target) == []
    assert not target.exists()


def test_source_and_target_are_apart_whatever_they_are_called(tmp_path, monkeypatch):
    source = tmp_path / "model"
    (source / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "up").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    for target in ("model", "./model/", "link", "up/model", "model/../model", "model/sub", "link/new", "model/a/b", ".",
                   "..", tmp_path, "/"):  # fmt: skip
        with pytest.raises(QsimError, match="must be folders apart, neither inside the other"):
            check_apart(source, target)
        with pytest.raises(QsimError, match="must be folders apart"):
            check_apart("link", target)
    for target in ("other", "model2", "model.part", "modelx/model"):
        check_apart(source, target)


# --- finished pieces --------------------------------------------------------------------------------------------


def test_only_a_run_is_forgotten(tmp_path):
    folder = tmp_path / "out.part"
    forget(folder, "quantisation")
    folder.mkdir()
    (folder / "model.safetensors").write_text("years of work")
    with pytest.raises(QsimError, match=r"out.part is not \(only\) an unfinished quantisation, it holds model.safeten"):
        forget(folder, "quantisation")
    assert names(folder) == {"model.safetensors"}
    (folder / "model.safetensors").unlink()
    work = Pieces(folder, "quantisation", {"a": 1})
    work.put("layer.x", b"1")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(QsimError, match="it holds notes.txt: it is not removed"):
        forget(folder, "quantisation")
    assert names(folder) == {MANIFEST, "layer.x.piece", "notes.txt"}
    with pytest.raises(QsimError, match="holds notes.txt|is not that of an unfinished study"):
        forget(folder, "study")
    work.remove()  # at the end of a run: its own files only
    assert names(folder) == {"notes.txt"}
    (folder / "notes.txt").unlink()
    Pieces(folder, "quantisation", {"a": 1})
    with pytest.raises(QsimError, match="is not that of an unfinished study"):
        forget(folder, "study")
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(QsimError, match="is not a folder of an unfinished"):
        forget(tmp_path / "link", "quantisation")
    forget(folder, "quantisation")
    assert names(tmp_path) == {"link"}


def test_a_kill_before_the_manifest_is_no_dead_end(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    (left(folder / MANIFEST, "part", gone_tag())).write_text("half")
    work = Pieces(folder, "study", {"a": 1})
    work.put("x", b"content")
    assert Pieces(folder, "study", {"a": 1}).get("x") == b"content"
    work.remove()
    assert not folder.exists()


@pytest.mark.parametrize("name", ["a", "quality-gptq:w4a16-g64[act_order=True]", "../../escape", "x" * 300, "ü", ""])
def test_pieces_of_any_name(tmp_path, name):
    work = Pieces(tmp_path / "work", "study", {})
    work.put(name, b"content\nwith lines")
    assert work.get(name) == b"content\nwith lines"
    assert work.get(name, "other inputs") is None
    assert len(work.notes) == 1
    assert names(tmp_path) == {"work"}


def test_a_piece_that_cannot_be_read_is_one_sentence(tmp_path, monkeypatch):
    work = Pieces(tmp_path / "work", "study", {})
    work.put("x", b"content")

    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(QsimError, match="x.piece, a finished piece of work, cannot be read .*Permission denied"):
        work.get("x")
