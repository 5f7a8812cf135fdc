"""The compiled form of a function has the function's numbers, and nothing that would make it wrong goes unnoticed."""

import math
import random
import warnings
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import ELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

from inference import (
    HMC,
    Adam,
    Annealing,
    FullCovariance,
    MeanField,
    Training,
    ais,
    fit_em,
    fit_mcem,
    fit_svi,
    sample_posterior,
)
from inference.compiled import Compiled, inductor, undisturbed, worthwhile
from inference.compiled.facts import Facts
from inference.compiled.function import CALLS_OF_ANOTHER_SHAPE, CALLS_THAT_PAY
from inference.isolation import private_store, trainable
from inference.noise import seeded
from inference.objectives import (
    IWAE,
    AmortizedELBO,
    AmortizedLoss,
    AnalyticKL,
    DReG,
    Gradients,
    LocalLoss,
    PathwiseELBO,
    Renyi,
    ScoreFunctionELBO,
    StickingTheLanding,
    WakeSleep,
)
from pyro_vae import MLP, VAE
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.parts import Parts, Sizes, catalog, options
from pyro_vae.priors import StandardNormal

SIZES = Sizes(num_latents=2, num_values=16, image_shape=(4, 4), max_value=1.0, num_levels=3, level_step=0.5)


def graph_alone(graph, inputs):
    """The traced graph, run as it is: what is tested is the trace, in a moment."""
    return graph


def agree(ours, theirs, tolerance=1e-10):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other.detach(), rtol=tolerance, atol=tolerance)


