"""What is refused before the first step, while no parameter, no running statistic and no random state has moved."""

import dataclasses

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

from inference import (
    IWAE,
    Adam,
    Amortized,
    Annealing,
    Checkpoints,
    EarlyStopping,
    GapTracker,
    MeanField,
    MetricsFile,
    TermTracker,
    Training,
    ais,
    elbo,
    elbo_surgery,
    fit_em,
    fit_mcem,
    fit_svi,
    iwae,
    measure_gaps,
    refine,
    sample_posterior,
)

NORMAL = dist.Normal(0.0, 1.0)
STILL = Training(epochs=2, batch_size=20, optimizer=Adam(lr=1e-30))


@pytest.fixture
def x():
    return torch.randn(41, 5, generator=torch.Generator().manual_seed(0))


class Pair:
    """A model and a guide, each with something added inside the data plate; the encoder has running statistics."""

    def __init__(self, *, likelihood=None, in_model=None, in_guide=None, draw=None, encoder=None):
        torch.manual_seed(1)
        self.decoder = nn.Linear(2, 5)
        self.encoder = encoder or nn.Linear(5, 4)
        self.likelihood, self.in_model, self.in_guide, self.draw = likelihood, in_model, in_guide, draw

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            if self.in_model:
                self.in_model(x, z)
            likelihood = dist.Normal(self.decoder(z), 1.0).to_event(1)
            if self.likelihood:
                self.likelihood(x, z, likelihood)
            else:
                pyro.sample("x", likelihood, obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        loc, log_scale = self.encoder(x).chunk(2, -1)
        if self.draw:
            self.draw(x, loc)
            return
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
            if self.in_guide:
                self.in_guide(x, loc, z)

    def state(self):
        return [t.detach().clone() for m in (self.decoder, self.encoder) for t in (*m.parameters(), *m.buffers())]


def normalising():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))


def refused(pair, call, message):
    before, random_state = pair.state(), torch.get_rng_state()
    with pytest.raises((ValueError, TypeError), match=message) as error:
        call()
    assert all(map(torch.equal, before, pair.state())) and torch.equal(random_state, torch.get_rng_state())
    assert len(pyro.get_param_store()) == 0
    return error


# A model and a guide that do not belong together ----------------------------------------------------------------------


def sample(name, distribution=NORMAL, **options):
    return lambda x, *_: pyro.sample(name, distribution, **options)


def several(x, z):
    pyro.sample("a", NORMAL), pyro.sample("b", NORMAL)


def subsampled(x, z):
    with pyro.plate("inner", 10, subsample_size=3, dim=-2):
        pyro.sample("k", NORMAL)


def on_some_draws(x, z):
    if torch.rand(()) < 0.5:
        pyro.sample("k", NORMAL)


def on_some_rows(x, z):
    if x[:, 0].max() > 1.5:
        pyro.sample("k", NORMAL)


def outside(x, loc):
    pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def in_the_plate(make):
    def draw(x, loc):
        with pyro.plate("data", len(x), dim=-1):
            make(x, loc)

    return draw


def wider(x, loc):
    pyro.sample("z", dist.Normal(loc.repeat(1, 2), 1.0).to_event(1))


def masked(x, loc):
    with poutine.mask(mask=x[:, 0] > 0):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def observed(x, loc):
    pyro.sample("z", dist.Normal(loc, 1.0).to_event(1), obs=loc)
    pyro.sample("k", NORMAL)


