"""The public surface: what `qsim` and `hwmodels` hold, how it prints, and that a type checker follows it."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import FunctionType, ModuleType

import numpy as np
import pytest

import hwmodels
import qsim

ROOT = Path(__file__).parents[1]
FUNCTIONS = (
    "encode", "decode", "cast", "quantize", "pack", "linear", "matmul", "load", "evaluate", "quantize_model", "predict",
)  # fmt: skip
LISTS = ("formats", "schemes", "instructions", "devices", "models", "methods", "layouts")


@pytest.mark.parametrize("package", [qsim, hwmodels], ids=lambda p: p.__name__)
def test_the_three_lists_of_a_front_agree(package: ModuleType) -> None:
    """What is exported, what is loaded on first use, and what a type checker is told are the same names."""
    shown = {name for name in dir(package) if not name.startswith("_")}
    assert shown == {name for name in package.__all__ if name != "__version__"}
    tree = ast.parse(Path(str(package.__file__)).read_text(encoding="utf-8"))
    told = {
        alias.asname or alias.name
        for block in tree.body if isinstance(block, ast.If)
        for node in ast.walk(block) if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }  # fmt: skip
    assert told == shown
    for name in shown:
        assert getattr(package, name) is not None


def test_the_version_stands_in_the_project_file_and_in_the_list_of_changes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == qsim.__version__
    assert f"## {qsim.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert all((ROOT / file).is_file() for file in project["license-files"])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_headline_names_are_functions_with_a_signature_and_help(name: str) -> None:
    function = getattr(qsim, name)
    assert isinstance(function, FunctionType)
    kinds = {p.kind for p in inspect.signature(function).parameters.values()}
    assert kinds & {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY}
    assert function.__doc__


@pytest.mark.parametrize(
    ("package", "former", "names"),
    [
        ("qsim", "quantize", "quantize, get_scheme, Granularity"),
        ("hwmodels", "predict", "Prediction, Speedup, predict, speedup, resolve_scheme"),
        ("hwmodels", "roofline", "Roofline, roofline"),
    ],
)
def test_a_former_module_still_imports_and_its_name_stays_the_function(package: str, former: str, names: str) -> None:
    for first in (f"import {package}", f"from {package} import {former}", f"import {package}.{former}"):
        code = (
            f"{first}; from {package}.{former} import {names}; import {package}.{former} as again, types;"
            f"import {package}; f = {package}.{former}; assert isinstance(f, types.FunctionType) and f is again;"
            f"from {package} import {former} as other; assert other is f"
        )
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_former_name_of_the_methods_is_the_same_package() -> None:
    for first in ("import qsim.algorithms", "from qsim.algorithms import gptq", "import qsim.methods"):
        code = (
            f"{first}; from qsim.algorithms import gptq, quantize_model; import qsim.algorithms, qsim.methods;"
            "assert gptq is qsim.methods.gptq and qsim.algorithms is qsim.methods;"
            "assert qsim.quantize_model is quantize_model;"
            "from qsim.algorithms.record import LayerRecord as one; from qsim.methods.record import LayerRecord;"
            "assert one is LayerRecord"
        )
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


USER_SCRIPT = """
import numpy as np
import hwmodels
import qsim
from qsim import Scheme, Table, predict, quantize
from qsim.quantize import get_scheme, quantize as former

w = np.ones((64, 128), dtype=np.float32)
scheme: Scheme = qsim.get_scheme("w4a16-g128")
q: qsim.QuantizedTensor = qsim.quantize(w, scheme)
again: qsim.QuantizedTensor = former(w, get_scheme("W4A16"))
y: np.ndarray = qsim.linear(w, qsim.pack(q))
codes = qsim.encode(w, "e4m3")
values = qsim.decode(codes, "e4m3")
rounded = qsim.cast(w, "e4m3")
z = qsim.matmul(codes, codes, preset="cublaslt_fp8_fast")
model = qsim.load("tiny")
loss = qsim.evaluate(model, "text")
result = qsim.quantize_model(model, "rtn", "w4a16-g128")
p: hwmodels.Prediction = qsim.predict("h100", "llama-3-8b", "fp8")
t = hwmodels.predict("h100", "llama-3-8b").to_frame()
r: hwmodels.Roofline = hwmodels.roofline(1e12, 1e9, 1e15, 3e12)
schemes: Table[Scheme] = qsim.list_schemes()
names: tuple[str, ...] = qsim.list_devices().names
first: Scheme = schemes[0]
for method in qsim.list_methods():
    method.upper()
try:
    qsim.formats.get_format("e4m3")
except qsim.QsimError:
    pass