def compiled(function, *programs, backend=graph_alone):
    """A compiled function that must not fall back."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = Compiled(function, *programs, name="the test", backend=backend)

        def run(*args):
            outputs = made(*args)
            assert made.is_compiled, made.reason
            return outputs

        return run


def steps_of(vae, x, loss, *, compile):
    """The step of a loss at a model and guide."""
    leaves = list(trainable(vae.model, vae.guide, x=x).values())
    amortized = isinstance(loss, ELBO)
    objective = (
        AmortizedELBO(vae.model, vae.guide, loss, leaves) if amortized else AmortizedLoss(vae.model, vae.guide, loss)
    )

    def values(x):
        value = objective(x)
        return value, -value

    return Gradients(objective, values, leaves, vae.model, vae.guide, compile=compile, precision="float32")


# Same numbers ---------------------------------------------------------------------------------------------------------


def parts_with(**chosen):
    kinds = {"prior": "standard-normal", "likelihood": "gaussian", "family": "mean-field"} | chosen
    return Parts(
        **{kind: options(kind, name) for kind, name in kinds.items()},
        decoder=options("decoder", "linear"),
        encoder=options("encoder", "linear"),
    )


def every_part():
    """Every part; pairs of a prior and a family are slow but for those with a usual one, and a fifth of the rest."""
    for i, prior in enumerate(catalog("prior")):
        for j, family in enumerate(catalog("family")):
            often = {prior, family} & {"standard-normal", "mean-field"} or (i + j) % 5 == 0
            marks = () if often else pytest.mark.slow
            yield pytest.param({"prior": prior, "family": family}, marks=marks, id=f"{prior}-{family}")
    for likelihood in catalog("likelihood"):
        yield pytest.param({"likelihood": likelihood}, id=likelihood)


@pytest.mark.parametrize("chosen", [*every_part()])
def test_every_part_has_a_trace_with_its_numbers(chosen):
    """Loss and gradients of a step of every prior with every family, and of every likelihood; gradients in rows too."""
    if chosen.get("prior") == "vamp-prior" and not catalog("family")[chosen["family"]].has_log_prob:
        pytest.skip("a VampPrior needs a density at z")
    vae = VAE(**parts_with(**chosen).build(SIZES))
    x = vae.generate(6, seed=0)
    with private_store(vae.model, vae.guide):
        leaves = list(trainable(vae.model, vae.guide, x=x).values())
        objective = AmortizedELBO(vae.model, vae.guide, Trace_ELBO(), leaves)

        def step(x):
            loss = objective(x)
            return loss, *torch.autograd.grad(loss, leaves, allow_unused=True)

        fast = compiled(step, vae.model, vae.guide)
        fast(x)
        other = vae.generate(6, seed=1)
        with torch.no_grad():
            for leaf in leaves:
                leaf.add_(0.01 * torch.randn_like(leaf))
        with seeded(5):
            ours = fast(other)
        with seeded(5), pyro.validation_enabled(is_validate=False):
            agree(ours, step(other))

        local = LocalLoss(vae.model, vae.family, "z")
        rows = vae.family.initial_params(6, like=x) + 0.1
        noise = torch.randn(4, 6, vae.family.num_noise)
        fast = compiled(local._row_gradient, vae.model, vae.family)
        fast(x, rows, noise)
        agree(fast(other, rows + 0.1, noise), local._row_gradient(other, rows + 0.1, noise))
        fast = compiled(local._eager_log_weights, vae.model, vae.family)
        fast(x, rows, noise)
        agree(fast(other, rows + 0.1, -noise), local._eager_log_weights(other, rows + 0.1, -noise))


LOSSES = [
    Trace_ELBO(),
    Trace_ELBO(num_particles=3),
    Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    TraceMeanField_ELBO(),
    PathwiseELBO(2),
    AnalyticKL(2),
    StickingTheLanding(2),
    ScoreFunctionELBO(3),
    IWAE(4),
    DReG(4),
    Renyi(4, alpha=0.5),
    WakeSleep(4),
]


@pytest.mark.parametrize("weight", [1.0, 0.3])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__class__.__name__)
def test_every_loss_has_the_numbers_of_its_steps(loss, weight, quick):
    """Draw for draw, under KL warm-up too, whose weight is no constant of the compiled step."""
    vae = VAE(**parts_with().build(SIZES))
    x = vae.generate(5, seed=0)
    with private_store(vae.model, vae.guide):
        fast, plain = (steps_of(vae, x, loss, compile=compile) for compile in (True, False))
        fast.objective.kl_weight = weight
        fast(x)
        assert fast.is_compiled
        for gradients in (fast, plain):
            gradients.objective.kl_weight = weight if weight == 1 else 0.7
        for seed in (1, 2):
            with seeded(seed):
                one = fast(x)
            with seeded(seed), pyro.validation_enabled(is_validate=False):
                other = plain(x)
            agree([one.loss, one.elbo, *one.grads], [other.loss, other.elbo, *other.grads])


# Fits with and without compiled code ----------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """The traced graph in the place of compiled code, and no warning passes."""
    monkeypatch.setattr("inference.compiled.function.inductor", graph_alone)


def small():
    torch.manual_seed(0)
    return VAE(**parts_with(family="full-covariance").build(SIZES))


@pytest.mark.parametrize("engine", ["svi", "svi with warm-up", "guide alone", "em", "semi-amortized", "mcem"])
def test_a_compiled_fit_is_the_fit(engine, quick):
    x = small().generate(20, seed=1)
    made = []
    for compile in (True, False):
        vae = small()
        training = Training(epochs=3, batch_size=8, local_steps=2, compile=compile)
        if engine == "svi with warm-up":
            training = Training(epochs=3, batch_size=8, warm_up=2, compile=compile)
        if engine.startswith("svi"):
            fit = fit_svi(vae.model, vae.guide, x, training=training, validation=x[:4], seed=0)
        elif engine == "guide alone":
            fit = fit_svi(vae.model, vae.guide, x, train="guide", training=training, seed=0)
        elif engine == "mcem":
            fit = fit_mcem(vae.model, x, num_chains=2, hmc=HMC(compile=compile), training=training, seed=0)
        else:
            restart = "every visit" if engine == "semi-amortized" else "never"
            fit = fit_em(vae.model, vae.family, x, init=vae.guide, restart=restart, training=training, seed=0)
        made.append((fit, vae))
    (fast, one), (plain, other) = made
    assert fast.num_steps == plain.num_steps
    name = "log_joint" if engine == "mcem" else "elbo"
    agree([getattr(fast, name)], [getattr(plain, name)])
    agree([*one.parameters()], [*other.parameters()])


class Meddling:
    """Data that change the model as they are read."""

    def __init__(self, x, meddle):
        self.x = x
        self.meddle = meddle
        self.reads = 0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        self.reads += 1
        self.meddle(self.reads)
        return self.x[index]


@pytest.mark.parametrize("who", ["a callback", "the data", "a hook of the optimiser"])
def test_a_compiled_fit_follows_those_who_change_the_model(who, quick):
    """After the first epoch, in which every step is looked at."""
    x = small().generate(20, seed=1)
    made = []
    for compile in (True, False):
        vae = small()

        def meddle(count, vae=vae):
            if count % 7 == 0:
                vae.decoder.register_forward_hook(lambda module, inputs, output: output + 0.5)  # noqa: ARG005

        class Watched(Adam):
            def __call__(self, leaves, meddle=meddle):
                optimizer, steps = super().__call__(leaves), iter(range(1, 1000))
                optimizer.register_step_post_hook(lambda *_: meddle(next(steps)))
                return optimizer

        data, settings = x, {}
        if who == "a callback":
            settings["callbacks"] = [lambda state: meddle(7)]  # noqa: ARG005
        elif who == "the data":
            data = Meddling(x, meddle)
        else:
            settings["optimizer"] = Watched()
        training = Training(epochs=5, batch_size=5, compile=compile, **settings)
        made.append((fit_svi(vae.model, vae.guide, data, training=training, seed=0), vae))
    (fast, one), (plain, other) = made
    agree([fast.elbo], [plain.elbo])
    agree([*one.parameters()], [*other.parameters()])


def test_compiled_chains_are_the_chains(quick):
    vae = small()
    x = vae.generate(3, seed=1)
    for start in (None, FullCovariance(2)):
        fast, plain = (
            ais(
                vae.model,
                x,
                start=start,
                annealing=Annealing(num_temperatures=5, num_chains=4, hmc=HMC(compile=compile)),
                seed=0,
            )
            for compile in (True, False)
        )
        agree([fast.value, fast.acceptance], [plain.value, plain.acceptance])
    fast, plain = (
        sample_posterior(vae.model, x, num_warmup=10, num_draws=6, hmc=HMC(compile=compile), seed=0)
        for compile in (True, False)
    )
    agree([fast.z, fast.log_joint], [plain.z, plain.log_joint])


def test_reduced_forces_leave_the_energies_alone(monkeypatch):
    """Forces of bfloat16 propose; what is accepted and what is weighed is the density itself."""
    vae = small().float()
    x = vae.generate(3, seed=1)
    annealing = Annealing(num_temperatures=40, num_chains=64, hmc=HMC(compile=False, precision="bfloat16"))
    reduced = ais(vae.model, x, annealing=annealing, seed=0)
    full = ais(vae.model, x, annealing=Annealing(num_temperatures=40, num_chains=64), seed=1)
    assert ((reduced.value - full.value).abs() < 4 * (reduced.se**2 + full.se**2).sqrt() + 1e-3).all()
    plain = ais(vae.model, x, annealing=Annealing(num_temperatures=40, num_chains=64), seed=0)
    assert not torch.equal(reduced.acceptance, plain.acceptance)


# Inductor -------------------------------------------------------------------------------------------------------------


class Dropped(nn.Module):
    """A decoder with dropout, and running statistics of its batches."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 16))

    def forward(self, z):
        return self.layers(z)


