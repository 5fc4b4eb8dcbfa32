"""Token ids out of files: read whole, or one sentence; and bytes as tokens."""

from __future__ import annotations

import io
import json
import pickle
import struct

import numpy as np
import pytest
from click.testing import CliRunner

from qsim.cli import main
from qsim.errors import QsimError
from qsim.models import ModelConfig, evaluate, load
from qsim.models.tokens import read_token_ids, text_or_ids, with_byte_tokens

from .small import CONFIGS, random_model, random_tensors, write_folder


def npy(array: np.ndarray, **settings) -> bytes:
    out = io.BytesIO()
    np.save(out, array, **settings)
    return out.getvalue()


def header(text: str) -> bytes:
    raw = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw


@pytest.mark.parametrize("dtype", ["<i8", ">i4", "u1", "<u2"])
@pytest.mark.parametrize("shape", [(24,), (2, 12), (1, 24)])
def test_ids_of_every_kind(tmp_path, dtype, shape):
    ids = np.arange(24).reshape(shape)
    (tmp_path / "ids.npy").write_bytes(npy(np.asfortranarray(ids.astype(dtype))))
    (tmp_path / "ids.json").write_text(json.dumps(ids.tolist()))
    for name in ("ids.npy", "ids.json"):
        found = read_token_ids(tmp_path / name, 24)
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, ids)
        with pytest.raises(QsimError, match=rf"{name}: token ids must be from 0 to 22, .*: got 23"):
            read_token_ids(tmp_path / name, 23)


def archive() -> bytes:
    out = io.BytesIO()
    np.savez(out, a=np.arange(3))
    return out.getvalue()


NO_NPY = {
    "empty": b"", "text": b"hello", "cut": npy(np.arange(9))[:-3], "head": npy(np.arange(9))[:20],
    "pickle": pickle.dumps([1, 2]), "objects": npy(np.array([1, None], object), allow_pickle=True),
    "archive": archive(), "broken archive": archive()[:40], "floats": npy(np.ones(3)), "texts": npy(np.array(["a"])),
    "structured": npy(np.zeros(3, "i4,i4")), "none": npy(np.zeros(0, int)), "cube": npy(np.zeros((2, 2, 2), int)),
    "scalar": npy(np.array(3)), "negative": npy(np.array([-1])), "booleans": npy(np.array([True])),
    "a promise of terabytes": header("{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }"),
    "beyond memory": header("{'descr': '<i8', 'fortran_order': False, 'shape': (" + "9" * 40 + ",), }"),
    "code": header("{'descr': __import__('os'), 'fortran_order': False, 'shape': (1,), }"),
    "nested": header("(" * 3000 + ")" * 3000), "no shape": header("{'descr': '<i8'}"),
}  # fmt: skip
NO_JSON = {
    "empty": "", "object": "{}", "texts": '["a"]', "floats": "[1.0]", "booleans": "[true]", "none": "[]",
    "nothing in it": "[[]]", "ragged": "[[1], [2, 3]]", "cube": "[[[1]]]", "mixed": "[1, [2]]", "negative": "[-1]",
    "huge": "[" + "9" * 400 + "]", "digits": "[" + "9" * 5000 + "]", "nested": "[" * 5000 + "]" * 5000,
    "null": "[null]",
}  # fmt: skip


@pytest.mark.parametrize(("suffix", "what"), [(".npy", w) for w in NO_NPY] + [(".json", w) for w in NO_JSON])
def test_what_is_no_file_of_ids_is_one_sentence(tmp_path, suffix, what):
    path = tmp_path / f"ids{suffix}"
    path.write_bytes(NO_NPY[what] if suffix == ".npy" else NO_JSON[what].encode())
    with pytest.raises(QsimError) as caught:
        read_token_ids(path, 96)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_other_files_are_texts(tmp_path):
    (tmp_path / "text.txt").write_text("[1, 2]")
    assert text_or_ids(tmp_path / "text.txt", random_model()) == b"[1, 2]"
    with pytest.raises(QsimError, match="token ids are read from files that end in .npy or .json"):
        read_token_ids(tmp_path / "text.txt", 96)
    with pytest.raises(OSError, match="nowhere"):
        read_token_ids(tmp_path / "nowhere.npy", 96)


