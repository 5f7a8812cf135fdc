"""Folders that cannot be written to: a line that names the file and what to do, before the work where that is known."""

import os
import re
import shutil
import subprocess

import pytest
import torch

import pyro_vae.jobs
from inference.checkpoint import save_checkpoint
from pyro_vae.cli import main


@pytest.fixture
def folder(fitted_run, tmp_path):
    """A folder with a run in it that nobody can write to: for root, to whom permissions say nothing, a file system."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    as_root = os.geteuid() == 0
    if (
        as_root
        and subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True, check=False).returncode
    ):
        pytest.skip("root may write everywhere, and cannot mount a file system here")
    shutil.copytree(fitted_run, folder / "run")
    torch.set_default_dtype(torch.float32)
    try:
        if as_root:
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        else:
            for place in (folder / "run", folder):
                place.chmod(0o555)
        yield folder
    finally:
        if as_root:
            subprocess.run(["umount", folder], check=True)
        else:
            for place in (folder, folder / "run"):
                place.chmod(0o755)


WORDS = {
    "fit": (["fit", "--out={0}/new"], "{0}/new: cannot be written .*Choose another folder"),
    "fit over it": (["fit", "--out={0}/run", "--overwrite"], "{0}/run: cannot be written .*Choose another folder"),
    "compare": (["compare", "--out={0}/new"], "{0}/new: cannot be written .*Choose another folder"),
    "report": (["report", "{0}/run"], r"{0}/run/report\.html: cannot be written .*Choose a folder that you may write"),
    "generate": (["generate", "{0}/run", "--out={0}/x.npy"], r"{0}/x\.npy: cannot be written .*Choose a folder"),
    "gaps": (["gaps", "{0}/run"], "{0}/run: expected a run folder that can be written to.*Copy it"),
}


@pytest.mark.parametrize(("words", "message"), WORDS.values(), ids=WORDS)
def test_commands(folder, capsys, monkeypatch, words, message):
    monkeypatch.setattr(pyro_vae.jobs, "measure_gaps", None)
    monkeypatch.setattr(pyro_vae.jobs, "fit_by", None)
    assert main([word.format(folder) for word in words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and re.search(message.format(folder), said)


def test_a_checkpoint_has_the_number_of_the_system_s_error(folder):
    """By which a run knows that it may go on without."""
    with pytest.raises(OSError, match=r"c\.pt: cannot be written") as error:
        save_checkpoint(folder / "c.pt", {"x": torch.zeros(2)})
    assert error.value.errno and error.value.strerror == os.strerror(error.value.errno)