def test_inductor_has_the_numbers_too():
    """A whole fit: forward and backward passes, dropout's draws, buffers that are written to, fused Adam."""
    fits = []
    for compile in (True, False):
        torch.manual_seed(0)
        parts = parts_with().build(SIZES)
        vae = VAE(**{**parts, "decoder": Dropped()})
        vae.decoder.eval()
        x = vae.generate(20, seed=1)
        vae.train()
        fit = fit_svi(vae.model, vae.guide, x, training=Training(epochs=4, batch_size=10, compile=compile), seed=0)
        fits.append((fit, vae.state_dict()))
    (fast, one), (plain, other) = fits
    agree([fast.elbo, *one.values()], [plain.elbo, *other.values()])


def test_cheaper_forms_are_the_same_functions():
    """Those of `inference.compiled.decompositions`, through Inductor: values, slopes, and what is not a number."""

    def values(x):
        x = x.requires_grad_()
        filled = torch.where(x.isnan(), 0.0, x)
        out = nn.functional.elu(filled), nn.functional.elu(filled, alpha=1.7)
        edges = x.detach().nan_to_num(), (1 / x.detach()).nan_to_num(3.0, 4.0, -5.0)
        target = torch.where(filled > 0, 0.25, 1.0)
        loss = nn.functional.binary_cross_entropy_with_logits(filled.clamp(-50, 50), target, reduction="none")
        total = (out[0] + out[1].square()).sum() + loss.sum()
        return *[one.detach() for one in (*out, loss)], *edges, *torch.autograd.grad(total, x)

    x = torch.tensor(
        [float("nan"), float("inf"), -float("inf"), -1e3, -30.0, -2.0, -1e-7, -0.0, 0.0, 1e-7, 1.0, 50.0, 1e3] * 20
    )
    for dtype, tolerance in ((torch.float64, 1e-15), (torch.float32, 2e-7)):
        run = compiled(values, backend=inductor)
        for scale in (1.0, 0.5):
            point = (scale * x).to(dtype)
            for ours, theirs in zip(run(point.clone()), values(point.clone()), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_products_take_their_bias_in_any_order(dtype):
    """An affine layer and its slopes, through Inductor: as good as roundings of sums of six terms of size 1 are."""

    def values(x, weight, bias):
        x = x.detach().requires_grad_()
        out = nn.functional.elu(nn.functional.linear(x, weight, bias))
        return out.detach(), *torch.autograd.grad(out.square().sum(), x)

    torch.manual_seed(0)
    args = [value.to(dtype) for value in (torch.rand(7, 5), torch.rand(3, 5), torch.rand(3))]
    tolerance = 20 * torch.finfo(dtype).eps
    for ours, theirs in zip(compiled(values, backend=inductor)(*args), values(*args), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["prior", "family", "likelihood"])
def test_inductor_compiles_every_part(kind):
    """Each prior, family and likelihood once: values and gradients of the training step, and of the E-step."""
    for name in catalog(kind):
        torch.manual_seed(0)
        vae = VAE(**parts_with(**{kind: name}).build(SIZES))
        x = vae.generate(6, seed=0)
        with private_store(vae.model, vae.guide):
            fast, plain = (steps_of(vae, x, Trace_ELBO(), compile=compile) for compile in (True, False))
            for seed in (1, 2):
                with seeded(seed):
                    one = fast(x)
                with seeded(seed):
                    other = plain(x)
                agree([one.loss, *one.grads], [other.loss, *other.grads])
            assert fast.is_compiled, name
            local = LocalLoss(vae.model, vae.family, "z", compile=True)
            local._log_weights.at_once = True
            rows = vae.family.initial_params(6, like=x) + 0.1
            noise = torch.randn(4, 6, vae.family.num_noise)
            for shift in (0.0, 0.1):
                agree([local.row_gradient(x, rows + shift, noise)], local._row_gradient(x, rows + shift, noise))
                agree([local.log_weights(x, rows + shift, noise)], local._eager_log_weights(x, rows + shift, noise))
            assert local._gradient.is_compiled and local._log_weights.is_compiled, name


# What a Pyro program may do -------------------------------------------------------------------------------------------


def gradients_of(*leaves):
    """The step of a hand-written program."""

    def step(model, guide, loss=None):
        objective = AmortizedELBO(model, guide, loss or Trace_ELBO(), list(leaves))

        def run(x):
            value = objective(x)
            return value, *torch.autograd.grad(value, list(leaves), allow_unused=True)

        return run

    return step


def test_constrained_parameters_and_other_random_numbers():
    """A program with `pyro.param`, a gamma guide whose draws depend on parameters, and a mask."""

    def model(x):
        rate = pyro.param("rate", torch.tensor(2.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Gamma(rate, torch.ones(2)).to_event(1))
            pyro.sample("x", dist.Poisson(z).to_event(1), obs=x)

    def guide(x):
        shape = pyro.param("shape", torch.full((2,), 3.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Gamma(shape, torch.ones(2) + x).to_event(1))

    x = torch.tensor([[1.0, 2.0], [0.0, 4.0], [3.0, 3.0]])
    with private_store():
        leaves = list(trainable(model, guide, x=x).values())
        assert len(leaves) == 2
        step = gradients_of(*leaves)(model, guide)
        fast = compiled(step, model, guide)
        for seed in (1, 2, 3):
            with seeded(seed):
                ours = fast(x)
            with seeded(seed):
                agree(ours, step(x))
            with torch.no_grad():
                for leaf in leaves:
                    leaf.add_(0.1)


def test_sites_that_cannot_be_reparametrised():
    """A discrete site, by the score function: Pyro's loss with its own baseline."""
    logits = nn.Parameter(torch.zeros(3))

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.3)).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=logits + x).to_event(1))

    x = torch.randn(4, 3)
    step = gradients_of(logits)(model, guide)
    fast = compiled(step, model, guide)
    for seed in (1, 2):
        with seeded(seed):
            ours = fast(x)
        with seeded(seed):
            agree(ours, step(x))
    assert ours[1].abs().max() > 0


