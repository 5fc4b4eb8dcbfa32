"""The house rule of who may import whom, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# package -> what else of the project it may import (besides itself). Nothing imports upward or sideways against it.
FLOOR = {
    "qsim._cache",
    "qsim._native",
    "qsim._stale",
    "qsim.arrays",
    "qsim.errors",
    "qsim.fields",
    "qsim.files",
    "qsim.folders",
    "qsim.former",
    "qsim.hidden",
    "qsim.lazy",
    "qsim.notes",
    "qsim.pieces",
    "qsim.registry",
    "qsim.reprs",
    "qsim.tables",
}  # everybody may
GROUND = {"qsim.formats", "qsim.scheme", "qsim.families", "qsim.safetensors"}
ALLOWED: dict[str, set[str]] = {
    "qsim._cache": set(),
    "qsim._native": set(),
    "qsim._stale": set(),
    "qsim.arrays": set(),
    "qsim.errors": set(),
    "qsim.fields": set(),
    "qsim.files": set(),
    "qsim.former": set(),
    "qsim.tables": set(),
    "qsim.folders": set(),
    "qsim.hidden": set(),
    "qsim.lazy": set(),
    "qsim.notes": set(),
    "qsim.pieces": set(),
    "qsim.registry": set(),
    "qsim.reprs": set(),
    "qsim.formats": set(),
    "qsim.safetensors": {"qsim.formats"},
    "qsim.scheme": {"qsim.formats"},
    "qsim.families": {"qsim.formats"},
    "qsim.evidence": {"qsim.formats", "qsim.scheme", "qsim.families"},
    "qsim.tensorcore": {"qsim.formats"},
    "qsim.kernels": GROUND | {"qsim.tensorcore"},
    "qsim.layouts": GROUND,
    "qsim.models": GROUND | {"qsim.layouts", "qsim.tensorcore", "qsim.kernels"},
    "qsim.methods": GROUND | {"qsim.evidence", "qsim.tensorcore", "qsim.kernels", "qsim.models"},
    "qsim.checkpoints": GROUND | {"qsim.layouts", "qsim.models"},
    "qsim.analysis": GROUND,
    "qsim.plots": GROUND | {"qsim.analysis"},
    "hwmodels": GROUND,
}
TOP = {
    "qsim.study",
    "qsim.explore",
    "qsim.cli",
    "qsim.probing",  # of instructions and of whole kernels
    "qsim",  # the public names of both wings, each loaded on first use
    "qsim.__main__",
    "qsim.quantize",  # the former place of qsim.scheme
    "qsim.algorithms",  # the former place of qsim.methods
}  # join both wings


def package_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "qsim" and len(parts) > 1 else parts[0]


def imports_of(path: Path) -> set[str]:
    """Absolute names of the project's modules that a file imports, at any depth, type checking included."""
    package = list(path.relative_to(ROOT).with_suffix("").parts[:-1])
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names} if module in ("qsim", "hwmodels") else {module}
    return {name for name in found if name.split(".")[0] in ("qsim", "hwmodels")}


def violations(path: Path) -> list[str]:
    home = package_of(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    if home in TOP:
        return []
    allowed = ALLOWED.get(home)
    if allowed is None:
        return [f"{path}: {home} has no place in the house: name it in tests/test_imports.py and DESIGN"]
    return [
        f"{path.relative_to(ROOT).as_posix()} imports {name}"
        for name in sorted(imports_of(path))
        if package_of(name) != home and package_of(name) not in allowed | FLOOR
    ]


def test_nothing_imports_against_the_floors():
    files = [p for wing in ("qsim", "hwmodels") for p in (ROOT / wing).rglob("*.py")]
    assert len(files) > 10
    assert [v for path in files for v in violations(path)] == []


def test_threads_alignment_and_blas_are_known_in_one_place():
    """What differs from system to system, and what two parts would do differently, is in `qsim._native` only."""
    marks = ("ThreadPoolExecutor", "register_at_fork", "threadpoolctl", ".ctypes.data", "llvm.prefetch")
    files = [p for p in (ROOT / "qsim").rglob("*.py") if p.parent.name != "_native"]
    assert [(p.relative_to(ROOT).as_posix(), m) for p in files for m in marks if m in p.read_text("utf-8")] == []
    native = "".join(p.read_text("utf-8") for p in (ROOT / "qsim" / "_native").glob("*.py"))
    assert [m for m in marks if m not in native] == []


def test_the_rule_sees_violations(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    for place, line in (
        ("qsim/formats/x.py", "from ..tensorcore import mma"),
        ("hwmodels/y.py", "import qsim.kernels"),
    ):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line)
        assert len(violations(path)) == 1
        path.write_text("def f():\n    " + line)
        assert len(violations(path)) == 1


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import qsim", ("numpy", "numba", "matplotlib", "pandas", "scipy")),
        ("import hwmodels", ("numba", "matplotlib")),
        ("import qsim.models", ("numpy", "numba", "matplotlib", "pandas", "scipy")),
        ("import qsim.formats; qsim.get_format('e4m3')", ("numba", "matplotlib", "pandas", "scipy")),
    ],
)
def test_imports_are_light(statement, heavy):
    code = f"import sys; {statement}; print(' '.join(m for m in {heavy!r} if m in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.split() == []