"""
WRONG = {
    "qsim.quantize()": "call-arg",
    "qsim.no_such_function()": "attr-defined",
    "qsim.predict(device=3.5, model=None)": "arg-type",
}


def test_a_script_of_a_user_passes_mypy_strict(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    pytest.importorskip("mypy")
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(USER_SCRIPT, encoding="utf-8")
    bad.write_text("import qsim\n" + "\n".join(WRONG) + "\n", encoding="utf-8")
    assert pytestconfig.cache is not None
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file", os.devnull,
         "--cache-dir", str(pytestconfig.cache.mkdir("mypy")), "--no-color-output", str(good), str(bad)],
        cwd=tmp_path, env={**os.environ, "MYPYPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert [line for line in lines if "good.py" in line] == [], done.stdout + done.stderr
    for number, code in enumerate(WRONG.values(), start=2):
        assert any(f"bad.py:{number}:" in line and f"[{code}]" in line for line in lines), done.stdout


@pytest.mark.parametrize("name", LISTS)
def test_lists_print_as_tables(name: str) -> None:
    table = getattr(qsim, f"list_{name}")()
    assert isinstance(table, qsim.Table)
    lines = repr(table).splitlines()
    assert len(lines) == len(table) + 2 == len(list(table)) + 2
    assert all(line.split()[0] == row for line, row in zip(lines[2:], table.names, strict=True))
    starts = [i for i in range(len(lines[1])) if lines[1][i] == "-" and (i == 0 or lines[1][i - 1] == " ")]
    assert len(starts) == len(table.columns)  # every column has its own rule, and no cell crosses the gap before one
    assert all(line[i - 2 : i].strip() == "" for line in lines for i in starts[1:])
    frame = table.to_frame()
    assert (len(frame), tuple(frame.columns)) == (len(table), table.columns)
    assert table._repr_html_().count("<tr>") == len(table) + 1
    assert len(set(table.names)) == len(table)
    # what a row describes is reached by its name
    get = {"formats": qsim.get_format, "schemes": qsim.get_scheme, "devices": qsim.get_device,
           "models": qsim.get_architecture}.get(name)  # fmt: skip
    assert [get(n) if get else n for n in table.names] == list(table)
    assert table[0] in table
    assert table[:2] == tuple(table)[:2]


def test_a_table_escapes_html_and_keeps_cells_and_columns_together() -> None:
    table = qsim.Table(columns=("name", "n"), rows=(("<b>", 1.5), ("c", None)), values=("<b>", "c"))
    assert "&lt;b&gt;" in table._repr_html_()
    assert repr(table).splitlines() == ["name    n", "----  ---", "<b>   1.5", "c"]
    assert table.to_records() == [{"name": "<b>", "n": 1.5}, {"name": "c", "n": None}]
    with pytest.raises(ValueError, match="2 cells"):
        qsim.Table(columns=("name", "n"), rows=(("a",),), values=("a",))
    with pytest.raises(ValueError, match="one value per row"):
        qsim.Table(columns=("name",), rows=(("a",),), values=())


def test_a_scheme_and_a_device_fit_on_a_line() -> None:
    for value in (*qsim.list_schemes(), *qsim.list_devices(), *(s.weight for s in qsim.list_schemes())):
        assert len(repr(value)) <= 300
        assert "\n" not in repr(value)
    assert "uint4 group(128)" in repr(qsim.get_scheme("w4a16-g128"))
    assert repr(qsim.get_device("h100")).startswith("Device(h100-sxm: gpu, 80 GB at 3350 GB/s, bfloat16")
    other = qsim.get_device("h100", {"memory.bandwidth_gbytes_per_s": 4000})
    assert repr(other).endswith(", changed: memory.bandwidth_gbytes_per_s)")


def test_a_prediction_is_a_frame_of_operators() -> None:
    p = qsim.predict("h100", "llama-3-8b", "fp8")
    frame = p.to_frame()
    assert list(frame.operator) == [op.name for op in p.operators]
    assert frame.share.sum() <= 1
    with pytest.raises(qsim.QsimError, match=r"of shape \(2,\).*hwmodels.sweep"):
        qsim.predict("h100", "llama-3-8b", "fp8", batch=[1, 2]).to_frame()


def test_values_show_themselves_on_a_line_or_as_a_table():
    """What public functions return: a newcomer prints it. Tables have lines, everything else has one."""
    from qsim.layouts import get_layout
    from qsim.methods import get_method

    prediction = hwmodels.predict("h100", "llama-3-8b", "fp8")
    device = hwmodels.get_device("h100")
    q = qsim.quantize(np.ones((64, 128), np.float32), "w4a16-g128")
    values = [
        q, qsim.pack(q), q.scheme, q.scheme.weight, device, device.compute, *device.compute.peaks, device.memory,
        prediction, prediction.energy, prediction.footprint, *prediction.operators,
        hwmodels.speedup(prediction, prediction), hwmodels.predict_request("h100", "llama-3-8b", "fp8"),
        hwmodels.gemm("h100", 16, 4096, 4096), hwmodels.gemm("h100", np.arange(1, 5), 4096, 4096),
        hwmodels.roofline(1e12, 1e9, 1e15, 3e12), get_method("gptq"), get_layout("gptq"),
        *(qsim.get_format(name) for name in ("e4m3", "int4", "nvfp4", "nf4", "e8m0")),
    ]  # fmt: skip
    for value in values:
        text = repr(value)
        assert len(text) <= 160, text
        assert "\n" not in text
        assert text.startswith(type(value).__name__)
    assert repr(hwmodels.roofline(1e12, 1e9, 1e15, 3e12)) == "Roofline(compute_s=0.001, memory_s=0.00033333)"
    assert repr(hwmodels.gemm("h100", np.arange(1, 5), 4096, 4096)).startswith("Estimate(time_s=array of shape (4,), ")
