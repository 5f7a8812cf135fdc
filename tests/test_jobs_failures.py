"""What follows a fit may be stopped or fail in further ways; the fit stays."""

import signal

import numpy as np
import pytest
import torch

from inference import Training
from pyro_vae import jobs
from pyro_vae.cli import main
from pyro_vae.figures import draw_each
from pyro_vae.jobs import fit_run, lacks_draws
from pyro_vae.parts import Parts, options
from pyro_vae.run import open_run

NETWORKS = {kind: options(kind, "mlp", hidden=(4,)) for kind in ("decoder", "encoder")}
WORDS = ["--num-latents=2", "--training.epochs=1", "decoder:mlp", "--decoder.hidden", "4"]
ENCODER = ["encoder:mlp", "--encoder.hidden", "4"]


@pytest.fixture(autouse=True)
def _single_precision():
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "data.npy"
    np.save(path, np.random.default_rng(0).integers(0, 2, (60, 5)))
    return str(path)


def raising(error):
    def function(*_, **__):
        raise error

    return function


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), MemoryError(), IndexError("no\nelement.")], ids=type
)
def test_a_picture_that_fails_leaves_the_others_and_no_open_figure(tmp_path, error):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()

    def half():
        plt.subplots()
        raise error

    failed = draw_each(tmp_path, {"first": half, "second": lambda: plt.subplots()[1], "third": lambda: None})
    assert list(failed) == [f"{tmp_path.name}/first.png"] and type(error).__name__ in str(failed)
    assert [path.name for path in tmp_path.iterdir()] == ["second.png"] and plt.get_fignums() == before


def test_a_search_for_rows_that_fails_leaves_the_run_of_em(tmp_path, data, monkeypatch, capsys):
    """The command ends well, says so in one line, and `resume` makes the rest."""
    out = tmp_path / "run"
    monkeypatch.setattr(jobs, "NUM_DRAWN", 3)
    monkeypatch.setattr(jobs, "draw_fit", lambda folder, *_: (folder / "elbo.png").touch() or {})
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "refine", raising(MemoryError("no room")))
        assert main(["em", f"--out={out}", f"--data={data}", *WORDS]) == 0
    said = capsys.readouterr()
    warnings = [line for line in said.err.splitlines() if "could not be given" in line]
    assert len(warnings) == 1 and "MemoryError: no room" in warnings[0] and "Traceback" not in said.err
    assert f"Written to {out}" in said.out and open_run(out).fit.num_steps
    assert main(["resume", str(out)]) == 0
    assert "posterior" in open_run(out).results and not (out / "not-made.json").exists()
    assert main(["resume", str(out)]) == 2
    assert "the run there is complete" in capsys.readouterr().err


def test_an_interruption_after_the_fit_keeps_the_run(tmp_path, data, monkeypatch, capsys):
    out = tmp_path / "run"
    monkeypatch.setattr(jobs, "_draw", raising(KeyboardInterrupt()))
    assert main(["fit", f"--out={out}", f"--data={data}", *WORDS, *ENCODER]) == 128 + signal.SIGINT
    said = capsys.readouterr().err
    assert f"the run in {out} is whole. The rest: pyro-vae resume {out}" in said and "no run was written" not in said
    assert lacks_draws(open_run(out)) and [path.name for path in tmp_path.iterdir()] == ["run"]


def test_terms_that_cannot_be_measured_do_not_stop_a_fit(tmp_path, data, monkeypatch, caplog):
    monkeypatch.setattr(jobs.TermTracker, "check", lambda *_, **__: None)
    monkeypatch.setattr(jobs.TermTracker, "_terms", raising(MemoryError("no room")))
    run = fit_run(
        tmp_path,
        data={"name_or_path": data},
        parts=Parts(likelihood=options("likelihood", "bernoulli"), **NETWORKS),
        num_latents=2,
        engine="svi",
        training=Training(epochs=1),
        seed=0,
        draws=False,
        figures=False,
    )
    assert "The terms of the ELBO could not be measured (MemoryError: no room); the fit goes on." in caplog.text
    assert run.fit.num_steps and "kl" not in (tmp_path / "metrics.jsonl").read_text()


def test_what_was_left_out_is_not_missing(tmp_path, data, monkeypatch, capsys):
    """A run remembers it: neither `resume`, nor a fit by its configuration, nor its report asks for it."""
    out, again = tmp_path / "run", tmp_path / "again"
    monkeypatch.setattr(jobs, "_draw", raising(AssertionError("nothing is to be drawn")))
    assert main(["fit", f"--out={out}", f"--data={data}", "--no-draws", "--no-figures", *WORDS, *ENCODER]) == 0
    assert main(["fit", f"--config={out}", f"--out={again}"]) == 0
    assert "could not" not in capsys.readouterr().err
    for folder in (out, again):
        assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.pt", "config.json", "metrics.jsonl"]
    assert main(["resume", str(out)]) == 2 and "complete" in capsys.readouterr().err
    assert main(["report", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert "results.nc is missing" not in page and "elbo.png is missing" not in page
    assert "There are no pictures." in page
