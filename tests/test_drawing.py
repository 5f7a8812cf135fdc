"""Draws and pictures follow a fit: whatever stops them, the run stays, and what they need not be they are not."""

import signal

import numpy as np
import pytest
import torch

from inference import Training
from pyro_vae import drawing, figures, jobs, plots
from pyro_vae.cli import main
from pyro_vae.drawing import draw_run, lacks_draws
from pyro_vae.figures import draw_each
from pyro_vae.jobs import fit_run, measure_run
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


def brief(folder, path, likelihood="bernoulli", **how):
    """A run with a latent plane, for which most pictures are drawn."""
    return fit_run(
        folder,
        data={"name_or_path": str(path)},
        parts=Parts(likelihood=options("likelihood", likelihood), **NETWORKS),
        num_latents=2,
        engine="svi",
        training=Training(epochs=1),
        seed=0,
        **how,
    )


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
    monkeypatch.setattr(drawing, "NUM_DRAWN", 3)
    monkeypatch.setattr(drawing, "draw_fit", lambda folder, *_: (folder / "elbo.png").touch() or {})
    with monkeypatch.context() as patch:
        patch.setattr(drawing, "refine", raising(MemoryError("no room")))
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
    monkeypatch.setattr(drawing, "_draw", raising(KeyboardInterrupt()))
    assert main(["fit", f"--out={out}", f"--data={data}", *WORDS, *ENCODER]) == 128 + signal.SIGINT
    said = capsys.readouterr().err
    assert f"the run in {out} is whole. The rest: pyro-vae resume {out}" in said and "no run was written" not in said
    assert lacks_draws(open_run(out)) and [path.name for path in tmp_path.iterdir()] == ["run"]


def test_terms_that_cannot_be_measured_do_not_stop_a_fit(tmp_path, data, monkeypatch, caplog):
    monkeypatch.setattr(jobs.TermTracker, "check", lambda *_, **__: None)
    monkeypatch.setattr(jobs.TermTracker, "_terms", raising(MemoryError("no room")))
    run = brief(tmp_path, data, draws=False, figures=False)
    assert "The terms of the ELBO could not be measured (MemoryError: no room); the fit goes on." in caplog.text
    assert run.fit.num_steps and "kl" not in (tmp_path / "metrics.jsonl").read_text()


def test_what_was_left_out_is_not_missing(tmp_path, data, monkeypatch, capsys):
    """A run remembers it: neither `resume`, nor a fit by its configuration, nor its report asks for it."""
    out, again = tmp_path / "run", tmp_path / "again"
    monkeypatch.setattr(drawing, "_draw", raising(AssertionError("nothing is to be drawn")))
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


PICTURES = ("plot_elbo", "plot_reconstructions", "plot_samples", "plot_traversals", "plot_aggregate", "plot_posterior")
NO_INK = raising(RuntimeError("no\nink."))


@pytest.mark.parametrize("broken", ["pictures", "surgery", "draws", "disk"])
def test_what_cannot_be_made_leaves_a_whole_run_and_one_line(tmp_path, data, monkeypatch, caplog, broken):
    made = brief(tmp_path, data)
    with monkeypatch.context() as patch:
        if broken == "pictures":
            for name in PICTURES:
                patch.setattr(plots, name, NO_INK)
        elif broken == "disk":
            patch.setattr(figures, "save", raising(OSError(28, "no ink")))
        else:
            patch.setattr(drawing, {"surgery": "elbo_surgery", "draws": "to_datatree"}[broken], NO_INK)
        failed = draw_run(made)
    assert failed
    (line,) = [record.getMessage() for record in caplog.records if "the run is whole" in record.getMessage()]
    assert "\n" not in line and f"pyro-vae resume {tmp_path}" in line and "no ink" in line
    opened = open_run(tmp_path)
    assert opened.fit.elbo.equal(made.fit.elbo)
    assert (tmp_path / "results.nc").is_file() == (broken != "draws")
    assert measure_run(opened, num_data=4, seed=0).amortization_gap.isfinite().all()
    # What failed is made when it is asked for again, and the gaps stay.
    assert lacks_draws(opened)
    assert main(["resume", str(tmp_path)]) == 0
    opened = open_run(tmp_path)
    assert not lacks_draws(opened) and {"posterior", "gaps"} <= set(opened.results.children)
    assert {"elbo.png", "posterior.png", "kl_per_dim.png"} <= {path.name for path in (tmp_path / "figures").iterdir()}


def test_gaps_are_on_disk_before_they_are_drawn(tmp_path, data, monkeypatch, caplog):
    made = brief(tmp_path, data, draws=False, figures=False)
    for name in ("plot_gaps", "plot_gap_scatter"):
        monkeypatch.setattr(plots, name, NO_INK)
    gaps = measure_run(made, num_data=4, seed=0)
    assert open_run(tmp_path).gaps.amortization_gap.equal(gaps.amortization_gap)
    assert "no ink" in caplog.text
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert "gap_histogram.png" in drawn and "gaps.png" not in drawn


@pytest.mark.parametrize("left_out", ["draws", "figures"])
def test_draws_or_pictures_can_be_left_out(tmp_path, data, left_out):
    made = brief(tmp_path, data, **{left_out: False})
    assert draw_run(made) == {} and not lacks_draws(open_run(tmp_path))
    assert (tmp_path / "results.nc").is_file() == (left_out == "figures")
    assert (tmp_path / "figures" / "elbo.png").is_file() == (left_out == "draws")
    assert main(["report", str(tmp_path)]) == 0


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_images_of_any_number_of_channels_are_drawn(tmp_path, channels):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((60, 6, 6, channels)).astype("float32"))
    made = brief(tmp_path, tmp_path / "x.npy", "gaussian")
    assert draw_run(made) == {}
    measure_run(made, num_data=3, seed=0)
    assert (tmp_path / "figures" / "worst.png").is_file()


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
def test_a_latent_plane_of_values_far_from_zero_is_drawn(tmp_path, offset):
    """The log joint there has no digit for the six nats that the picture looks for."""
    x = offset + 1e3 * np.random.default_rng(0).standard_normal((60, 3))
    np.save(tmp_path / "x.npy", x.astype("float32"))
    assert draw_run(brief(tmp_path, tmp_path / "x.npy", "gaussian")) == {}
    assert (tmp_path / "figures" / "posterior.png").is_file()
