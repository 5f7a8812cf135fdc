import dataclasses

import numpy as np
import pytest
import torch

from inference import Training, elbo
from pyro_vae.data import load
from pyro_vae.drawing import draw_run
from pyro_vae.engines import objective_to_config
from pyro_vae.jobs import fit_guide, fit_run, measure_run, start_at_data
from pyro_vae.parts import Parts, options
from pyro_vae.priors import StandardNormal, VampPrior
from pyro_vae.run import open_run

BRIEF = Training(epochs=1, batch_size=400, local_steps=1)
NETWORKS = {kind: options(kind, "mlp", hidden=(8,)) for kind in ("decoder", "encoder")}


def run(folder, engine="svi", num_latents=3, **parts):
    chosen = {"likelihood": options("likelihood", "binomial"), **NETWORKS, **parts}
    made = fit_run(
        folder,
        data={"name_or_path": "digits"},
        parts=Parts(**chosen),
        num_latents=num_latents,
        engine=engine,
        training=BRIEF,
        seed=0,
    )
    draw_run(made)
    return made


@pytest.mark.parametrize(
    ("engine", "parts"),
    [
        pytest.param("svi", {"prior": options("prior", "uniform")}, id="a box"),
        pytest.param("svi", {"family": options("family", "planar-flow")}, id="a flow without a density"),
        pytest.param(
            "em",
            {"family": options("family", "coupling-flow", num_layers=2)},
            id="a flow in EM",
            marks=pytest.mark.slow,
        ),
        pytest.param("svi", {"prior": options("prior", "horseshoe")}, id="more latents than the decoder reads"),
    ],
)
def test_whatever_the_parts_a_run_is_complete(tmp_path, engine, parts):
    """Fitted, drawn, opened again and used: where a mean has no closed form, too."""
    torch.set_default_dtype(torch.float32)
    run(tmp_path, engine, **parts)
    opened = open_run(tmp_path)
    drawn = {p.name for p in (tmp_path / "figures").iterdir()}
    assert {"elbo.png", "reconstructions.png", "samples.png", "traversals.png", "aggregate.png"} <= drawn
    assert ("elbo_terms.png" in drawn) == (engine == "svi")
    assert opened.results["posterior"]["z"].shape[-1] == opened.vae.num_latents
    assert opened.vae.generate(3, seed=0).shape == (3, 64)


