import pyro
import pytest
import torch

from inference import (
    Amortized,
    Gaps,
    GapTracker,
    MeanField,
    Search,
    TermTracker,
    Training,
    fit_em,
    fit_svi,
    generalization,
    measure_gaps,
)
from inference.training import LoopState
from pyro_vae import MLP, VAE
from pyro_vae.likelihoods import Gaussian
from pyro_vae.linear import LinearGaussian
from pyro_vae.priors import StandardNormal

QUICK = {
    "num_draws": 20,
    "num_evidence_draws": 50,
    "search": Search(max_rounds=1, first_round=10, num_judge_draws=64, num_select_draws=4),
}


def vae_of():
    torch.manual_seed(0)
    family = MeanField(2)
    # Dropout and running statistics: what a measurement could disturb.
    encoder = torch.nn.Sequential(
        torch.nn.Linear(4, 8),
        torch.nn.BatchNorm1d(8),
        torch.nn.Dropout(0.2),
        torch.nn.Tanh(),
        torch.nn.Linear(8, family.num_params),
    )
    return VAE(
        prior=StandardNormal(2), likelihood=Gaussian(), decoder=MLP(2, 8, 4), family=family, encoder=encoder
    ).double()


@pytest.fixture
def x():
    return torch.randn(96, 4)


def state_of(vae):
    return {name: value.clone() for name, value in vae.state_dict().items()}


@pytest.mark.parametrize("train", ["all", "guide"])
def test_a_fit_has_the_same_bits_with_and_without(x, train):
    runs = []
    for tracked in (False, True):
        vae = vae_of().train()
        tracker = GapTracker(vae.model, vae.guide, x[:5], held_out=x[90:], every=2, seed=None, **QUICK)
        training = Training(epochs=4, batch_size=32, callbacks=[tracker] if tracked else [])
        torch.manual_seed(1)
        fit = fit_svi(vae.model, vae.guide, x, training=training, validation=x[80:], train=train, seed=0)
        runs.append((fit, state_of(vae), torch.get_rng_state()))
        assert len(tracker.history) == (2 if tracked else 0)
        assert len(pyro.get_param_store()) == 0 and vae.training
    (fit, weights, state), (fit_tracked, weights_tracked, state_tracked) = runs
    assert torch.equal(fit.elbo, fit_tracked.elbo) and torch.equal(fit.elbo_validation, fit_tracked.elbo_validation)
    assert all(torch.equal(value, weights_tracked[name]) for name, value in weights.items())
    assert torch.equal(state, state_tracked)


def test_variational_em_has_too(x):
    runs = []
    for tracked in (False, True):
        vae = vae_of()
        tracker = GapTracker(vae.model, vae.guide, x[:3], every=1, **QUICK)
        training = Training(epochs=2, batch_size=32, callbacks=[tracker] if tracked else [])
        fit = fit_em(vae.model, MeanField(2), x, training=training, seed=0)
        runs.append((fit.params, state_of(vae)))
    assert torch.equal(runs[0][0], runs[1][0])
    assert all(torch.equal(value, runs[1][1][name]) for name, value in runs[0][1].items())


def test_history_holds_what_measure_gaps_finds(x):
    vae = vae_of()
    tracker = GapTracker(vae.model, vae.guide, x[:5], held_out=x[90:], every=3, **QUICK)
    before = tracker.measure(0)
    fit_svi(vae.model, vae.guide, x, training=Training(epochs=7, batch_size=32, callbacks=[tracker]), seed=0)
    after = tracker.measure(7)
    assert [entry.epoch for entry in tracker.history] == [0, 3, 6, 7]
    direct = measure_gaps(vae.model, vae.guide, x[:5], seed=0, **tracker.options)
    assert torch.equal(direct.inference_gap, after.gaps.inference_gap)
    assert len(after.held_out) == 6 and after.gaps.elbo_amortized.mean() > before.gaps.elbo_amortized.mean()
    assert generalization(after.gaps, after.held_out).summary()["inference_gap"]["training"]["mean"] > -1

    table = tracker.table()
    assert table["epoch"].tolist() == [0, 3, 6, 7]
    for prefix, which in (("", "gaps"), ("held_out_", "held_out")):
        for term in Gaps.TERMS:
            rows = [getattr(entry, which).summary()[term] for entry in tracker.history]
            assert table[f"{prefix}{term}"].tolist() == [row["mean"] for row in rows]
            assert table[f"{prefix}{term}_se"].tolist() == [row["se"] for row in rows]
            assert table[f"{prefix}{term}_mc_se"].tolist() == [row["mc_se"] for row in rows]
    assert len(table) == 1 + 2 * 3 * len(Gaps.TERMS)


