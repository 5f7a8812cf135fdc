"""Calls from several threads give the bits of calls one after another."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pyro
import pytest
import torch
from torch import nn

from inference import Amortized, MeanField, Training, elbo, fit_svi
from inference.exclusive import exclusive
from pyro_vae import MLP, VAE
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.linear import LinearGaussian
from pyro_vae.priors import StandardNormal

NUM_CALLS = 100


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return VAE(
        prior=StandardNormal(2),
        likelihood=Bernoulli(),
        decoder=MLP(2, 8, 6),
        family=MeanField(2),
        encoder=MLP(6, 8, 4),
    )


def in_threads(call, arguments):
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(call, arguments))


def test_draws_and_measurements_side_by_side(vae):
    x = torch.randint(2, (5, 6), generator=torch.Generator().manual_seed(0)).to(torch.get_default_dtype())

    def call(seed):
        if seed % 4 == 0:
            return elbo(vae.model, vae.guide, x, num_draws=4, seed=seed).value
        if seed % 4 == 1:
            return vae.reconstruct(x)
        return vae.generate(20, seed=seed)

    expected = [call(seed) for seed in range(NUM_CALLS)]
    before = torch.get_rng_state()
    found = in_threads(call, range(NUM_CALLS))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert torch.equal(torch.get_rng_state(), before) and vae.training and len(pyro.get_param_store()) == 0


def test_fits_side_by_side():
    """One waits for the other; callbacks that measure enter a second time."""
    x = torch.randn(40, 3)

    def fit(seed):
        # Layers draw their first weights from the generator that fits use.
        with exclusive():
            model, encoder = LinearGaussian(torch.ones(3, 2), torch.zeros(3), 1.0), nn.Linear(3, 4)
            nn.init.constant_(encoder.weight, 0.1), nn.init.zeros_(encoder.bias)
        guide = Amortized(MeanField(2), encoder)
        measured = []
        training = Training(
            epochs=2,
            batch_size=10,
            callbacks=[lambda state: measured.append(elbo(model.model, guide, x, num_draws=4, seed=0).value)],
        )
        found = fit_svi(model.model, guide, x, training=training, seed=seed)
        return torch.cat([found.elbo, *measured])

    expected = [fit(seed) for seed in range(4)]
    assert all(torch.equal(one, other) for one, other in zip(in_threads(fit, range(4)), expected, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_process_does_not_wait_for_a_thread_that_it_does_not_have():
    held, done = threading.Event(), threading.Event()

    def hold():
        with exclusive():
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    child = os.fork()
    if not child:
        with exclusive():
            os._exit(7)
    try:
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7
    finally:
        done.set()
        thread.join()


def test_what_the_lock_is_for(vae, monkeypatch):
    """Without it the same calls are not the same: the first test can fail."""
    monkeypatch.setattr("inference.exclusive._lock", nullcontext())
    expected = [vae.generate(2000, seed=seed) for seed in range(NUM_CALLS)]
    for _ in range(20):
        found = in_threads(lambda seed: vae.generate(2000, seed=seed), range(NUM_CALLS))
        if not all(torch.equal(one, other) for one, other in zip(found, expected, strict=True)):
            return
    pytest.fail("a race was expected")
