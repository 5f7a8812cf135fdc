import copy
import math
from functools import partial

import pytest
import torch
from torch import nn

from inference import SGD, Adam, Amortized, Constant, Cosine, MeanField, RobbinsMonro, Staircase, Training, fit_svi
from inference.training import device_for
from pyro_vae.linear import LinearGaussian

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def fit(training, **options):
    torch.manual_seed(0)
    model = LinearGaussian(torch.randn(4, 2), torch.zeros(4), 1.0)
    guide = Amortized(MeanField(2), torch.nn.Linear(4, 4))
    return fit_svi(model.model, guide, X, training=training, seed=0, **options)


def learning_rates(schedule, *, lr=0.1, num_steps=10):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=lr)
    scheduler = schedule(optimizer, num_steps)
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_robbins_monro():
    rates = learning_rates(RobbinsMonro(exponent=0.7, delay=3.0))
    assert rates == pytest.approx([0.1 * (1 + t / 3.0) ** -0.7 for t in range(10)])


def test_robbins_monro_sums():
    """The sum of the steps diverges, that of their squares does not."""
    steps = (1 + torch.arange(2_000_000) / 10.0) ** -0.6
    assert steps[1_000_000:].sum() > 0.25 * steps[:1_000_000].sum()
    assert steps[1_000_000:].square().sum() < 0.1 * steps[:1_000_000].square().sum()


def test_cosine_and_constant():
    assert learning_rates(Constant()) == [0.1] * 10
    rates = learning_rates(Cosine())
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * t / 10)) for t in range(10)])


def test_staircase():
    """Burda et al. (2016): 10^(-i/7) of the step size for 3^i epochs; here an epoch is two steps."""
    expected = [10 ** (-stage / 7) for stage in range(8) for _ in range(2 * 3**stage)]
    assert learning_rates(Staircase(), lr=1.0, num_steps=2 * 3280) == pytest.approx(expected)
    halves = [1.0] + [0.5] * 2 + [0.25] * 4
    assert learning_rates(Staircase(num_stages=3, growth=2, factor=0.5), lr=1.0, num_steps=7) == pytest.approx(halves)
    # A run too short for the first stages begins where they would have ended.
    assert learning_rates(Staircase(num_stages=3, growth=3, factor=0.5), lr=1.0, num_steps=3)[-1] == 0.25


def test_optimizers():
    weight = torch.nn.Parameter(torch.zeros(1))
    assert isinstance(Adam(lr=0.2)([weight]), torch.optim.Adam)
    momentum = SGD(lr=0.3, momentum=0.9)([weight]).param_groups[0]
    assert momentum["lr"] == 0.3 and momentum["momentum"] == 0.9
    assert fit(Training(epochs=1, batch_size=10, optimizer=partial(torch.optim.SGD, lr=0.01))).num_steps == 4


