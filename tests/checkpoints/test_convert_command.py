"""`qsim convert` and `qsim quantize --gguf-type`: layouts and GGUF types from the command line."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from qsim.checkpoints import write
from qsim.cli import main
from qsim.layouts.gguf.file import open_gguf
from qsim.layouts.gguf.types import get_type
from qsim.models import load, with_scheme
from qsim.scheme import QuantizedTensor

from .tiny import assert_same, quantized, tiny


def run(*args):
    return CliRunner().invoke(main, ["convert", *map(str, args)], prog_name="qsim", env={"COLUMNS": "100"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("convert") / "model"
    write(tiny(), path)
    return path


@pytest.mark.parametrize("more", [(), ("--layout", "gguf")])
@pytest.mark.parametrize("name", ["q4_k", "Q6_K", "q8_0", "mxfp4"])
def test_a_model_is_rounded_to_the_gguf_type_that_is_asked_for(name, more, folder, tmp_path):
    result = run(folder, "--out", tmp_path / "a.gguf", "--gguf-type", name, *more)
    assert result.exit_code == 0, result.output
    assert f"wrote {tmp_path / 'a.gguf'} (gguf, " in result.stdout.replace("\n", "")
    kind = get_type(name)
    for one in open_gguf(tmp_path / "a.gguf").tensors.values():
        if len(one.shape) == 2 and one.shape[-1] % kind.values == 0:
            assert one.type is kind, one.name
    assert load(tmp_path / "a.gguf").config.hidden_size == load(folder).config.hidden_size


def test_a_name_that_ends_in_gguf_is_the_file_itself_and_comes_back_bit_for_bit(folder, tmp_path):
    assert run(folder, "--out", tmp_path / "a.gguf").exit_code == 0
    assert (tmp_path / "a.gguf").is_file()
    assert run(tmp_path / "a.gguf", "--out", tmp_path / "back").exit_code == 0
    assert_same(load(tmp_path / "back"), load(folder))


def test_codes_are_kept_and_only_values_are_rounded_again(tmp_path):
    model = quantized("w4a16-g32-sym")
    write(model, tmp_path / "model", "compressed-tensors")
    out = tmp_path / "a.gguf"
    assert run(tmp_path / "model", "--out", out).exit_code == 0
    assert_same(load(out), model)
    again = run(tmp_path / "model", "--out", out, "--gguf-type", "q8_0", "--force")
    assert again.exit_code == 2
    assert "is quantised already, as q4_0: give --dequantize" in again.stderr
    assert "choose another name, or --force to replace it" in run(tmp_path / "model", "--out", out).stderr
    assert_same(load(out), model)
    assert run(tmp_path / "model", "--out", out, "--gguf-type", "q8_0", "--force", "--dequantize").exit_code == 0
    assert {t.type.name for t in open_gguf(out).tensors.values() if len(t.shape) == 2} == {"q8_0"}
    assert run(out, "--out", tmp_path / "plain", "--dequantize").exit_code == 0
    assert not any(isinstance(t, QuantizedTensor) for t in load(tmp_path / "plain").tensors.values())


def test_what_is_there_is_replaced_only_when_asked(folder, tmp_path):
    out = tmp_path / "a.gguf"
    assert run(folder, "--out", out).exit_code == 0
    before = out.read_bytes()
    refused = run(folder, "--out", out, "--gguf-type", "q8_0")
    assert refused.exit_code == 2
    assert "a.gguf exists" in refused.stderr
    assert out.read_bytes() == before
    assert run(folder, "--out", out, "--gguf-type", "q8_0", "--force").exit_code == 0
    assert out.read_bytes() != before


@pytest.mark.parametrize("name", ["q4_0", "Q8_0"])
def test_a_type_that_holds_a_scheme_is_quantised_to_by_a_method(name, folder, tmp_path):
    line = ["quantize", str(folder), "--method", "rtn", "--gguf-type", name, "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, line, prog_name="qsim", env={"COLUMNS": "100"})
    assert result.exit_code == 0, result.output
    kinds = {t.type.name for t in open_gguf(tmp_path / "out" / "model.gguf").tensors.values() if len(t.shape) == 2}
    assert kinds == {name.lower()}
    back, same = load(tmp_path / "out"), with_scheme(load(folder), str(get_type(name).scheme))
    for layer, tensor in same.tensors.items():
        if isinstance(tensor, QuantizedTensor):
            assert back.tensors[layer] == tensor, layer
    assert (tmp_path / "out" / "quantization_record.json").is_file()
