"""Finished layers on disk: which run and layer they are of, what happens when they are damaged, and what a run is."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from qsim.errors import QsimError
from qsim.methods import quantize_model
from qsim.models.fingerprint import fingerprint
from tests.methods.test_pipeline import TOKENS, assert_same
from tests.models.small import random_model

F32 = np.float32
O_PROJ, Q_PROJ = "layer.model.layers.1.self_attn.o_proj.piece", "layer.model.layers.1.self_attn.q_proj.piece"


def flip(path, at):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def as_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "cut in the head": (lambda p: p.write_bytes(p.read_bytes()[:20]), "cut off"),
    "cut in the content": (lambda p: p.write_bytes(p.read_bytes()[:-1]), "its checksum is wrong"),
    "empty": (lambda p: p.write_bytes(b""), "cut off"),
    "another program's": (lambda p: p.write_bytes(b"PK" + bytes(3000)), "cut off or was written by another program"),
    "one bit of the codes": (lambda p: flip(p, -100), "its checksum is wrong"),
    "one bit of the record": (lambda p: flip(p, 200), "its checksum is wrong"),
    "one bit of the name": (lambda p: flip(p, 20), "belongs to another run or another piece"),
    "another layer of equal shape": (lambda p: p.write_bytes((p.parent / Q_PROJ).read_bytes()), "belongs to another"),
    "the same layer of another run": (lambda p: p.write_bytes((p.parent.parent / "other" / O_PROJ).read_bytes()),
                                      "belongs to another"),
    "a folder": (as_folder, "not a regular file"),
}  # fmt: skip


def test_a_damaged_layer_is_set_aside_and_solved_again(tmp_path):
    model, folder = random_model(), tmp_path / "a"
    quantize_model(random_model(seed=1), "rtn", "w4a16-g32", work_dir=tmp_path / "other")
    whole = quantize_model(model, "rtn", "w4a16-g32", work_dir=folder)
    for what, (damage, says) in DAMAGES.items():
        shutil.rmtree(folder / f"{O_PROJ}.damaged", ignore_errors=True)
        damage(folder / O_PROJ)
        again = quantize_model(model, "rtn", "w4a16-g32", work_dir=folder)
        assert again.resumed == 13, what
        assert len(again.notes) == 1, what
        assert says in again.notes[0], what
        assert f"{folder / O_PROJ} was set aside as {O_PROJ}.damaged and its work done again" in again.notes[0]
        assert (folder / f"{O_PROJ}.damaged").exists(), what
        assert_same(again, whole)
        if (folder / f"{O_PROJ}.damaged").is_file():
            (folder / f"{O_PROJ}.damaged").unlink()


def test_damaged_factors_of_a_block_are_found_again(tmp_path):
    whole = quantize_model(random_model(), "awq", "w4a16-g32", TOKENS, work_dir=tmp_path / "a")
    flip(tmp_path / "a" / "block.1.piece", -1)
    again = quantize_model(random_model(), "awq", "w4a16-g32", TOKENS, work_dir=tmp_path / "a")
    assert "block.1.piece was set aside" in again.notes[0]
    assert_same(again, whole)


def test_a_forged_layer_is_no_traceback(tmp_path):
    """A content that no version writes, under a right checksum."""
    from qsim.methods.store import KIND
    from qsim.pieces import Pieces

    whole = quantize_model(random_model(), "rtn", "w4a16-g32", work_dir=tmp_path / "a")
    name = O_PROJ.removesuffix(".piece")
    for content in (
        b"",
        b"1234",
        bytes(64),
        b"\x02" + bytes(7) + b"{}",
        b"\x02" + bytes(7) + b"[]" + b"\x02" + bytes(7) + b"{}",
    ):
        Pieces(tmp_path / "a", KIND, None).put(name, content)
        again = quantize_model(random_model(), "rtn", "w4a16-g32", work_dir=tmp_path / "a")
        assert "its content is none that this version writes" in again.notes[0]
        assert_same(again, whole)


def test_a_damaged_manifest_is_one_sentence(tmp_path):
    model, manifest = random_model(), tmp_path / "a" / "run.json"
    quantize_model(model, "rtn", "w4a16-g32", work_dir=tmp_path / "a")
    for text in (
        "",
        "{",
        "[1]",
        "{}",
        '{"kind": "study", "run": {}}',
        '{"kind": "quantisation", "run": 3}',
        "[" * 5000,
    ):
        manifest.write_text(text)
        with pytest.raises(QsimError, match=f"{manifest} .*remove"):
            quantize_model(model, "rtn", "w4a16-g32", work_dir=tmp_path / "a")
    (tmp_path / "file").write_text("x")
    with pytest.raises(QsimError, match="file is a file"):
        quantize_model(model, "rtn", "w4a16-g32", work_dir=tmp_path / "file")


def changed(tensor, at):
    out = tensor.copy()
    out.reshape(-1).view(np.uint8)[at] ^= 1
    return out


def test_a_run_is_recognised_by_every_byte_of_the_model(tmp_path):
    """A sample of the weights once took another model's layers: here any one byte of any tensor changes the digest."""
    model = random_model()
    seen, rng = {fingerprint(model)}, np.random.default_rng(0)
    for name, tensor in model.tensors.items():
        seen |= {fingerprint(model.replace(tensors={name: changed(tensor, at)}))
                 for at in (0, tensor.nbytes - 1, int(rng.integers(1, tensor.nbytes - 1)))}  # fmt: skip
    assert len(seen) == 1 + 3 * len(model.tensors)
    assert fingerprint(random_model()) in seen
    quantize_model(model, "rtn", "w4a16-g32", work_dir=tmp_path / "a")
    name = "model.layers.1.mlp.up_proj.weight"
    other = model.replace(tensors={name: changed(model.tensors[name], 4001)})
    with pytest.raises(QsimError, match="holds an unfinished run with another model: remove it"):
        quantize_model(other, "rtn", "w4a16-g32", work_dir=tmp_path / "a")


def test_every_part_of_a_quantised_tensor_and_every_setting_is_in_the_digest():
    q = quantize_model(random_model(), "fp8", "fp8-static-kvfp8", TOKENS).model
    asymmetric = quantize_model(random_model(), "gptq", "w4a16-g32", TOKENS, act_order=True).model
    name = "model.layers.0.mlp.up_proj.weight"
    one, two = q.tensors[name], asymmetric.tensors[name]
    models = [q, asymmetric]
    models.append(q.replace(tensors={name: replace(one, input_scale=2 * one.input_scale)}))
    models.append(q.replace(tensors={name: replace(one, codes=changed(one.codes, 5))}))
    models.append(asymmetric.replace(tensors={name: replace(two, scale_codes=two.scale_codes + np.uint16(1))}))
    models.append(asymmetric.replace(tensors={name: replace(two, zeros=two.zeros ^ np.uint8(1))}))
    models.append(asymmetric.replace(tensors={name: replace(two, group_index=two.group_index[::-1].copy())}))
    models.append(q.replace(kv_cache=None))
    models.append(q.replace(activation_format="bfloat16"))
    models.append(q.replace(linear_settings={"*": {"engine": "dequantized"}}))
    assert len({fingerprint(m) for m in models}) == len(models)
