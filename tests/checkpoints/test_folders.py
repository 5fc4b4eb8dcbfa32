"""Folders: whole or not at all, shards, and one sentence for every way in which one can be broken."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from qsim.checkpoints import read, write
from qsim.checkpoints import writer as writer_module
from qsim.checkpoints.folder import ShardWriter
from qsim.safetensors import INDEX, Stored, exactly, integers, open_file, open_folder, write_file

from .tiny import assert_same, quantized, tiny

ROOT = Path(__file__).parents[2]


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


# --- files and shards -------------------------------------------------------------------------------------------


def test_a_file_is_read_by_the_library(tmp_path):
    """safetensors reads it, every tensor starts at a multiple of its item size, and BF16 and FP8 keep their names."""
    safetensors = pytest.importorskip("safetensors")
    tensors = {
        "odd": Stored(dtype="U8", bits=np.arange(3, dtype=np.uint8)),
        "shape": integers(np.array([2, 5]), "I64"),
        "half": Stored(dtype="F16", bits=np.arange(5, dtype=np.float16)),
        "scalar": Stored(dtype="F32", bits=np.array(1.5, np.float32)),
        "brain": exactly(np.array([1.0, -2.0], np.float32), "bfloat16"),
        "eight": exactly(np.array([448.0], np.float32), "float8_e4m3fn"),
        "none": Stored(dtype="F32", bits=np.zeros((0, 4), np.float32)),
    }
    write_file(tmp_path / "x.safetensors", tensors)
    with safetensors.safe_open(tmp_path / "x.safetensors", framework="numpy") as file:
        assert set(file.keys()) == set(tensors)
        assert file.metadata() == {"format": "pt"}
        np.testing.assert_array_equal(file.get_tensor("half"), tensors["half"].bits)
        assert file.get_tensor("scalar") == 1.5
        assert file.get_slice("brain").get_dtype() == "BF16"
        assert file.get_slice("eight").get_dtype() == "F8_E4M3"
    for entry in open_file(tmp_path / "x.safetensors").values():
        assert entry.offset % max(1, entry.bits().itemsize) == 0
        np.testing.assert_array_equal(entry.bits(), tensors[entry.name].bits)


def test_shards_and_their_index(tmp_path):
    model = quantized("w4a16-g32")
    one, many = write(model, tmp_path / "one"), write(model, tmp_path / "many", shard_bytes=40_000)
    shards = sorted(n for n in many.files if n.endswith(".safetensors"))
    assert shards == [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    assert len(shards) > 3
    index = json.loads((tmp_path / "many" / INDEX).read_text())
    assert index["metadata"]["total_size"] == one.total_bytes == many.total_bytes
    sizes = [open_file(tmp_path / "many" / shard).nbytes for shard in shards]
    assert sum(sizes) == many.total_bytes
    assert max(sizes) <= 40_000
    assert set(index["weight_map"]) == set(open_folder(tmp_path / "one"))
    assert_same(read(tmp_path / "one"), read(tmp_path / "many"))


def test_a_tensor_larger_than_a_shard_has_its_own(tmp_path):
    write(tiny(), tmp_path / "out", shard_bytes=1)
    files = open_folder(tmp_path / "out")
    assert len({entry.path for entry in files.values()}) == len(files)
    with pytest.raises(ValueError, match="shard_bytes must be at least 1: got 0"):
        write(tiny(), tmp_path / "other", shard_bytes=0)


def test_a_name_twice(tmp_path):
    shards = ShardWriter(tmp_path)
    shards.add("a", integers(np.zeros(1), "I32"))
    with pytest.raises(ValueError, match="tensor a is written twice"):
        shards.add("a", integers(np.zeros(1), "I32"))


# --- whole or not at all ----------------------------------------------------------------------------------------


class Stop(BaseException):
    """As KeyboardInterrupt."""


@pytest.mark.parametrize("stop_at", [0, 5, 17])
@pytest.mark.parametrize("error", [RuntimeError, Stop])
def test_an_interrupted_write_leaves_nothing(tmp_path, stop_at, error):
    def progress(done, count, name):
        if done == stop_at:
            raise error

    with pytest.raises(error):
        write(quantized("w4a16-g32"), tmp_path / "out", shard_bytes=20_000, progress=progress)
    assert names(tmp_path) == set()


def test_an_interrupted_overwrite_leaves_the_old(tmp_path, monkeypatch):
    old = tiny()
    write(old, tmp_path / "out")

    def progress(done, count, name):
        if done == 9:
            raise Stop

    with pytest.raises(Stop):
        write(quantized("w4a16-g32"), tmp_path / "out", overwrite=True, progress=progress)
    assert names(tmp_path) == {"out"}
    assert_same(read(tmp_path / "out"), old)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer_module, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        write(quantized("w4a16-g32"), tmp_path / "out", overwrite=True)
    assert names(tmp_path) == {"out"}
    assert_same(read(tmp_path / "out"), old)


def test_a_move_that_fails_brings_the_old_back(tmp_path, monkeypatch):
    write(tiny(), tmp_path / "out")
    real = os.replace

    def replace(a, b):
        if ".partial-" in str(a) and Path(b).name == "out":
            raise OSError("the move failed")
        return real(a, b)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="the move failed"):
        write(quantized("w4a16-g32"), tmp_path / "out", overwrite=True)
    assert names(tmp_path) == {"out"}
    assert_same(read(tmp_path / "out"), tiny())


def test_a_killed_write_leaves_no_checkpoint(tmp_path):
    """SIGKILL runs no clean-up: what it leaves is hidden, and has neither config nor index."""
    code = f"""
        import os, signal, sys
        sys.path.insert(0, {str(ROOT)!r})
        from qsim.checkpoints import write
        from tests.checkpoints.tiny import quantized

        def progress(done, count, name):
            if done == count - 1:
                os.kill(os.getpid(), signal.SIGKILL)

        write(quantized("w4a16-g32"), {str(tmp_path / "out")!r}, shard_bytes=20_000, progress=progress)
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, check=False)
    assert result.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.partial-")
    found = names(left)
    assert len(found) > 2
    assert all(name.startswith("model-") and name.endswith("-of-00000.safetensors") for name in found)
    with pytest.raises(ValueError, match="has no config.json"):
        read(left)
    write(quantized("w4a16-g32"), tmp_path / "out")
    assert_same(read(tmp_path / "out"), quantized("w4a16-g32"))