CATEGORICAL = dist.Categorical(torch.ones(8) / 8)
PAIRS = {
    "discrete": ({"in_model": sample("k", CATEGORICAL)}, "sample 'k', which the model .*inside.*MixtureSameFamily"),
    "enumerated": (
        {"in_model": sample("k", CATEGORICAL, infer={"enumerate": "parallel"})},
        "expected it to sample 'k'",
    ),
    "two missing": ({"in_model": several}, "expected it to sample 'a', 'b', which .*Sample them"),
    "subsampled": ({"in_model": subsampled}, "expected it to sample 'k'"),
    "on some draws": ({"in_model": on_some_draws}, "expected it to sample 'k'"),
    "on some rows": ({"in_model": on_some_rows}, "expected it to sample 'k'"),
    "obs_mask": (
        {"likelihood": lambda x, z, p: pyro.sample("x", p, obs=x, obs_mask=x[:, 0] > 0)},
        "expected it to sample 'x_unobserved'.*obs_mask",
    ),
    "extra": ({"in_guide": sample("k")}, "it samples 'k', which the model does not have"),
    "auxiliary": ({"in_guide": sample("k", infer={"is_auxiliary": True})}, "it samples 'k', which the model does not"),
    "what is observed": ({"in_guide": sample("x")}, "it samples 'x', which the model observes"),
    "outside the plate": ({"draw": outside}, "site 'z': expected the guide to sample it inside the data plate"),
    "another shape": ({"draw": in_the_plate(wider)}, r"site 'z': expected .*\(20, 2\).*got .*\(20, 4\)"),
    "masked": ({"draw": in_the_plate(masked)}, "site 'z': .*masked differently"),
    "observed by the guide": ({"draw": in_the_plate(observed)}, "expected it to sample 'z'.*leave obs= out"),
}


@pytest.mark.parametrize("loss", [None, TraceEnum_ELBO(max_plate_nesting=2), IWAE(2)], ids=["ELBO", "enum", "IWAE"])
@pytest.mark.parametrize("kind", PAIRS)
def test_latent_sites_of_model_and_guide_are_the_same(kind, loss, x):
    parts, message = PAIRS[kind]
    pair = Pair(**parts)
    refused(pair, lambda: fit_svi(pair.model, pair.guide, x, loss=loss, training=STILL, seed=0), message)


def without_plates(x):
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(2))
    pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand([len(x), 5]).to_event(2), obs=x)


def with_a_penalty(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand([len(x), 5]).to_event(1), obs=x)
    pyro.factor("penalty", torch.tensor(-100.0))


@pytest.mark.parametrize(("model", "site"), [(without_plates, "x"), (with_a_penalty, "penalty")])
def test_what_is_observed_outside_the_data_plate_is_refused(model, site, x):
    """It would be counted once a minibatch: the ELBO of a datapoint would depend on B."""
    pair = Pair(draw=outside if model is without_plates else None)
    message = f"site '{site}': expected observed sites inside the data plate"
    refused(pair, lambda: fit_svi(model, pair.guide, x, training=STILL, seed=0), message)


@pytest.mark.parametrize("batch_size", [1, 20])
def test_a_penalty_outside_the_plate_goes_with_the_rows_or_is_refused(batch_size, x):
    def proportional(x):
        pair.model(x)
        pyro.factor("penalty", torch.tensor(-100.0) * len(x) / 41)

    pair, still = Pair(), dataclasses.replace(STILL, batch_size=batch_size)
    with_it, without = (fit_svi(m, pair.guide, x, training=still, seed=0).elbo for m in (proportional, pair.model))
    torch.testing.assert_close(without - with_it, torch.full((2,), 100.0 / 41))
    message = "site 'penalty': expected .* multiply pyro.factor by len"
    refused(pair, lambda: fit_svi(with_a_penalty, pair.guide, x, training=still, seed=0), message)


def test_beside_a_global_site_a_penalty_counts_once(x):
    def model(x):
        pyro.sample("w", NORMAL)
        with_a_penalty(x)

    def guide(x):
        pyro.sample("w", NORMAL)
        pair.guide(x)

    pair = Pair()
    with_it, without = (fit_svi(m, guide, x, training=STILL, seed=0).elbo for m in (model, hide_the_penalty(model)))
    torch.testing.assert_close(without - with_it, torch.full((2,), 100.0 / 41))