def test_epochs_compare(x):
    """Nothing changes between two measurements of the same weights."""
    vae = vae_of()
    tracker = GapTracker(vae.model, vae.guide, x[:5], **QUICK)
    first, second = tracker.measure(0), tracker.measure(1)
    for term in Gaps.TERMS:
        assert torch.equal(getattr(first.gaps, term), getattr(second.gaps, term))
    assert list(tracker.table())[:2] == ["epoch", "log_evidence"] and "held_out_log_evidence" not in tracker.table()


class Resampled:
    resamples = True

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return torch.rand(len(index), 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every: expected an integer of at least 1; got 0"),
        ({"data": Resampled()}, "data: GapTracker needs a fixed x"),
        ({"held_out": Resampled()}, "held_out: GapTracker needs a fixed x"),
    ],
    ids=["every", "data", "held out"],
)
def test_bad_input(x, options, message):
    vae = vae_of()
    options = {"data": x} | options
    with pytest.raises(ValueError, match=message):
        GapTracker(vae.model, vae.guide, options.pop("data"), **options)


class TestTerms:
    def test_a_fit_has_the_same_bits_with_and_without(self, x):
        runs = []
        for tracked in (False, True):
            vae = vae_of().train()
            tracker = TermTracker(vae.model, vae.guide, {"training": x[:5]})
            training = Training(epochs=4, batch_size=32, callbacks=[tracker] if tracked else [])
            torch.manual_seed(1)
            fit = fit_svi(vae.model, vae.guide, x, training=training, seed=0)
            runs.append((fit.elbo, state_of(vae), torch.get_rng_state()))
            assert vae.training and len(pyro.get_param_store()) == 0
        assert torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][2], runs[1][2])
        assert all(torch.equal(value, runs[1][1][name]) for name, value in runs[0][1].items())

    def test_they_are_the_two_terms_of_the_elbo(self):
        """Against both expectations in closed form, where all is normal."""
        torch.manual_seed(0)
        exact = LinearGaussian(torch.randn(4, 2), torch.zeros(4), 1.0)
        guide = Amortized(MeanField(2), torch.nn.Linear(4, 4).double())
        x = torch.randn(200, 4)
        tracker = TermTracker(exact.model, guide, {"here": x}, every=2, num_draws=500)
        fit_svi(exact.model, guide, x, training=Training(epochs=4), seed=0)
        tracker(LoopState(leaves=dict(guide.named_parameters()), optimizer=None, epoch=4))
        tracker(LoopState(leaves=dict(guide.named_parameters()), optimizer=None, epoch=5))
        assert tracker.epochs == [4]
        with torch.no_grad():
            q, prior = guide.distribution(x), torch.distributions.Normal(torch.zeros(2), 1.0)
            loc, variance = q.mean, q.variance
            kl = 0.5 * (variance + loc.square() - 1 - variance.log()).sum(-1)
            noise = exact.scale.square()
            expected = exact.decode(loc).log_prob(x) - 0.5 * (variance @ exact.weight.square().T / noise).sum(-1)
            draws = q.sample((500,))
            kl_se = (q.log_prob(draws) - prior.log_prob(draws).sum(-1)).mean(1).std() / 500**0.5
            expected_se = exact.decode(draws).log_prob(x).mean(1).std() / 500**0.5
        assert abs(tracker.kl["here"][0] - float(kl.mean())) < 4 * float(kl_se)
        assert abs(tracker.reconstruction["here"][0] - float(expected.mean())) < 4 * float(expected_se)

    def test_bad_arguments_are_refused(self, x):
        vae = vae_of()
        with pytest.raises(ValueError, match="every: expected an integer of at least 1; got 0"):
            TermTracker(vae.model, vae.guide, {"a": x}, every=0)
        with pytest.raises(ValueError, match="num_draws: expected an integer of at least 1"):
            TermTracker(vae.model, vae.guide, {"a": x}, num_draws=1.5)