# shelf of hwmodels -> what else of hwmodels it may import; the modules beside the shelves stand above all of these
SHELVES: dict[str, set[str]] = {
    "checks": set(),
    "limits": {"checks"},
    "former": set(),
    "device": {"checks"},
    "workload": {"checks", "device"},
    "calibration": {"checks"},
    "timing": {"checks", "limits", "device", "workload", "calibration"},
    # the constants of engines are fitted on what `serve` predicts; `serving` itself fits nothing
    "fitting": {"checks", "limits", "device", "workload", "calibration", "timing", "serving"},
}


def shelf(module: str) -> str:
    return [*module.split("."), "", ""][1]


def test_nothing_in_hwmodels_imports_upward():
    found = {path: imports_of(path) for path in (ROOT / "hwmodels").rglob("*.py")}
    upward = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, names in found.items()
        for name in names
        if (home := shelf(".".join(path.relative_to(ROOT).with_suffix("").parts))) in SHELVES
        and shelf(name) not in SHELVES[home] | {home}
        and name.startswith("hwmodels.")
    ]
    assert upward == []
    below = {"validation", *SHELVES}
    beside = [p for p in found if p.parent.name == "hwmodels" and p.stem not in below and p.stem != "__init__"]
    assert beside
    assert [p.name for p in beside if "validation" in {shelf(name) for name in found[p]}] == []


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """The modules that reach themselves."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for name in arrows.get(todo.pop(), set()) - seen:
                seen.add(name)
                todo.append(name)
        return seen

    return sorted(name for name in arrows if name in reached(name))


def test_hwmodels_has_no_circle():
    """At any depth, type checking included; the package's own file only says where names are."""
    arrows = {}
    for path in (ROOT / "hwmodels").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.name != "__init__.py":
            arrows[name] = imports_of(path)
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]
    assert circle(arrows) == []


@pytest.mark.parametrize(
    ("former", "today"),
    [
        ("hwmodels.load", "hwmodels.device.load"),
        ("hwmodels.calibration.build", "hwmodels.fitting.build"),
        ("hwmodels.validate", "hwmodels.validation.validate"),
    ],
)
def test_a_module_is_found_at_its_former_place_and_is_the_same(former, today):
    code = f"""
import importlib
was, is_now = importlib.import_module({former!r}), importlib.import_module({today!r})
print(was is is_now, is_now.__spec__.name)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.split() == ["True", today]
    code = "from hwmodels.timing import gemm; from hwmodels.device import Device, Memory; print(gemm.__module__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.split() == ["hwmodels.timing.kernel"]


def test_the_numbers_wing_imports_nothing_that_only_unix_has():
    """`os.register_at_fork`, and the modules that Windows lacks."""
    code = """
import os, sys
import numba, scipy.linalg  # theirs to arrange for
del os.register_at_fork
for name in ("fcntl", "grp", "pwd", "resource", "termios", "pty", "syslog"):
    sys.modules[name] = None
import qsim.formats.codec, qsim.kernels.linear, qsim.tensorcore, qsim.scheme, qsim.methods
from qsim import kernels
kernels.linear, kernels.pack, kernels.available_paths()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_packages_are_reached_from_the_top():
    code = "import qsim; print(qsim.formats.pack([1, 2], 4), hasattr(qsim, 'no_such_package'))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.split() == ["[33]", "False"]