def hide_the_penalty(model):
    return poutine.block(model, hide=["penalty"])


def test_a_site_that_is_there_in_training_mode_alone(x):
    pair = Pair()
    pair.in_model = lambda x, z: pyro.sample("k", NORMAL) if pair.decoder.training else None
    refused(pair, lambda: fit_svi(pair.model, pair.guide, x, training=STILL, seed=0), "expected it to sample 'k'")


def test_a_site_that_comes_later(x):
    """In a minibatch of the first epoch: the run ends there, as its ELBO would be another number."""
    runs = []

    def late(x, z):
        runs.append(len(x))
        if len(runs) > 40:
            pyro.sample("k", NORMAL)

    pair = Pair(in_model=late)
    with pytest.raises(ValueError, match="expected it to sample the model's latent sites at every step.*'k'"):
        fit_svi(pair.model, pair.guide, x, training=Training(epochs=1, batch_size=1), seed=0)


def test_several_latent_sites_that_agree_are_fitted(x):
    pair = Pair(in_model=sample("k"), in_guide=sample("k"))
    assert fit_svi(pair.model, pair.guide, x, training=STILL, seed=0).elbo.isfinite().all()


# A model that observes nothing ----------------------------------------------------------------------------------------


def with_mask(mask):
    def likelihood(x, z, p):
        with poutine.mask(mask=mask if mask is False else torch.zeros(len(x), dtype=torch.bool)):
            pyro.sample("x", p, obs=x)

    return likelihood


