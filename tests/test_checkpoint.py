import os
import pickle
from pathlib import Path

import pytest
import torch

from inference.checkpoint import atomic_write, load_checkpoint, save_checkpoint


def test_round_trip(tmp_path):
    content = {"weights": {"a": torch.arange(3.0)}, "seconds": 1.5, "name": "x", "none": None}
    save_checkpoint(tmp_path / "c.pt", content)
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert torch.equal(loaded["weights"]["a"], content["weights"]["a"])
    assert {key: loaded[key] for key in ("seconds", "name", "none")} == {"seconds": 1.5, "name": "x", "none": None}


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="stop"), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("stop")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_a_written_file_is_as_readable_as_any_other(tmp_path):
    with atomic_write(tmp_path / "ours") as temporary:
        temporary.write_text("x")
    (tmp_path / "theirs").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


class _Command:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def _hostile(path: Path) -> None:
    path.write_bytes(pickle.dumps(_Command(path.parent / "executed")))


def _hostile_torch(path: Path) -> None:
    torch.save({"x": _Command(path.parent / "executed")}, path)


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(b"PK\x03\x04 torn"), id="torn"),
        pytest.param(lambda path: path.write_text("not a checkpoint"), id="text"),
        # Read as commands of a pickle, these ask for what is not there.
        pytest.param(lambda path: path.write_bytes(b"half"), id="half"),
        pytest.param(lambda path: path.write_bytes(b"abc"), id="an empty stack"),
        pytest.param(lambda path: path.write_bytes(b"Jp"), id="a number cut off"),
        pytest.param(lambda path: torch.save(torch.zeros(2), path), id="no dictionary"),
        pytest.param(_hostile, id="pickle that runs a command"),
        pytest.param(_hostile_torch, id="checkpoint that runs a command"),
    ],
)
def test_damaged_files_are_refused_and_nothing_is_executed(tmp_path, write):
    path = tmp_path / "c.pt"
    write(path)
    with pytest.raises(ValueError, match=r"c\.pt: expected a checkpoint") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_checkpoint(tmp_path / "nothing.pt")
