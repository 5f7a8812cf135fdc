"""The README: its code runs as it stands there, what it names is there, and its numbers are those of the records."""

import re
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pyro
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_python_blocks_run(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    torch.set_default_dtype(torch.float32)
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)  # noqa: S102
    said = capsys.readouterr().out
    assert said.count("amortization gap") >= 2
    assert "ELBO of the guide" in said
    assert not list(pyro.get_param_store().keys())


def test_what_it_names_exists():
    """Files and folders in code, scripts in commands, and links."""
    names = set(re.findall(r"\b(?:inference|pyro_vae|docs|tests|benchmarks)/[\w/-]*(?:\.\w+)?", TEXT))
    names |= set(re.findall(r"\]\((?!https:)([^)#]+)", TEXT))
    names.discard("docs/_build/html")  # made by `make docs`
    assert len(names) > 40
    assert not [name for name in names if not (ROOT / name).exists()]


def test_it_lists_every_page():
    table = TEXT[TEXT.index("## Pages") :].split("\n## ")[0]
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} - {"docs/index.md"}
    assert set(re.findall(r"\]\((docs/[^)]+)\)", table)) == pages


def test_its_anchors_are_headings():
    links = re.findall(r"\]\(([^):#]*)#([^)]+)\)", TEXT)
    assert len(links) >= 4
    for file, anchor in links:
        text = (ROOT / (file or "README.md")).read_text()
        headings = {
            re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.+)$", text, re.M)
        }
        assert anchor in headings, (file, anchor)


def row(page, first):
    """The cells of the one table row that begins so."""
    lines = [line for line in (ROOT / "docs" / page).read_text().splitlines() if line.startswith(f"| {first} |")]
    assert len(lines) == 1, (first, len(lines))
    return [cell.strip() for cell in lines[0].strip("|").split("|")]


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        ("against Pyro's SVI, B = 128", "{} and {} times at batch size 128"),
        ("against Pyro's SVI, B = 1", "{} and {} times at batch size 1 |"),
        ("E-step to < 0.05 nat against tuned one-copy Adam", "{} times on MNIST, {} times on Fashion-MNIST"),
    ],
)
def test_its_speeds_are_those_of_the_three_runs(ratio, said):
    runs = [[Decimal(value) for value in cell.split(" / ")] for cell in row("speed.md", ratio)[3:]]
    assert len(runs) == 3
    tenth = Decimal("0.1")
    ends = [[end.quantize(tenth, ROUND_HALF_UP) for end in (min(both), max(both))] for both in zip(*runs, strict=True)]
    words = [said.format(*(f"{low} to {high}" for low, high in ends))]
    flat = re.sub(r" \([^()]*\)", "", TEXT)  # which models
    assert any(one in flat for one in words), words


def test_its_gaps_on_mnist_are_those_of_the_study():
    text = (ROOT / "docs" / "studies.md").read_text()
    table = text[text.index("MNIST, test images:") :]
    cells = next(line for line in table.splitlines() if line.startswith("| mean-field guide |")).split(" | ")
    approximation, amortization = cells[5], cells[6]
    assert f"{amortization} by the encoder, {approximation} by a mean-field family" in TEXT