@pytest.mark.slow
def test_the_rows_of_em_keep_their_family_when_a_guide_is_fitted(tmp_path):
    """Its shared weights are other than those of the guide's."""
    torch.set_default_dtype(torch.float32)
    fitted = run(tmp_path, "em", family=options("family", "coupling-flow", num_layers=2))
    x = fitted.dataset.train.head(64)

    def score(run):
        guide = run.local_guide.rows(torch.arange(64))
        return elbo(run.vae.model, guide, x, num_draws=50, seed=0).value

    before = score(fitted)
    guide, _ = fit_guide(fitted, training=BRIEF, seed=0)
    assert torch.equal(score(fitted), before)
    again = open_run(tmp_path)
    assert torch.equal(score(again), before)
    for ours, theirs in zip(again.vae.guide.parameters(), guide.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_an_encoder_whose_fit_was_cut_short_is_named(tmp_path, monkeypatch, caplog):
    """Gaps of an EM run are measured with an encoder that is fitted to it first."""
    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr("pyro_vae.drawing._draw", lambda *_, **__: None)
    fitted = run(tmp_path, "em")

    class Reached(Exception):
        pass

    def reached(*_, **__):
        raise Reached

    monkeypatch.setattr("pyro_vae.jobs.measure_gaps", reached)
    settings = {"training": {"epochs": 40}}
    for curve, said in ((torch.linspace(-30, -20, 40), True), (torch.full((40,), -20.0), False)):
        caplog.clear()
        fit = dataclasses.replace(fitted.fit, elbo=curve.double(), elbo_validation=None, settings=settings)
        monkeypatch.setattr("pyro_vae.jobs.fit_guide", lambda run, fit=fit, **_: (run.new_guide(), fit))
        with pytest.raises(Reached):
            measure_run(fitted, num_data=2)
        assert ("encoder that was fitted to its model: The ELBO was still rising" in caplog.text) == said


@pytest.mark.slow
def test_a_vamp_prior_starts_at_training_data(tmp_path):
    torch.set_default_dtype(torch.float32)
    train = load("digits", binarize="fixed").train
    fitted = run(tmp_path, prior=options("prior", "vamp-prior", num_components=5))
    assert isinstance(fitted.vae.prior, VampPrior)
    gaps = measure_run(fitted, num_data=4, seed=0)
    assert gaps.log_evidence.isfinite().all()
    with pytest.raises(ValueError, match="holds the gaps of 4 datapoints; nothing was touched.*replace=True"):
        measure_run(open_run(tmp_path), num_data=2, seed=0)
    assert len(measure_run(fitted, num_data=2, seed=0, replace=True)) == 2
    prior = VampPrior(fitted.vae.guide, num_components=5, max_value=1.0)
    start_at_data(prior, train, seed=0)
    nearest = torch.cdist(prior.pseudo_inputs.detach(), train.tensor()).amin(1)
    assert nearest.max() < 0.01 * 64**0.5 + 1e-4
    normal = StandardNormal(2)
    start_at_data(normal, train, seed=0)  # Has nothing to start.


def test_an_objective_that_a_run_cannot_keep_is_refused_before_the_fit():
    with pytest.raises(ValueError, match="expected one of pathwise.*which a run can keep"):
        objective_to_config(object())


def test_svi_without_an_encoder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="encoder: expected one for the engine svi.*pyro-vae em"):
        run(tmp_path, encoder=None)


EIGHT_BITS = np.random.default_rng(0).poisson(2.0, (100, 10)).astype(np.uint8)


@pytest.mark.parametrize(
    ("likelihood", "message"),
    [
        pytest.param(None, "holds 8-bit integers, from 0 to 9: expected a choice", id="none"),
        pytest.param(("negative-binomial", {}), r"0\.00784314 \(the 8-bit 2, divided by 255\)", id="counts"),
        pytest.param(("bernoulli", {}), r"0\.00784314 \(the 8-bit 2, divided by 255\)", id="bits"),
        pytest.param(("binomial", {}), r"largest value is 0\.0352941 \(the 8-bit 9, divided by 255\)", id="no total"),
        pytest.param(("binomial", {"total_count": 9}), r"\(the 8-bit 2, divided by 255\)", id="total"),
    ],
)
@pytest.mark.parametrize("engine", ["svi", "em"])
def test_counts_in_8_bits_are_named_as_the_file_has_them(tmp_path, engine, likelihood, message):
    np.save(tmp_path / "x.npy", EIGHT_BITS)
    chosen = None if likelihood is None else options("likelihood", likelihood[0], **likelihood[1])
    with pytest.raises(ValueError, match=rf'{message}.*x\.astype\("int64"\)') as error:
        fit_run(
            tmp_path,
            data={"name_or_path": str(tmp_path / "x.npy")},
            parts=Parts(likelihood=chosen, **NETWORKS),
            num_latents=2,
            engine=engine,
            training=BRIEF,
            seed=0,
        )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("engine", ["svi", "em"])
def test_the_total_that_is_chosen_covers_held_out_counts(tmp_path, engine):
    x = np.random.default_rng(0).poisson(2.0, (100, 3))
    x[load(x).test.rows[0], 1] = 25
    np.save(tmp_path / "x.npy", x)
    made = fit_run(
        tmp_path,
        data={"name_or_path": str(tmp_path / "x.npy")},
        parts=Parts(likelihood=None, **NETWORKS),
        num_latents=2,
        engine=engine,
        training=BRIEF,
        seed=0,
    )
    assert "Binomial(25)" in repr(made.vae) and "Binomial(25)" in repr(open_run(tmp_path).vae)