def test_only_a_checkpoint_is_replaced_and_only_when_asked(tmp_path):
    model, out = tiny(), tmp_path / "out"
    write(model, out)
    with pytest.raises(ValueError, match=r"out exists: choose another folder, or overwrite=True"):
        write(model, out)
    write(quantized("w4a16-g32"), out, overwrite=True)
    assert names(tmp_path) == {"out"}
    assert_same(read(out), quantized("w4a16-g32"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"home is not a checkpoint \(it has no config.json\)"):
        write(model, tmp_path / "home", overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="file is not a folder"):
        write(model, tmp_path / "file", overwrite=True)
    (tmp_path / "link").symlink_to(tmp_path / "home")
    with pytest.raises(ValueError, match="link is not a folder"):
        write(model, tmp_path / "link", overwrite=True)
    (tmp_path / "empty").mkdir()
    write(model, tmp_path / "empty")
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"


def test_a_folder_that_appears_meanwhile_is_not_replaced(tmp_path):
    def progress(done, count, name):
        if done == 3:
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").write_text("x")

    with pytest.raises(ValueError, match="out exists"):
        write(tiny(), tmp_path / "out", progress=progress)
    assert names(tmp_path) == {"out"}
    assert names(tmp_path / "out") == {"theirs"}


def test_the_folder_has_the_usual_permissions(tmp_path):
    write(tiny(), tmp_path / "out")
    (tmp_path / "made").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "made").stat().st_mode


def test_progress_counts_tensors(tmp_path):
    seen = []
    write(tiny(), tmp_path / "out", progress=lambda *step: seen.append(step))
    assert [done for done, _, _ in seen] == list(range(len(tiny().tensors) + 1))
    assert seen[0] == (0, len(tiny().tensors), "model.embed_tokens.weight")
