import os
import pickle
import tracemalloc
import zipfile
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


def _tampered(path: Path, change) -> None:
    """An archive by torch, with one of its members changed and its checksums right."""
    save_checkpoint(path, {"rows": torch.zeros(8, 4), "name": "x"})
    with zipfile.ZipFile(path) as archive:
        members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in change(members).items():
            archive.writestr(name, content)


def _shrunk(members):
    """The tensor says that it has 32 numbers; there are two."""
    return {name: content[:8] if name.endswith("data/0") else content for name, content in members.items()}


def _larger(members):
    """The tensor says that it has 8 times 2^31 - 1 numbers."""
    (name,) = [name for name in members if name.endswith("data.pkl")]
    # In pickle's code K is a byte, J four of them, and a tuple of sizes ends by a mark of its length.
    assert members[name].count(b"K\x08K\x04\x86") == 1
    return {**members, name: members[name].replace(b"K\x08K\x04\x86", b"K\x08J\xff\xff\xff\x7f\x86")}


def _without_numbers(members):
    return {name: content for name, content in members.items() if not name.endswith("data/0")}


def _with_code(members):
    (name,) = [name for name in members if name.endswith("data.pkl")]
    return {**members, name: b"cos\nsystem\n(S'false'\ntR."}


def _without_end(members):
    (name,) = [name for name in members if name.endswith("data.pkl")]
    return {**members, name: members[name][:-20]}


@pytest.mark.parametrize("change", [_shrunk, _larger, _without_numbers, _with_code, _without_end])
def test_tensors_with_lying_headers(tmp_path, change):
    """The checksums are those of what is there: the archive is whole, its content is not what it says."""
    path = tmp_path / "c.pt"
    _tampered(path, change)
    with pytest.raises(ValueError, match=r"c\.pt: expected a checkpoint") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    """What torch writes is not compressed; a thousand-fold member is none of its own."""
    path = tmp_path / "c.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("c/data.pkl", b"}.")
        with archive.open("c/data/0", "w") as member:
            for _ in range(64):
                member.write(bytes(2**20))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"c\.pt: expected a checkpoint"):
            load_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_an_archive_that_leads_outside_writes_nothing(tmp_path):
    (tmp_path / "in").mkdir()
    _tampered(tmp_path / "in" / "c.pt", lambda members: {**members, "../outside": b"x", "/tmp/outside": b"x"})
    try:
        load_checkpoint(tmp_path / "in" / "c.pt")
    except ValueError as error:
        assert "\n" not in str(error)
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]
