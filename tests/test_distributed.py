"""Several processes on loopback against one: the same numbers, one clear end where one is killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from inference.checkpoint import load_checkpoint

# Each starts processes that import everything anew.
pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent / "ranks.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def run(folder, phase, *, processes, check=True):
    """The script, alone or in so many processes."""
    folder.mkdir(exist_ok=True)
    port = [] if processes == 1 else ["--standalone", f"--nproc-per-node={processes}"]
    start = [sys.executable] if processes == 1 else [*TORCHRUN, *port]
    # The threads of several processes would only wait for each other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent.parent)}
    done = subprocess.run(
        [*start, str(SCRIPT), str(folder), phase], env=environment, capture_output=True, text=True, timeout=300
    )
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    run(folder, "all", processes=1)
    return load_checkpoint(folder / "found.pt")


def compare(ours, theirs):
    for name, values in theirs.items():
        torch.testing.assert_close(
            ours[name], values, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("processes", [2, 4])
def test_the_numbers_of_one_process(alone, processes, tmp_path):
    run(tmp_path, "all", processes=processes)
    found = load_checkpoint(tmp_path / "found.pt")
    assert found.keys() == alone.keys() and len(found) > 12
    compare(found, alone)


@pytest.mark.parametrize("phase", ["svi dies", "em dies", "gaps die", "iwae dies", "ais dies"])
def test_a_killed_process_ends_the_job(phase, tmp_path):
    done = run(tmp_path, phase, processes=2, check=False)
    assert done.returncode == 1
    # Torchrun names the process and the signal; what others say besides is one line of ours.
    assert done.stderr.count("Signal 9 (SIGKILL) received") == 1
    ours = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(ours) <= 1 and all("another process has ended" in line for line in ours)
    assert "Traceback" not in done.stderr.partition("torch/distributed")[0]
    assert not (tmp_path / "found.pt").exists()


@pytest.mark.parametrize(("dies", "goes_on"), [("svi dies", "resume"), ("em dies", "resume em")])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_another_number_of_processes_goes_on(alone, dies, goes_on, processes, tmp_path):
    assert run(tmp_path, dies, processes=2, check=False).returncode == 1
    assert list(tmp_path.glob("*/step-*.pt"))
    run(tmp_path, goes_on, processes=processes)
    found = load_checkpoint(tmp_path / "found.pt")
    compare(found, {name: alone[name] for name in found})