def test_losses_that_take_their_own_gradients_run_as_they_are():
    vae = small()
    x = vae.generate(8, seed=1)
    fits = []
    for compile in (True, False):
        vae = small()
        with (
            pytest.warns(RuntimeWarning, match="TraceGraph_ELBO takes its gradients itself")
            if compile
            else nullcontext()
        ):
            training = Training(epochs=2, batch_size=4, compile=compile)
            fits.append(fit_svi(vae.model, vae.guide, x, loss=TraceGraph_ELBO(), training=training, seed=0))
    agree([fits[0].elbo], [fits[1].elbo])


# Never silently wrong -------------------------------------------------------------------------------------------------


def refused(function, *args, programs=(), match):
    """The function's own numbers, with a warning, once."""
    made = Compiled(function, *programs, name="the test", backend=graph_alone)
    with pytest.warns(RuntimeWarning, match=match) as record:
        with seeded(3):
            ours = made(*args)
    assert len(record) == 1 and not made.is_compiled
    with seeded(3):
        agree(ours, function(*args))
    made(*args)
    return record[0].message


class Counter:
    def __init__(self):
        self.calls = 0


def test_what_no_graph_can_stand_for_runs_as_it_is():
    x = torch.tensor([1.0, -2.0])
    counter, buffer, kept = Counter(), torch.zeros(2), {"last": torch.zeros(2)}

    def branches(x):
        return (x if x.sum() > 0 else -x,)

    def counts(x):
        counter.calls += 1
        return (x * counter.calls,)

    message = refused(branches, x, match="control flow")
    assert "in branches, test_compiled.py line" in str(message)
    refused(lambda x: (x * math.exp(x.max().item()),), x, match="item")
    refused(lambda x: (x * float(x.numpy().sum()),), x, match="cannot be traced")
    refused(lambda x: (x + buffer.normal_(),), x, match="random numbers by aten.normal_")

    made = Compiled(lambda x: (x + random.random(),), name="the test", backend=graph_alone)
    with pytest.warns(RuntimeWarning, match="other numbers"):
        first = made(x)
    assert not torch.equal(first[0], made(x)[0])
    # A number from elsewhere that the first comparison may not see: it is the object that changes.
    made = Compiled(counts, counts, name="the test", backend=graph_alone)
    with pytest.warns(RuntimeWarning, match="it changes Counter.calls as it runs"):
        made(x)
    before = counter.calls
    assert torch.equal(made(x)[0], x * (before + 1))

    # A hook that counts, too.
    layer = nn.Linear(2, 2)

    def count(module, inputs, output):  # noqa: ARG001
        counter.calls += 1

    layer.register_forward_hook(count)
    made = Compiled(lambda x: (layer(x).detach(),), layer, name="the test", backend=graph_alone)
    with pytest.warns(RuntimeWarning, match="it changes Counter.calls as it runs"):
        made(x)
    before = counter.calls
    made(x)
    assert counter.calls == before + 1

    def remembers(x):
        kept["last"] = kept["last"] + x
        return (kept["last"],)

    with pytest.warns(RuntimeWarning, match="as it runs|from one run to the next|other numbers"):
        Compiled(remembers, remembers, name="the test", backend=graph_alone)(x)
    assert type(kept["last"]) is torch.Tensor


