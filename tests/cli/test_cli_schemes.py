"""`qsim schemes`: the list, one in full, and what it says of a name that is no scheme."""

import csv
import io
import json

import pytest
from click.testing import CliRunner

from qsim.checkpoints import layouts_for
from qsim.cli import main
from qsim.scheme import get_scheme, list_schemes, preset_names


def run(*args: str, width: str = "170"):
    return CliRunner().invoke(main, ["schemes", *args], env={"COLUMNS": width})


def test_the_list_has_every_named_scheme_with_its_bits_presets_and_layouts():
    rows = json.loads(run("--json").stdout)
    assert [r["scheme"] for r in rows] == [s.name for s in list_schemes()]
    for row, scheme in zip(rows, list_schemes(), strict=True):
        assert row["bits_per_weight"] == scheme.bits_per_weight()
        assert row["layouts"].split() == list(layouts_for(scheme))
        assert row["compressed_tensors"] == ", ".join(preset_names(scheme))
    assert [dict(r)["scheme"] for r in csv.DictReader(io.StringIO(run("--csv").stdout))] == [r["scheme"] for r in rows]


@pytest.mark.parametrize("width", ["80", "100", "170"])
def test_the_printed_list_fits_the_terminal(width):
    lines = run(width=width).stdout.splitlines()
    assert max(map(len, lines)) <= int(width)
    assert {s.name for s in list_schemes()} <= {line.split()[0] for line in lines if line and line[0] != " "}


@pytest.mark.parametrize("name", ["w4a16-g128", "W4A16", "fp8-rowwise-kvint8", "nvfp4", "bf16", "w3a16-g64-sym"])
def test_one_scheme_in_full(name):
    scheme = get_scheme(name)
    found = json.loads(run(name, "--json").stdout)
    assert (found["scheme"], found["multiplied_in"]) == (scheme.name, scheme.compute.name)
    assert [p["format"] for p in found["parts"]] == [
        scheme.weight.format.name, scheme.activation.format.name, scheme.kv_cache.format.name,
    ]  # fmt: skip
    held = [layout for layout, why in found["layouts"].items() if why is None]
    assert held == list(layouts_for(scheme))
    printed = run(name).stdout
    assert f"bits per weight: {scheme.bits_per_weight():g}" in printed
    assert scheme.weight.format.name in printed


@pytest.mark.parametrize("verb", [("schemes", "awq"), ("quantize", "tiny", "--scheme", "awq", "--out", "nowhere")])
def test_a_method_is_answered_with_a_scheme_and_without_names_of_python(verb):
    done = CliRunner().invoke(main, list(verb))
    assert done.exit_code == 2
    assert done.stderr == "qsim: 'awq' is a method, not a scheme: use the scheme w4a16-g128; `qsim schemes` lists all\n"
