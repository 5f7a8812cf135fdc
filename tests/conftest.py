import os
import shutil
import subprocess
import sys
from pathlib import Path

# The tests' matrices are too small to share between threads, and a second thread waits long for a core that is busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import matplotlib
import pyro
import pytest
import torch

matplotlib.use("Agg")

# The same examples in every run, however slow the machine.
hypothesis.settings.register_profile("reproducible", deadline=None, derandomize=True)
hypothesis.settings.load_profile("reproducible")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def clean_start():
    """Every test: an empty parameter store, validation on, seed 0, float64; figures are closed after it."""
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    pyro.enable_validation(True)
    pyro.set_rng_seed(0)
    yield
    # Torch's own default, whatever a fixture of a wider scope has left: the documents' examples run in it.
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()
    # Imported this late because few tests draw.
    from matplotlib import pyplot

    pyplot.close("all")


@pytest.fixture(scope="session")
def image_archives(tmp_path_factory):
    """A copy of a data folder that holds the original MNIST and Fashion-MNIST archives; skips where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    candidates = [Path(os.environ["PYRO_VAE_DATA"])] if os.environ.get("PYRO_VAE_DATA") else []
    for folder in [*candidates, beside]:
        archives = [folder / name / "raw" for name in ("MNIST", "FashionMNIST")]
        if all(len(list(raw.glob("*-ubyte.gz"))) == 4 for raw in archives):
            copy = tmp_path_factory.mktemp("data")
            for raw in archives:
                target = copy / raw.parent.name / "raw"
                target.mkdir(parents=True)
                for archive in raw.glob("*-ubyte.gz"):
                    shutil.copy(archive, target)
            return copy
    pytest.skip(f"the MNIST and Fashion-MNIST archives are neither in $PYRO_VAE_DATA nor in {beside}")


@pytest.fixture
def image_folder(image_archives, monkeypatch):
    """The same folder, as the one that `load` reads."""
    monkeypatch.setenv("PYRO_VAE_DATA", str(image_archives))
    return image_archives


@pytest.fixture(scope="module")
def fitted_run(tmp_path_factory):
    """A run, as a user makes it, without its pictures."""
    # Imported this late because few tests fit.
    import pyro_vae.drawing
    from pyro_vae.cli import main

    folder = tmp_path_factory.mktemp("runs") / "run"
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyro_vae.drawing, "_draw", lambda *_, **__: None)
        words = ["--training.epochs=1", "--num-latents=2", "decoder:mlp", "--decoder.hidden", "4"]
        assert main(["fit", f"--out={folder}", *words, "encoder:mlp", "--encoder.hidden", "4"]) == 0
    torch.set_default_dtype(before)
    return folder


@pytest.fixture
def run_benchmark(image_folder):  # noqa: ARG001 (the script reads it from the environment)
    """Run a script of benchmarks/ at a tiny size, as a user does: `run_benchmark("budget.py", out, "--jobs=1")`."""
    root = Path(__file__).resolve().parents[1]

    def run(script, out, *words):
        command = [sys.executable, str(root / "benchmarks" / script), f"--out={out}", "--dry-run", *words]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=environment)

    return run