def test_bytes_as_tokens():
    model = with_byte_tokens(random_model(vocab_size=256))
    text = "def f(x):\n" * 8
    assert (
        evaluate(model, text, window=32).nll == evaluate(model, np.frombuffer(text.encode(), np.uint8), window=32).nll
    )
    with pytest.raises(QsimError, match="need a vocabulary of at least 256: the model has 96"):
        with_byte_tokens(random_model())
    with pytest.raises(QsimError, match=r"must be one list \(T,\): got shape \(2, 32\)"):
        evaluate(model, np.zeros((2, 32), int), window=32)


# --- from the command line --------------------------------------------------------------------------------------


def run(*args: object):
    return CliRunner().invoke(main, [str(a) for a in args], prog_name="qsim", env={"COLUMNS": "100"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder without a tokenizer."""
    path = tmp_path_factory.mktemp("models") / "small"
    config = {**CONFIGS["llama"], "vocab_size": 256}
    write_folder(path, config, random_tensors(ModelConfig.from_dict(config)))
    return path


def test_a_folder_without_tokenizer_is_calibrated_and_measured(folder, tmp_path):
    text = "for i in range(10): print(i)\n" * 10
    ids = np.frombuffer(text.encode(), np.uint8)
    (tmp_path / "text.txt").write_text(text)
    np.save(tmp_path / "ids.npy", ids)
    (tmp_path / "ids.json").write_text(json.dumps(ids.tolist()))
    np.save(tmp_path / "windows.npy", ids[: len(ids) // 32 * 32].reshape(-1, 32))
    common = ("quantize", folder, "--method", "gptq", "--scheme", "w4a16-g32")
    refused = run(*common, "--calibration", tmp_path / "text.txt", "--out", tmp_path / "no")
    assert refused.exit_code == 2
    assert (
        "has no tokenizer: give calibration as token ids (a .npy or .json file), or --tokenizer bytes" in refused.stderr
    )
    made = {}
    for name, more in {"text.txt": ("--tokenizer", "bytes"), "ids.npy": (), "ids.json": ()}.items():
        out = tmp_path / name.replace(".", "-")
        result = run(*common, "--calibration", tmp_path / name, "--window", 32, "--out", out, *more)
        assert result.exit_code == 0, result.stderr
        made[name] = load(out)
    result = run(*common, "--calibration", tmp_path / "windows.npy", "--out", tmp_path / "windows")
    assert result.exit_code == 0, result.stderr
    made["windows.npy"] = load(tmp_path / "windows")
    first = made.pop("text.txt")
    for other in made.values():
        for name in first.linears():
            assert other.tensors[f"{name}.weight"] == first.tensors[f"{name}.weight"]

    measured = run("eval", folder, "--text", tmp_path / "ids.npy", "--window", 32)
    assert measured.exit_code == 0, measured.stderr
    assert "bits per byte    unknown" in measured.stdout
    assert "None" not in measured.stdout
    by_bytes = json.loads(run("eval", folder, "--text", tmp_path / "text.txt", "--tokenizer", "bytes", "--window", 32,
                              "--json").stdout)  # fmt: skip
    by_ids = json.loads(run("eval", folder, "--text", tmp_path / "ids.json", "--window", 32, "--json").stdout)
    assert by_bytes["nll"] == by_ids["nll"]
    assert by_bytes["bytes"] == len(ids) - 1
    np.save(tmp_path / "beyond.npy", ids.astype(int) + 200)
    wrong = run("eval", folder, "--text", tmp_path / "beyond.npy", "--window", 32)
    assert wrong.exit_code == 2
    assert "token ids must be from 0 to 255, the model's vocabulary" in wrong.stderr
