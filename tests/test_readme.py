"""The code in the README and the documents runs as it stands there."""

import re
from pathlib import Path

import pyro
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def test_python_blocks_run(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    torch.set_default_dtype(torch.float32)
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)  # noqa: S102
    said = capsys.readouterr().out
    assert said.count("amortization gap") >= 2
    assert "ELBO of the guide" in said
    assert not list(pyro.get_param_store().keys())


def test_the_files_it_names_exist():
    text = (ROOT / "README.md").read_text()
    names = set(re.findall(r"`((?:inference|pyro_vae|docs|tests)/\w+\.\w+)`", text))
    assert len(names) > 10
    missing = [name for name in names if not (ROOT / name).is_file()]
    assert not missing


@pytest.mark.parametrize("target", ["demo", "test"])
def test_its_two_commands_are_targets(target):
    assert f"make {target}" in (ROOT / "README.md").read_text()
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
