"""What the pictures of a run are computed from, where it is more than decoding."""

from types import SimpleNamespace

import pytest
import torch
import xarray as xr
from plot_records import make_fit
from pyro.distributions import Gamma

from inference import Amortized, Constrained, Evidence, Gaps, Local, MeanField, PlanarFlow
from pyro_vae import figures, jobs
from pyro_vae.data import load
from pyro_vae.engines import ENGINES
from pyro_vae.likelihoods import Binomial
from pyro_vae.networks import MLP
from pyro_vae.priors import StandardNormal
from pyro_vae.vae import VAE

X = torch.tensor([[0.0, 4.0, 4.0, 1.0], [1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
POSITIVE = Gamma(torch.ones(2, dtype=torch.float64), 1.0).to_event(1)


def make_vae(family, prior=None, *, shift=0.0):
    """An untrained model, and an encoder that puts the mean of q off by `shift`."""
    encoder = MLP(4, 8, family.num_params)
    with torch.no_grad():
        list(encoder.parameters())[-1][:2] += shift
    prior = StandardNormal(2) if prior is None else prior
    decoder = torch.nn.Linear(2, 4)
    return VAE(prior=prior, likelihood=Binomial(4), decoder=decoder, family=family, encoder=encoder)


def mass(grid, log_density):
    return float(log_density.exp().sum() * (grid[:, 1] - grid[:, 0]).prod())


class TestPosterior:
    @pytest.mark.parametrize("shift", [0.0, 30.0])
    def test_the_grid_holds_the_posterior_and_q_however_far_apart(self, shift):
        vae = make_vae(MeanField(2), shift=shift)
        grid, log_joint, log_q = figures._posterior(vae, vae.guide, X)
        below = log_joint - log_joint.max()
        edges = torch.cat([below[0], below[-1], below[:, 0], below[:, -1]])
        assert edges.max() < -4 and (below > -3).sum() > 20
        assert list(log_q) == ["q", "q*"]
        for density in log_q.values():
            assert mass(grid, density) == pytest.approx(1, abs=0.02)
        figures.plots.plot_posterior(grid, log_joint, log_q).figure.canvas.draw()

    def test_rows_of_variational_em_are_q_star(self):
        vae = make_vae(MeanField(2))
        rows = torch.tensor([[1.0, -1.0, 0.0, 0.0], [5.0, 5.0, 0.0, 0.0]])
        grid, _, log_q = figures._posterior(vae, Local(MeanField(2), rows), X)
        peak = torch.cartesian_prod(*grid)[log_q["q*"].argmax()]
        assert list(log_q) == ["q*"] and torch.allclose(peak, rows[0, :2], atol=0.1)

    def test_a_family_whose_density_is_not_known_everywhere_is_left_out(self):
        vae = make_vae(PlanarFlow(2))
        grid, log_joint, log_q = figures._posterior(vae, vae.guide, X)
        assert not log_q and log_joint.isfinite().all() and len(grid) == 2

    def test_there_is_no_mass_outside_the_prior_s_support(self):
        vae = make_vae(Constrained(MeanField(2), POSITIVE.support), POSITIVE)
        grid, log_joint, log_q = figures._posterior(vae, vae.guide, X)
        outside = (torch.cartesian_prod(*grid) < 0).any(-1).reshape(log_joint.shape)
        assert outside.any()
        for surface in (log_joint, *log_q.values()):
            assert (surface[outside] == -torch.inf).all() and not surface.isnan().any()


class TestTraversals:
    def test_dimensions_whose_mean_hardly_varies_are_inactive(self):
        vae, x = make_vae(MeanField(2)), torch.rand(50, 4, dtype=torch.float64)
        z = torch.randn(50, 2, dtype=torch.float64) * torch.tensor([1.0, 0.05])
        images, names = figures._traversals(vae, vae.guide, x, z)
        assert names == ["$z_{1}$", "$z_{2}$\n(inactive)"] and images.shape == (2, figures.NUM_STEPS, 4)

    @pytest.mark.parametrize("scale", [1.0, 0.0])
    def test_the_picture_says_what_inactive_means(self, scale, monkeypatch, tmp_path):
        vae, notes = make_vae(MeanField(2)), {}
        with torch.no_grad():
            list(vae.guide.encoder.parameters())[-2].mul_(scale)
        monkeypatch.setattr(
            figures, "save", lambda ax, path: notes.setdefault(path.name.split(".")[1], ax.get_xlabel())
        )
        shown = SimpleNamespace(tensor=lambda: torch.cat([X, 3 * X, -X]), labels=None)
        figures.draw_fit(tmp_path, {"SVI": make_fit()}, vae, vae.guide, shown, None)
        assert ("\ninactive: the mean of q" in notes["traversals"]) == (scale == 0)
        figures.plt.close("all")

    def test_of_one_datapoint_nothing_is_said(self):
        vae = make_vae(MeanField(2))
        assert figures._traversals(vae, vae.guide, X[:1], torch.zeros(1, 2))[1] == ["$z_{1}$", "$z_{2}$"]


def test_the_guide_and_the_model_have_the_same_bits_after():
    vae = make_vae(MeanField(2))
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    assert isinstance(vae.guide, Amortized)
    figures._posterior(vae, vae.guide, X)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


@pytest.mark.parametrize("engine", ENGINES)
def test_gaps_of_a_model_without_an_encoder_say_where_theirs_comes_from(engine, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(jobs, "draw_gaps", lambda _, gaps: drawn.extend(gaps))
    monkeypatch.setattr(jobs, "measure_gaps", lambda *_, **__: None)
    monkeypatch.setattr(jobs, "gaps_dataset", lambda *_, **__: xr.Dataset())
    run = SimpleNamespace(folder=tmp_path, engine=engine, vae=make_vae(MeanField(2)), save_results=lambda _: None)
    run.dataset = load("digits")
    run.require_writable = lambda: None
    run.config = {"sizes": {"image_shape": None}}
    jobs.measure_run(run)
    afterwards = ", encoder fitted afterwards" if engine in ("em", "mcem") else ""
    assert drawn == [ENGINES[engine] + afterwards]


class TestGaps:
    def record(self, tails):
        """Gaps whose log p(x) comes from annealed chains, beside an importance sampling with these tails."""
        plain = torch.zeros(3, dtype=torch.float64)
        terms = {term: plain for term in Gaps.TERMS} | {f"{term}_se": plain for term in Gaps.TERMS}
        beside = Evidence(value=plain, se=plain, method="IWAE", pareto_k=tails)
        return Gaps(
            **terms,
            converged=plain == 0,
            start_gap=plain,
            pareto_k=plain / 0,
            ess=plain,
            family="MeanField(2)",
            evidence_method="AIS",
            is_lower_bound=True,
            estimates={"AIS": Evidence(value=plain, se=plain, method="AIS", pareto_k=plain / 0), "IWAE": beside},
        )

    def test_tails_are_those_of_the_estimate_that_has_some(self, tmp_path):
        tails = torch.tensor([0.1, 0.2, 0.9], dtype=torch.float64)
        assert figures._with_tails(self.record(tails)).method == "IWAE"
        figures.draw_gaps(tmp_path, {"SVI": self.record(tails)})
        assert (tmp_path / "pareto_k.png").is_file()

    def test_without_tails_there_is_no_picture_of_them(self, tmp_path):
        figures.draw_gaps(tmp_path, {"SVI": self.record(torch.full((3,), float("nan"), dtype=torch.float64))})
        assert {path.name for path in tmp_path.iterdir()} == {"gaps.png", "gap_histogram.png", "gap_scatter.png"}
