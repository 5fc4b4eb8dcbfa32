"""Kernel families: declared once, listed, chosen by scheme, and open to families from outside the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hwmodels
from hwmodels.timing.families import ATTENTION, FAMILIES, get_attention, get_family, register_kernels
from qsim.errors import QsimError
from qsim.scheme import list_schemes

ROOT = Path(__file__).parents[2]

OUTSIDE = '''
"""Kernels of a library that hwmodels has never heard of."""
from hwmodels import KernelFamily, read_parameters


def runs(scheme):
    return scheme.weight.is_quantized and not scheme.activation.is_quantized and scheme.weight.bits == 4


FAMILY = KernelFamily(
    name="swift_int4", title="Swift INT4", engine="Swift", version="7", year=2027, stacks=("swift-7",),
    compute="bfloat16", weight_bits=4.25, activation_bytes=2, runs=runs, preference=1,
    measured={"h200": read_parameters(TOML)["swift_int4"]},
)
'''


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package of one file, installed: its family, and what was fitted to a CSV of its times."""
    folder = tmp_path_factory.mktemp("outside")
    lines = ["kernel,m,n,k,latency_s"]
    for n, k in ((4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336), (8192, 8192)):
        for m in (1, 16, 64, 256, 1024):
            time_s = 3e-6 + max(2 * m * n * k / 7e14, (0.53 * n * k + 2 * m * (n + k)) / 4.4e12)
            lines.append(f"swift_int4,{m},{n},{k},{time_s:.9f}")
    (folder / "times.csv").write_text("\n".join(lines) + "\n")
    toml = folder / "swift.toml"
    bare = OUTSIDE.replace('measured={"h200": read_parameters(TOML)["swift_int4"]},', "")
    (folder / "bare.py").write_text(bare)
    fit = (
        "import hwmodels, bare; hwmodels.register_kernels(bare.FAMILY); "
        f"hwmodels.fit({str(folder / 'times.csv')!r}, 'h200', out={str(toml)!r})"
    )
    run(folder, "-c", fit)
    (folder / "swift.py").write_text(OUTSIDE.replace("TOML", repr(str(toml))))
    info = folder / "swift-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: swift\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hwmodels.kernels]\nswift = swift:FAMILY\n")
    return folder


def run(folder: Path, *words: str) -> str:
    path = os.pathsep.join([str(folder), str(ROOT)])
    result = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=folder, env={**os.environ, "PYTHONPATH": path}
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_family_from_one_file_outside_is_fitted_listed_and_chosen(outside: Path) -> None:
    code = (
        "import json, hwmodels; p = hwmodels.predict('h200', 'llama-3-8b', 'w4a16-g128'); "
        "t = float(hwmodels.gemm_time('h200', 1, 28672, 4096, kernel='swift_int4')); "
        "far = hwmodels.gemm('h100-sxm', 1, 28672, 4096, 'swift_int4').kind; "
        "print(json.dumps([p.kernel, p.fidelity, t, far, 'swift_int4' in hwmodels.kernel_families('h200').names]))"
    )
    kernel, fidelity, time_s, far, listed = json.loads(run(outside, "-c", code))
    assert (kernel, fidelity, far, listed) == ("swift_int4", "calibrated", "transferred", True)
    assert time_s == pytest.approx(3e-6 + 0.53 * 28672 * 4096 / 4.4e12, rel=0.1)  # the law that the CSV was made by


def test_the_command_line_knows_an_installed_family(outside: Path) -> None:
    rows = json.loads(run(outside, "-m", "qsim", "devices", "h200", "--kernels", "--json"))
    (mine,) = (row for row in rows if row["family"] == "swift_int4")
    assert (mine["engine"], mine["year"], mine["fidelity"], mine["shapes"]) == ("Swift", 2027, "calibrated", 5)
    assert "w4a16-g128" in mine["schemes"]