def test_a_module_that_remembers_its_last_call_is_compiled():
    """What it remembers is never a tensor without values, whether it is there before the first call or not."""

    class Remembering(nn.Linear):
        def forward(self, x):
            self.last = super().forward(x)
            return self.last

    for known in (False, True):
        layer = Remembering(2, 2)
        if known:
            layer(torch.ones(1, 2))
        fast = compiled(lambda x, layer=layer: (layer(x).detach(),), layer)
        for x in (torch.ones(1, 2), torch.zeros(1, 2)):
            agree(fast(x), (layer(x),))
            assert type(layer.last) is torch.Tensor


SCALE = 2.0


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.register_buffer("shift", torch.zeros(2))
        self.slope = 1.0
        self.factors = [1.0, 1.0]
        self.part = nn.Identity()
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return SCALE * self.drop(self.part(x * self.weight * self.slope)) * self.factors[1] + self.shift


CHANGES = {
    "a training flag": lambda layer: layer.train(),
    "an attribute": lambda layer: setattr(layer, "slope", 3.0),
    "a list": lambda layer: layer.factors.__setitem__(1, 3.0),
    "a parameter replaced": lambda layer: setattr(layer, "weight", nn.Parameter(torch.tensor([5.0, 5.0]))),
    "a buffer replaced": lambda layer: setattr(layer, "shift", torch.ones(2)),
    "a part replaced": lambda layer: setattr(layer, "part", nn.Tanh()),
    "a hook": lambda layer: layer.part.register_forward_hook(lambda module, inputs, output: output * 7),  # noqa: ARG005
    "a probability": lambda layer: (layer.train(), setattr(layer.drop, "p", 0.9)),
    "a gradient that is not asked for": lambda layer: layer.weight.requires_grad_(False),  # noqa: FBT003
    "other storage": lambda layer: setattr(layer.weight, "data", torch.ones(1, 2)),
    "a global": lambda layer: globals().__setitem__("SCALE", 5.0),  # noqa: ARG005
    "a value in place": lambda layer: layer.weight.data.mul_(3),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_what_changes_between_calls_is_noticed(change, monkeypatch):
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    layer = Layer().eval()

    def slope(x):
        x = x.detach().requires_grad_()
        out = layer(x).sum()
        return out, *torch.autograd.grad(out, [x, *(w for w in layer.parameters() if w.requires_grad)])

    fast = Compiled(slope, layer, name="the test", backend=graph_alone)
    x = torch.tensor([[1.0, -1.0]])
    agree(fast(x), slope(x))
    traces = fast.num_traces
    CHANGES[change](layer)
    for seed in (1, 2):
        with seeded(seed):
            ours = fast(x)
        with seeded(seed):
            agree(ours, slope(x))
    assert fast.is_compiled
    # What is only another value of the same tensor is read anew without another trace.
    assert fast.num_traces == traces + (change != "a value in place")


@pytest.mark.parametrize(("num_rows", "turned"), [(3, True), (7, False)])
def test_products_of_few_rows_go_by_the_rows_of_their_weights(num_rows, turned):
    """Forward and backward; the gradient in the weight has its rows already."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 5), nn.ELU(), nn.Linear(5, 6)).double()
    made = []

    def slopes(x):
        x = x.detach().requires_grad_()
        out = layers(x).square().sum()
        return out.detach(), *torch.autograd.grad(out, [x, *layers.parameters()])

    def keep(graph, inputs):  # noqa: ARG001
        made.append(graph)
        return graph

    fast = Compiled(slopes, layers, name="the test", backend=keep)
    x = torch.randn(num_rows, 6, dtype=torch.float64)
    agree(fast(x), slopes(x))
    assert fast.is_compiled
    shapes = [tuple(node.meta["val"].shape) for node in made[0].graph.nodes if node.target is torch.ops.aten.mm.default]
    weights = [(5, 6), (6, 5)]
    of_rows = [shape for shape in shapes if shape not in weights]
    assert len(of_rows) == 4
    assert all((shape[1] == num_rows) == turned for shape in of_rows)
    assert sorted(shape for shape in shapes if shape in weights) == weights


def test_a_step_of_little_work_runs_on_one_core(quick):
    """And whatever comes after it has all of them again, errors too."""
    seen = []

    def watch(state):
        seen.append(torch.get_num_threads())
        if state.epoch == 3:
            raise RuntimeError("enough")

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for widths, compile, inside in [((4, 3), True, 1), ((4, 3), False, 2), ((800, 700), True, 2)]:
            num_values, num_hidden = widths
            family = MeanField(2)
            decoder = MLP(2, num_hidden, num_values)
            cores = []
            vae = VAE(
                prior=StandardNormal(2),
                likelihood=Bernoulli(),
                decoder=decoder,
                family=family,
                encoder=MLP(num_values, num_hidden, family.num_params),
            )

            class Watched(Adam):
                def __call__(self, leaves, cores=cores):
                    optimizer = super().__call__(leaves)
                    optimizer.register_step_pre_hook(lambda *_: cores.append(torch.get_num_threads()))
                    return optimizer

            x = torch.rand(6, num_values).round()
            training = Training(batch_size=3, optimizer=Watched(), compile=compile, callbacks=[watch])
            with pytest.raises(RuntimeError, match="enough"):
                fit_svi(vae.model, vae.guide, x, training=training, seed=0)
            assert cores[1:] == [inside] * 5
            assert seen == [2, 2, 2]
            assert torch.get_num_threads() == 2
            seen.clear()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("num_values", "fits"), [(100, True), (400_000, False)])
def test_work_without_products_counts(num_values, fits):
    fast = Compiled(lambda x: (x.exp().sum(),), name="the test", backend=graph_alone)
    fast(torch.zeros(2, num_values))
    assert fast.fits_one_core == fits


def test_what_cannot_change_is_looked_at_once(monkeypatch):
    looked = []
    hold = Facts.hold
    monkeypatch.setattr(Facts, "hold", lambda facts: looked.append(facts) or hold(facts))
    layer = Layer().eval()
    fast = Compiled(lambda x: (layer(x).detach(),), layer, name="the test", backend=graph_alone)
    x = torch.ones(1, 2)
    fast(x)
    for _ in range(2):
        looked.clear()
        with undisturbed():
            for _ in range(3):
                fast(x)
        assert len(looked) == 1
    looked.clear()
    with undisturbed():
        fast(x)
        fast(torch.ones(3, 2))  # Runs as it is, and so may change what it likes.
        fast(x)
        assert len(looked) == 2
        layer.slope = 3.0
    agree(fast(x), (layer(x),))


def test_another_shape_is_compiled_when_it_comes_often():
    calls = []

    def double(x):
        calls.append(len(x))
        return (2 * x,)

    fast = Compiled(double, name="the test", backend=graph_alone)
    for _ in range(CALLS_OF_ANOTHER_SHAPE + 5):
        assert torch.equal(fast(torch.ones(3))[0], torch.full((3,), 2.0))
        assert torch.equal(fast(torch.ones(2))[0], torch.full((2,), 2.0))
    assert fast.num_traces == 2
    # Traced, and compared once; the other shape ran as it is until it had come often enough.
    assert calls.count(3) == 2 and calls.count(2) == CALLS_OF_ANOTHER_SHAPE + 1


def test_what_keeps_changing_is_left_alone():
    layer = Layer().eval()
    fast = Compiled(lambda x: (layer(x),), layer, name="the test", backend=graph_alone)
    x = torch.ones(2)
    with pytest.warns(RuntimeWarning, match="keeps changing"):
        for slope in range(20):
            layer.slope = float(slope)
            assert torch.equal(fast(x)[0], layer(x))


def test_wrong_code_does_not_pass_the_first_comparison():
    """A backend that drops a term is found out; so is one that fails, as without a C++ compiler."""

    def wrong(graph, inputs):  # noqa: ARG001
        return lambda *inputs: [output + 1e-3 for output in graph(*inputs)]

    def broken(graph, inputs):
        raise RuntimeError("No working C++ compiler found\nlong story")

    for backend, match in ((wrong, "other numbers"), (broken, r"cannot compile it here .RuntimeError: No working C")):
        fast = Compiled(lambda x: (x.exp(),), name="the test", backend=backend)
        with pytest.warns(RuntimeWarning, match=match):
            (value,) = fast(torch.ones(2))
        assert torch.equal(value, torch.ones(2).exp()) and not fast.is_compiled


def test_a_refused_comparison_draws_and_writes_once():
    """The call that is compared leaves the generator and the buffers where the function itself leaves them."""

    def wrong(graph, inputs):  # noqa: ARG001
        return lambda *inputs: [output + 1e-3 for output in graph(*inputs)]

    ends = []
    for backend in (wrong, None):
        layer = nn.BatchNorm1d(2)
        made = Compiled(
            lambda x, layer=layer: (layer(x + torch.randn(4, 2)).detach(),),
            layer,
            name="the test",
            compile=backend is not None,
            backend=backend,
        )
        with seeded(0), pytest.warns(RuntimeWarning, match="other numbers") if backend else nullcontext():
            ends.append([made(torch.ones(4, 2))[0], layer.running_mean, layer.num_batches_tracked, torch.rand(1)])
    agree(*ends)


def test_without_a_compiler_a_fit_goes_on(monkeypatch):
    def missing(graph, inputs):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr("inference.compiled.function.inductor", missing)
    vae = small()
    with pytest.warns(RuntimeWarning, match="the training step runs without being compiled") as record:
        fit = fit_svi(vae.model, vae.guide, torch.randn(8, 16), training=Training(epochs=2, compile=True), seed=0)
    assert len(record) == 1 and fit.elbo.isfinite().all()


def test_random_numbers_are_drawn_afresh_and_are_the_functions_own():
    def draws(x):
        eps = torch.empty(3).normal_()
        rolled = torch.randint(10, (3,))
        others = torch.randn_like(x), nn.functional.dropout(x, 0.5), torch.randperm(4)
        return x + eps, torch.rand(2), rolled, *others

    fast = compiled(draws)
    x = torch.ones(3)
    with seeded(0):
        first, second = fast(x), fast(x)
    with seeded(0):
        agree(first, draws(x))
        agree(second, draws(x))
    assert not torch.equal(first[0], second[0])


# When it pays ---------------------------------------------------------------------------------------------------------


def test_when_compiling_pays():
    assert worthwhile("auto", CALLS_THAT_PAY) and not worthwhile("auto", CALLS_THAT_PAY - 1)
    assert worthwhile(True, 1) and not worthwhile(False, math.inf)
    for settings in (Training, HMC):
        with pytest.raises(ValueError, match="compile: expected True, False or 'auto'; got 'yes'"):
            settings(compile="yes")
        with pytest.raises(ValueError, match="precision: expected 'float32' or 'bfloat16'; got 'half'"):
            settings(precision="half")


def test_compiled_fits_refuse_data_outside_the_support(quick):
    """In a later minibatch, too, as a fit without compiled code does."""
    vae = VAE(**parts_with(likelihood="bernoulli").build(SIZES))
    x = torch.zeros(20, 16)
    x[17, 3] = 0.5
    for compile in (True, False):
        with pytest.raises(ValueError, match="0.5|support"):
            fit_svi(vae.model, vae.guide, x, training=Training(epochs=1, batch_size=5, compile=compile), seed=0)


def test_a_compiled_fit_names_what_is_not_finite(quick):
    vae = small()
    x = vae.generate(8, seed=1)
    for compile in (True, False):
        with torch.no_grad():
            vae.decoder.affine.weight.fill_(1e200)
        with pytest.raises(FloatingPointError, match="log density of site 'x' is not finite"):
            fit_svi(vae.model, vae.guide, x, training=Training(epochs=1, batch_size=4, compile=compile), seed=0)


def test_short_runs_are_not_compiled(monkeypatch):
    def never(graph, inputs):
        raise AssertionError("compiled")

    monkeypatch.setattr("inference.compiled.function.inductor", never)
    vae = small()
    fit_svi(vae.model, vae.guide, torch.randn(8, 16), training=Training(epochs=2), seed=0)
