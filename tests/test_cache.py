"""A read-only installation without a home folder: compiled code goes to a temporary folder, and that is said once."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import qsim._cache as cache

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package in which no cache can be kept: root writes where others may not, but not into a file."""
    root = tmp_path_factory.mktemp("frozen")
    shutil.copytree(ROOT / "qsim", root / "qsim", ignore=shutil.ignore_patterns("__pycache__", "tiny"))
    for folder in [p.parent for p in (root / "qsim").rglob("*.py")]:
        (folder / "__pycache__").touch()
    (root / "home").touch()
    (root / "tmp").mkdir()
    return root


def python(frozen: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    given = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    given |= {"HOME": str(frozen / "home"), "TMPDIR": str(frozen / "tmp"), "PYTHONDONTWRITEBYTECODE": "1",
              "PYTHONPATH": str(frozen), **env}  # fmt: skip
    return subprocess.run([sys.executable, *args], cwd=frozen, env=given, capture_output=True, text=True)


def test_it_computes_says_where_and_finds_the_code_again(frozen: Path) -> None:
    code = "from qsim.formats import pack; print(pack([1, 2], 4))"
    done = python(frozen, "-c", code)
    assert done.stdout == "[33]\n", done.stderr
    assert done.stderr.count("compiled code is kept in ") == 1
    folder = next((frozen / "tmp").glob("qsim-numba-*"))
    assert str(folder) in done.stderr
    kept = sorted(folder.rglob("*.nbc"))
    assert kept
    assert python(frozen, "-c", code).stdout == "[33]\n"
    assert sorted(folder.rglob("*.nbc")) == kept
    assert list((frozen / "tmp").iterdir()) == [folder]


def test_the_command_says_it_in_one_line(frozen: Path) -> None:
    done = python(frozen, "-m", "qsim", "cast", "1", "--to", "e4m3", "--csv")
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("qsim: note: compiled code is kept in ")


def test_a_folder_that_the_user_named_is_used_in_silence(frozen: Path, tmp_path: Path) -> None:
    done = python(frozen, "-c", "import qsim.formats.packing", NUMBA_CACHE_DIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


def test_an_import_of_qsim_alone_looks_at_nothing() -> None:
    code = "import sys, qsim; print('qsim._cache' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "False\n"


def test_nothing_changes_where_the_sources_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    assert cache.ensure() is None
    assert "NUMBA_CACHE_DIR" not in os.environ


def test_a_folder_of_somebody_else_is_not_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    usual = tmp_path / f"qsim-numba-{os.getuid()}"
    assert cache._temporary() == usual == cache._temporary()
    usual.chmod(0o777)
    assert cache._temporary() != usual
    usual.rmdir()
    usual.symlink_to(tmp_path)
    assert cache._temporary() != usual
    usual.unlink()
    usual.touch()
    assert cache._temporary() != usual


def test_folders_that_can_and_cannot_hold_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert cache.can_hold_files(tmp_path)
    assert cache.can_hold_files(tmp_path / "a" / "b")
    assert not cache.can_hold_files(tmp_path / "file")
    assert not cache.can_hold_files(tmp_path / "file" / "b")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert not cache.can_hold_files(tmp_path / "a")


def test_every_package_that_compiles_looks_first() -> None:
    """Whoever imports Numba outside functions lives in a package whose `__init__` imports the module."""
    homes = set()
    for path in (ROOT / "qsim").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "numba" for name in names):
                homes.add(path.relative_to(ROOT / "qsim").parts[0])
    assert homes <= set(cache.PACKAGES)
    for home in cache.PACKAGES:
        assert "from qsim._cache import" in (ROOT / "qsim" / home / "__init__.py").read_text(encoding="utf-8")


def test_a_changed_callee_in_another_file_is_compiled_again(tmp_path: Path) -> None:
    """Numba alone would go on with the code that it compiled into the caller."""
    home = tmp_path / "qsim"
    (home / "lab").mkdir(parents=True)
    for name in ("_cache.py", "_stale.py"):
        shutil.copy(ROOT / "qsim" / name, home / name)
    (home / "__init__.py").touch()
    (home / "lab" / "__init__.py").write_text("from qsim import _cache\n")
    (home / "lab" / "upper.py").write_text(
        "from numba import njit\nfrom .lower import half\n@njit(cache=True)\ndef twice(x):\n    return 4 * half(x)\n"
    )
    lower = "from numba import njit\n@njit(cache=True)\ndef half(x):\n    return x / {}\n"
    code = "from qsim.lab.upper import twice; print(twice(1.0), twice.stats.cache_hits.total())"
    env = {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "kept"), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(divisor: float) -> str:
        (home / "lab" / "lower.py").write_text(lower.format(divisor))
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | env, capture_output=True,
                              text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert run(2.0) == "2.0 0"
    assert run(2.0) == "2.0 1"
    assert run(8.0) == "0.5 0"


def test_the_sources_behind_a_kernel_are_found() -> None:
    """Through relative and absolute imports, several steps away; modules that compile nothing are not among them."""
    from qsim._stale import sources_behind

    behind = {p.relative_to(ROOT).as_posix() for p in sources_behind(ROOT / "qsim" / "kernels" / "stream" / "loops.py")}
    names = ("kernels/stream/loops", "kernels/stream/ir", "kernels/dot/ir", "kernels/weights", "_native/vectors")
    assert {f"qsim/{name}.py" for name in names} <= behind
    assert "qsim/kernels/linear.py" not in behind
    assert not any(path.startswith("qsim/cli") for path in behind)