SILENT = {
    "deterministic": lambda x, z, p: pyro.deterministic("x", p.mean, event_dim=1),
    "mask False": with_mask(False),
    "masks": with_mask(None),
    "masked": lambda x, z, p: pyro.sample("x", p.mask(False), obs=x),
    "Delta": lambda x, z, p: pyro.sample("x", dist.Delta(z, event_dim=1), obs=z),
}
VERBS = {
    "fit_svi": lambda p, x: fit_svi(p.model, p.guide, x, training=STILL, seed=0),
    "fit_em": lambda p, x: fit_em(p.model, MeanField(2), x, training=STILL, seed=0),
    "fit_mcem": lambda p, x: fit_mcem(p.model, x, training=STILL, seed=0),
    "elbo": lambda p, x: elbo(p.model, p.guide, x, num_draws=4, seed=0),
    "iwae": lambda p, x: iwae(p.model, p.guide, x, num_draws=50, seed=0),
    "ais": lambda p, x: ais(p.model, x, annealing=Annealing(num_temperatures=3), seed=0),
    "refine": lambda p, x: refine(p.model, MeanField(2), x, seed=0),
    "measure_gaps": lambda p, x: measure_gaps(p.model, p.guide, x, seed=0),
    "sample_posterior": lambda p, x: sample_posterior(p.model, x, seed=0),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", SILENT)
def test_a_model_that_observes_nothing_is_refused(kind, verb, x):
    pair = Pair(likelihood=SILENT[kind])
    refused(pair, lambda: VERBS[verb](pair, x[:5]), "model: expected at least one observed site")


def test_a_factor_is_a_likelihood(x):
    """`pyro.factor` in the model is how a likelihood is written that Pyro does not have."""
    plain, pair = Pair(), Pair(likelihood=lambda x, z, p: pyro.factor("x", p.log_prob(x)))
    fits = [fit_svi(p.model, p.guide, x, training=STILL, seed=0).elbo for p in (plain, pair)]
    torch.testing.assert_close(*fits)


# Factors of the guide -------------------------------------------------------------------------------------------------


def factor(weight, **options):
    def add(x, loc, z):
        pyro.factor("f", weight * loc.square().sum(-1), has_rsample=True, **options)

    return add


def scaled_factor(x, loc, z):
    with poutine.scale(scale=0.5):
        factor(300.0)(x, loc, z)


LOSSES = {
    "trace": lambda: Trace_ELBO(),
    "mean-field": lambda: TraceMeanField_ELBO(),
    "graph": lambda: TraceGraph_ELBO(),
    "renyi": lambda: RenyiELBO(alpha=0.5, num_particles=2),
}


@pytest.mark.parametrize("add", [factor(-7.0), factor(500.0), scaled_factor], ids=["minus", "plus", "scaled"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("warm_up", [0, 1])
def test_a_factor_of_the_guide_is_in_the_loss_and_in_no_elbo(loss, add, warm_up, x):
    """To the bit, on the same draws, running statistics included."""
    if loss == "renyi" and warm_up:
        return
    training = Training(epochs=2, batch_size=20, warm_up=warm_up, optimizer=Adam(lr=1e-30))
    fits, statistics = [], []
    for extra in (None, add):
        pair = Pair(in_guide=extra, encoder=normalising())
        options = {"loss": LOSSES[loss](), "training": training, "seed": 0}
        fits.append(fit_svi(pair.model, pair.guide, x[:40], validation=x[:9], **options))
        statistics.append(pair.encoder[1].running_mean)
    assert torch.equal(fits[0].elbo_validation, fits[1].elbo_validation)
    assert torch.equal(fits[0].elbo, fits[1].elbo)
    assert torch.equal(*statistics) or warm_up or loss == "renyi"


def test_a_factor_of_the_guide_trains_it(x):
    pairs = Pair(), Pair(in_guide=factor(5.0))
    for pair in pairs:
        fit_svi(pair.model, pair.guide, x, training=Training(epochs=20, optimizer=Adam(lr=0.1)), seed=0)
    free, pulled = (pair.encoder(x)[:, :2].square().mean() for pair in pairs)
    assert pulled < 0.1 * free


@pytest.mark.parametrize("measure", [elbo, iwae, measure_gaps, elbo_surgery], ids=lambda f: f.__name__)
def test_measurements_read_past_a_factor_of_the_guide(measure, x):
    options = {"annealing": None} if measure is measure_gaps else {}
    plain, pair = Pair(), Pair(in_guide=factor(500.0))
    one, other = (measure(p.model, p.guide, x[:4], num_draws=50, seed=0, **options) for p in (plain, pair))
    assert repr(one) == repr(other)


def test_a_loss_that_would_leave_a_factor_out_is_refused(x):
    pair = Pair(in_guide=factor(5.0))
    refused(
        pair,
        lambda: fit_svi(pair.model, pair.guide, x, loss=IWAE(2), training=STILL, seed=0),
        "guide: expected one without pyro.factor, as IWAE .* 'f' out of the loss",
    )


# Scales ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 1.0, torch.tensor(1.0), torch.ones(41), torch.tensor(1)], ids=str)
def test_a_scale_of_one_is_none(scale, x):
    plain, pair = Pair(), Pair()
    model, guide = poutine.scale(pair.model, scale), poutine.scale(pair.guide, scale)
    training = Training(epochs=1, batch_size=41, optimizer=Adam(lr=1e-30))
    one = fit_svi(plain.model, plain.guide, x, training=training, validation=x, seed=0)
    other = fit_svi(model, guide, x, training=training, validation=x, seed=0)
    assert torch.equal(one.elbo, other.elbo) and torch.equal(one.elbo_validation, other.elbo_validation)


def test_a_scale_of_ones_is_measured_and_another_is_refused(x):
    pair = Pair()
    ones, halves = torch.tensor(1.0), torch.tensor([1.0] * 4 + [0.5])
    plain = elbo(pair.model, pair.guide, x[:5], num_draws=4, seed=0).value
    scaled = elbo(poutine.scale(pair.model, ones), poutine.scale(pair.guide, ones), x[:5], num_draws=4, seed=0).value
    assert torch.equal(plain, scaled)
    with pytest.raises(ValueError, match="expected an unscaled log density; it is scaled by tensor"):
        elbo(poutine.scale(pair.model, halves), pair.guide, x[:5], num_draws=4, seed=0)


# Minibatches of one ---------------------------------------------------------------------------------------------------


def semi_amortized(pair, x, training):
    guide = Amortized(MeanField(2), pair.encoder)
    fit_em(pair.model, MeanField(2), x, init=guide, restart="every visit", training=training, seed=0)


BATCH_NORM = {
    "svi": lambda pair, x, training: fit_svi(pair.model, pair.guide, x, training=training, seed=0),
    "IWAE": lambda pair, x, training: fit_svi(pair.model, pair.guide, x, loss=IWAE(2), training=training, seed=0),
    "guide": lambda pair, x, training: fit_svi(pair.model, pair.guide, x, train="guide", training=training, seed=0),
    "semi-amortized": semi_amortized,
}


@pytest.mark.parametrize("engine", BATCH_NORM)
@pytest.mark.parametrize(("num_data", "batch_size", "other"), [(41, 20, 21), (41, 1, 3), (1, 20, None)])
def test_batch_norm_and_a_minibatch_of_one(engine, num_data, batch_size, other, x):
    pair, training = Pair(encoder=normalising()), Training(epochs=1, batch_size=batch_size)
    message = rf"batch_size: .*N = {num_data} datapoints in batches of B = {batch_size}, .* of 1\. (Take|Use layer)"
    error = refused(pair, lambda: BATCH_NORM[engine](pair, x[:num_data], training), message)
    if other is not None:
        assert f"batch_size={other}," in str(error.value)
        BATCH_NORM[engine](pair, x[:num_data], Training(epochs=1, batch_size=other))


def test_batch_norm_in_eval_mode_takes_a_minibatch_of_one(x):
    pair = Pair(encoder=normalising().eval())
    assert BATCH_NORM["svi"](pair, x, STILL).elbo.isfinite().all()


# Whatever comes after the first epoch ---------------------------------------------------------------------------------


def counts(x, z, p):
    pyro.sample("x", dist.Poisson(p.mean.exp()).to_event(1), obs=x)


def late_nan(x):
    return torch.cat([x, torch.full((1, 5), torch.nan)])


def fit(engine, pair, data, **options):
    options = {"training": STILL, "seed": 0, **options}
    if engine == "svi":
        return fit_svi(pair.model, pair.guide, data, **options)
    return (
        fit_em(pair.model, MeanField(2), data, **options) if engine == "em" else fit_mcem(pair.model, data, **options)
    )


def with_callback(make):
    return lambda x, pair: {"training": Training(epochs=2, batch_size=20, callbacks=[make(x, pair)])}


def with_schedule(make):
    return lambda x, pair: {"training": Training(epochs=2, batch_size=20, schedule=lambda o, _: make(o))}


SCHEDULES = torch.optim.lr_scheduler
LATER = {
    "narrow": (lambda x, p: {"validation": x[:, :3]}, "validation: expected rows of 5 values.*got rows of 3"),
    "float32": (lambda x, p: {"validation": x.float()}, "validation: expected torch.float64 like .*float32"),
    "one value": (lambda x, p: {"validation": x[:, 0]}, "validation: expected 41 vectors"),
    "empty": (lambda x, p: {"validation": x[:0]}, "validation: expected at least one datapoint"),
    "NaN": (lambda x, p: {"validation": late_nan(x)}, "validation: .*datapoint 41 holds NaN"),
    "NaN in training": (lambda x, p: {"data": late_nan(x)}, "data: .*datapoint 41 holds NaN"),
    "no held-out data": (
        with_callback(lambda x, p: EarlyStopping(1)),
        "EarlyStopping: expected elbo_validation to look at",
    ),
    "no file": (with_callback(lambda x, p: MetricsFile("/nowhere/a.csv")), "MetricsFile: expected a folder"),
    "no folder": (with_callback(lambda x, p: Checkpoints("/nowhere")), "Checkpoints: expected a folder"),
    "gaps of narrow data": (
        with_callback(lambda x, p: GapTracker(p.model, p.guide, x[:3, :2], every=2)),
        "rows of 2 values",
    ),
    "gaps of no draws": (
        with_callback(lambda x, p: GapTracker(p.model, p.guide, x[:3], every=2, num_draws=3)),
        "num_draws: expected an even number",
    ),
    "terms of narrow data": (
        with_callback(lambda x, p: TermTracker(p.model, p.guide, {"a": x[:3, :2]})),
        "rows of 2 values",
    ),
    "a schedule of the loss": (with_schedule(SCHEDULES.ReduceLROnPlateau), "schedule: .*it made ReduceLROnPlateau"),
    "a short schedule": (
        with_schedule(lambda o: SCHEDULES.OneCycleLR(o, max_lr=0.1, total_steps=2)),
        "schedule: expected one for the 6 steps",
    ),
    "no schedule": (with_schedule(lambda o: None), "schedule: .*it made NoneType"),
    "no optimiser": (
        lambda x, p: {"training": Training(optimizer=lambda leaves: None)},
        "optimizer: .*it made None",
    ),
    "LBFGS": (
        lambda x, p: {"training": Training(optimizer=lambda leaves: torch.optim.LBFGS(list(leaves)))},
        "optimizer: .*LBFGS asks for more",
    ),
}


@pytest.mark.parametrize("engine", ["svi", "em", "mcem"])
@pytest.mark.parametrize("kind", LATER)
def test_what_would_fail_after_an_epoch_is_refused_before_the_first_step(kind, engine, x):
    make, message = LATER[kind]
    pair = Pair()
    options = {"data": x, **make(x, pair)}
    refused(pair, lambda: fit(engine, pair, **options), message)


@pytest.mark.parametrize("engine", ["svi", "em", "mcem"])
@pytest.mark.parametrize("where", ["validation", "data"])
def test_values_without_a_density_are_refused_before_the_first_step(where, engine, x):
    good = torch.ones(41, 5)
    bad = good.clone()
    bad[35, 2] = 0.5
    pair = Pair(likelihood=counts)
    data = {"data": good, "validation": bad} if where == "validation" else {"data": bad}
    refused(pair, lambda: fit(engine, pair, **data), rf"{where}: expected values .*datapoint 35: .*Poisson")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"validation": torch.zeros(3, 5, dtype=torch.float64)},
            "validation: expected programs whose ELBO .* it samples 'z', 'k'",
        ),
        ({"loss": IWAE(2)}, "it samples 'z', 'k'"),
        ({"training": Training(epochs=2, warm_up=1)}, "it samples 'z', 'k'"),
        ({"loss": TraceEnum_ELBO(max_plate_nesting=1)}, "it samples 'z', 'k'"),
    ],
    ids=["validation", "IWAE", "warm-up", "enum"],
)
def test_several_latent_sites_where_each_datapoint_is_scored(options, message, x):
    pair = Pair(in_model=sample("k"), in_guide=sample("k"), encoder=normalising())
    refused(pair, lambda: fit("svi", pair, x[:40], **options), message)


def test_a_first_step_that_is_refused_moves_no_running_statistics(x):
    pair = Pair(
        encoder=normalising(), draw=in_the_plate(lambda x, loc: pyro.sample("z", Strange(loc, 1.0).to_event(1)))
    )
    refused(pair, lambda: fit("svi", pair, x[:40], loss=TraceMeanField_ELBO()), "strange")


class Strange(dist.Normal):
    """Refuses what only a gradient asks for."""

    def expand(self, batch_shape, _instance=None):
        return Strange(self.loc.expand(batch_shape), self.scale.expand(batch_shape))

    def log_prob(self, value):
        if torch.is_grad_enabled():
            raise ValueError("strange")
        return super().log_prob(value)