def test_every_family_says_whose_it_is_and_every_scheme_has_one() -> None:
    table = hwmodels.kernel_families()
    assert len(table) == len(FAMILIES) + len(ATTENTION) == len(set(table.names))
    for family in (*FAMILIES.values(), *ATTENTION.values()):
        unnamed = family.name in ("native_fp4", "native_mxfp8", "w4a8")  # no library of today has them
        assert bool(family.engine and family.version and family.year) != unnamed, family.name
    named = {name for row in table.rows for name in row[6].split(", ")}
    assert {scheme.name for scheme in list_schemes()} <= named


@pytest.mark.parametrize(("name", "bits"), [("q4_k", 4.5), ("q6_k", 6.5625), ("q2_k", 2.625), ("q4_1", 5.0)])
def test_weights_in_superblocks_are_priced_by_their_bytes_and_said_to_be_another_kernel_s(
    name: str, bits: float
) -> None:
    dense, mine = (hwmodels.predict("h200", "llama-3-8b", s, "decode", 1, 2048) for s in ("bf16", name))
    linears = [sum(float(op.traffic_bytes) for op in p.operators if op.name == "down") for p in (dense, mine)]
    n, k = 4096, 14336
    assert linears[0] - linears[1] == pytest.approx(32 * n * k * (16 - bits) / 8)
    assert mine.fidelity == "transferred"
    assert any(note.code == "own_rule" for note in mine.notes)
    assert float(mine.high_s / mine.time_s) > 1.2


def test_rows_that_superblocks_do_not_divide_are_padded_and_it_is_said() -> None:
    from hwmodels.workload.operators import weight_nbytes
    from qsim.scheme import get_scheme

    assert weight_nbytes(get_scheme("q4_k"), 10, 384) == 10 * 2 * 144
    config = {"model_type": "llama", "hidden_size": 384, "intermediate_size": 768, "num_hidden_layers": 2,
              "num_attention_heads": 6, "vocab_size": 256}  # fmt: skip
    notes = hwmodels.predict("h200", config, "q4_k", "decode", 1, 128).notes
    assert any("superblocks of 256 do not divide K = 384: rows are padded" in note for note in notes)


def test_a_family_names_only_families_that_exist() -> None:
    for family in FAMILIES.values():
        for other in (*family.like, *([family.grouped] if family.grouped else [])):
            assert get_family(other) is not family


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: get_family("cublas_bf17"), "cublas_bf16"),
        (lambda: get_family(3), "unknown kernel"),  # type: ignore[arg-type]
        (lambda: get_attention("sdpa_cudn"), "sdpa_cudnn"),
        (lambda: register_kernels(FAMILIES["cublas_bf16"]), "give yours another name"),
        (lambda: register_kernels("mine"), "must be a KernelFamily"),  # type: ignore[arg-type]
        (lambda: register_kernels(hwmodels.KernelFamily(name="A b", title="", compute="int8", weight_bits=8,
                                                        activation_bytes=1)), "lower-case letters"),
        (lambda: hwmodels.kernel_families("h201"), "h200"),
        (lambda: hwmodels.attention_time("a100", "prefill", 1, 512, 32, 8, kernel="fa3"), "needs Hopper's"),
    ],
)  # fmt: skip
def test_wrong_families_are_refused(call, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(QsimError, match=says):
        call()


SURFACE = """[kernels.mine]
t0_us = 1.0
eta_compute = 1.0
eta_memory = 1.0
p = 2.0
[kernels.mine.surface]
sizes_x = [1, 2]
sizes_a = [1, 2]
sizes_b = [1, 2]
unit = 0.01
values = "1 2 3"
"""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[kernels.mine]\np = 2\n", "kernel mine has no t0_us"),
        ("kernels = 3", "kernels must be a table"),
        ("", "has no fitted kernel"),
        (SURFACE, "as many whole numbers as the sizes span"),
    ],
)
def test_a_file_that_is_no_fit_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "fit.toml"
    path.write_text(text)
    with pytest.raises(QsimError, match=says):
        hwmodels.read_parameters(path)
