"""The compiled form of a function has the function's numbers, and nothing that would make it wrong goes unnoticed."""

import math
import random
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

from inference import (
    HMC,
    Amortized,
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
from inference.compiled import Compiled, worthwhile
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
from pyro_vae import VAE
from pyro_vae.parts import Parts, Sizes, catalog, options

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


def steps_of(vae, x, loss):
    """The step of a loss at a model and guide."""
    leaves = list(trainable(vae.model, vae.guide, x=x).values())
    amortized = isinstance(loss, Trace_ELBO)
    objective = (
        AmortizedELBO(vae.model, vae.guide, loss, leaves) if amortized else AmortizedLoss(vae.model, vae.guide, loss)
    )

    def values(x):
        value = objective(x)
        return value, -value

    return Gradients(objective, values, leaves, vae.model, vae.guide, compile=True, precision="float32")


# Same numbers ---------------------------------------------------------------------------------------------------------


def parts_with(**chosen):
    kinds = {"prior": "standard-normal", "likelihood": "gaussian", "family": "mean-field"} | chosen
    return Parts(
        **{kind: options(kind, name) for kind, name in kinds.items()},
        decoder=options("decoder", "linear"),
        encoder=options("encoder", "linear"),
    )


ALL = [
    *({"prior": prior, "family": family} for prior in catalog("prior") for family in catalog("family")),
    *({"likelihood": likelihood} for likelihood in catalog("likelihood")),
]


@pytest.mark.parametrize("chosen", ALL, ids=lambda chosen: "-".join(chosen.values()))
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