def test_adams_eps():
    """The first step is lr g / (|g| + eps): both moments, corrected for their start, are those of g."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = Adam(lr=0.1, eps=3.0)([weight])
    weight.grad = torch.ones(1)
    optimizer.step()
    assert weight.item() == pytest.approx(-0.1 / 4)


def test_a_schedule_may_start_from_nothing():
    rising = partial(torch.optim.lr_scheduler.LambdaLR)
    training = Training(epochs=2, batch_size=10, schedule=lambda optimizer, n: rising(optimizer, lambda t: t / n))
    assert fit(training).num_steps == 8


def test_steps_epochs_and_the_last_batch():
    seen = []

    class Data:
        def __len__(self):
            return len(X)

        def __getitem__(self, index):
            seen.append(index)
            return X[index]

    torch.manual_seed(0)
    guide = Amortized(MeanField(2), torch.nn.Linear(4, 4))
    model = LinearGaussian(torch.randn(4, 2), torch.zeros(4), 1.0)
    result = fit_svi(model.model, guide, Data(), training=Training(epochs=3, batch_size=16), seed=0)
    assert result.num_steps == 9 and len(result.elbo) == 3
    assert result.stopped_because == "the budget of 3 epochs ended"
    # The first batch, then all rows once: what cannot be read is refused before the first step.
    assert seen[1].tolist() == list(range(40))
    epochs = [torch.cat(seen[2 + 3 * e : 5 + 3 * e]) for e in range(3)]
    for order in epochs:
        assert sorted(order.tolist()) == list(range(40))
    assert not torch.equal(epochs[0], epochs[1])


def test_callbacks_see_the_state_and_can_stop():
    states = []

    def watch(state):
        states.append((state.epoch, state.step, len(state.elbo), len(state.elbo_validation)))
        if state.epoch == 3:
            state.stop = "enough"

    result = fit(Training(epochs=10, batch_size=20, callbacks=[watch]), validation=X[:5])
    assert states == [(1, 2, 1, 1), (2, 4, 2, 2), (3, 6, 3, 3)]
    assert result.stopped_because == "enough"


def test_tol_elbo_and_tol_params():
    quick = Adam(lr=0.05)
    by_elbo = fit(Training(epochs=200, batch_size=40, optimizer=quick, tol_elbo=0.05))
    assert 10 <= len(by_elbo.elbo) < 200 and "the ELBO converged" in by_elbo.stopped_because
    last, before = by_elbo.elbo[-5:].mean(), by_elbo.elbo[-10:-5].mean()
    assert last - before < 0.05
    by_params = fit(Training(epochs=200, batch_size=40, optimizer=quick, schedule=Cosine(), tol_params=1e-3))
    assert len(by_params.elbo) < 200 and "the parameters converged" in by_params.stopped_because
    # Not during warm-up, whatever the tolerance.
    assert len(fit(Training(epochs=30, warm_up=20, tol_params=1e9)).elbo) == 21
    assert len(fit(Training(epochs=40, warm_up=20, tol_elbo=1e9)).elbo) == 30


def test_settings_are_plain_and_complete():
    training = Training(
        epochs=1, batch_size=10, schedule=RobbinsMonro(delay=7.0), optimizer=partial(torch.optim.SGD, lr=0.1)
    )
    recorded = fit(training).settings["training"]
    assert recorded["schedule"] == {"part": "RobbinsMonro", "exponent": 0.6, "delay": 7.0}
    assert recorded["batch_size"] == 10 and "SGD" in recorded["optimizer"]
    assert "callbacks" not in recorded


CASES = {
    "epochs": (lambda: Training(epochs=0), "epochs: .*at least 1; got 0"),
    "batch size": (lambda: Training(batch_size=-3), "batch_size: .*got -3"),
    "epochs not a number": (lambda: Training(epochs=2.5), "epochs: .*integer.*2.5"),
    "epochs a boolean": (lambda: Training(epochs=True), "epochs: .*True"),
    "warm-up": (lambda: Training(warm_up=-1), "warm_up: .*got -1"),
    "patience": (lambda: Training(patience=0), "patience: .*got 0"),
    "particles": (lambda: Training(num_particles=3), "num_particles: .*even.*got 3"),
    "local steps": (lambda: Training(local_steps=0), "local_steps: .*got 0"),
    "local step size": (lambda: Training(local_lr=0.0), "local_lr: .*got 0.0"),
    "step size": (lambda: Training(optimizer=Adam(lr=-1.0)), "lr: .*got -1.0"),
    "NaN step size": (lambda: Training(optimizer=SGD(lr=math.nan)), "lr: .*got nan"),
    "stages": (lambda: Staircase(num_stages=0), "num_stages: .*at least 1; got 0"),
    "growth": (lambda: Staircase(growth=1.5), "growth: .*integer.*1.5"),
    "factor": (lambda: Staircase(factor=2.0), r"factor: .*\(0, 1\].*2.0"),
    "eps": (lambda: Adam(eps=0.0), "eps: .*positive.*got 0.0"),
    "tol_elbo": (lambda: Training(tol_elbo=-0.1), "tol_elbo: .*got -0.1"),
    "tol_params": (lambda: Training(tol_params=math.nan), "tol_params: .*got nan"),
    "exponent": (lambda: RobbinsMonro(exponent=0.5), r"exponent: .*\(0.5, 1\].*got 0.5"),
    "delay": (lambda: RobbinsMonro(delay=0.0), "delay: .*got 0.0"),
    "patience without held-out data": (lambda: fit(Training(patience=3)), "patience: .*held-out.*validation"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case):
    call, message = CASES[case]
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_device_where_the_model_is_not():
    model = torch.nn.Linear(2, 2, device="meta")
    with pytest.raises(
        ValueError, match="device: expected 'meta', where the model is; got 'cpu'. Move the model first"
    ):
        device_for(Training(device="cpu"), model)
    assert device_for(Training(), model).type == "meta"
    assert device_for(Training(device="auto")).type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_device_that_is_not_there():
    assert device_for(Training()) == torch.device("cpu")
    for device in ("nowhere", *([] if torch.cuda.is_available() else ["cuda"])):
        with pytest.raises(ValueError, match=f"device: expected one that this machine has.*'{device}'"):
            device_for(Training(device=device))


def test_the_short_way_to_fused_adam_is_adam():
    """Step by step, with leaves that have no gradient for a while, and after its state was loaded."""
    torch.manual_seed(0)
    ours, theirs = (
        [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(1))] for _ in "ab"
    )
    fast = Adam(lr=0.1)(ours)
    plain = torch.optim.Adam(theirs, lr=0.1, fused=True)
    for step in range(12):
        grads = [torch.randn_like(leaf) for leaf in ours]
        if step in (0, 5, 6):
            grads[1] = None
        fast.descend(grads)
        for leaf, grad in zip(theirs, grads, strict=True):
            leaf.grad = None if grad is None else grad.clone()
        plain.step()
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one, other)
        if step == 8:
            state = copy.deepcopy(fast.state_dict())
            fast = Adam(lr=0.1)(ours)
            fast.load_state_dict(state)


def test_hooks_of_the_optimiser_are_called():
    leaf = nn.Parameter(torch.ones(2))
    optimizer, seen = Adam(lr=0.1)([leaf]), []
    optimizer.register_step_post_hook(lambda *_: seen.append(leaf.detach().clone()))
    for _ in range(2):
        optimizer.descend([torch.ones(2)])
    assert len(seen) == 2 and seen[1].max() < seen[0].max() < 1
