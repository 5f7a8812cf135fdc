import copy
import gc
import pickle
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import nn

from inference.families import FullCovariance, MeanField
from inference.guides import Amortized, Local, unique_name

D, P, B = 2, 3, 5


def model(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ torch.ones(D, P), 1.0).to_event(1), obs=x)


def amortized(family=None, **options):
    family = family or MeanField(D)
    return Amortized(family, nn.Linear(P, family.num_params), **options)


def local(num_rows=B, **options):
    return Local(MeanField(D), torch.randn(num_rows, 4), **options)


@pytest.fixture
def x():
    return torch.randn(B, P)


# Names ----------------------------------------------------------------------------------------------------------------


def test_names_are_unique_to_the_instance():
    guide = amortized()
    twins = [guide, copy.copy(guide), copy.deepcopy(guide), pickle.loads(pickle.dumps(guide)), amortized()]
    names = [unique_name(module) for module in twins]
    assert len(set(names)) == len(names)
    assert [unique_name(module) for module in twins] == names
    assert all(name.startswith("amortized_") for name in names)


def test_names_are_not_reused_and_modules_are_let_go():
    names, modules = set(), []
    for _ in range(20):
        module = nn.Linear(1, 1)
        assert unique_name(module) not in names
        names.add(unique_name(module))
        modules.append(weakref.ref(module))
        del module
    gc.collect()
    assert all(module() is None for module in modules)


# What a guide samples -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [MeanField(D), FullCovariance(D)], ids=repr)
def test_amortized_is_the_family_at_the_encoders_rows(family, x):
    guide = amortized(family, site="latent")
    assert torch.equal(guide.params(x), guide.encoder(x)) and guide.site == "latent" and guide.family is family
    trace = poutine.trace(guide).get_trace(x)
    node = trace.nodes["latent"]
    z = node["value"]
    assert z.shape == (B, D) and [frame.name for frame in node["cond_indep_stack"]] == ["data"]
    torch.testing.assert_close(node["fn"].log_prob(z), family(guide.encoder(x)).log_prob(z))
    torch.testing.assert_close(guide.distribution(x).log_prob(z), node["fn"].log_prob(z))
    assert set(trace.param_nodes) == {f"{unique_name(guide)}$$$encoder.weight", f"{unique_name(guide)}$$$encoder.bias"}
    with pyro.plate("particles", 7, dim=-2):
        assert guide(x).shape == (7, B, D)


def test_local_rows_belong_to_datapoints(x):
    guide = local()
    index = torch.tensor([3, 0, 3])
    rows = guide.rows(index)
    assert torch.equal(rows.params(x[index]), guide.table[index]) and rows.site == guide.site
    z = torch.randn(3, D)
    torch.testing.assert_close(rows.distribution(x[index]).log_prob(z), guide.family(guide.table[index]).log_prob(z))
    assert guide(x).shape == (B, D) and rows(x[index]).shape == (3, D)
    with pyro.plate("particles", 7, dim=-2):
        assert guide(x).shape == (7, B, D)
    assert "5 rows, site='z'" in repr(guide)


def test_local_table_is_trained_only_if_it_is_a_parameter(x):
    fixed, table = local(), nn.Parameter(torch.randn(B, 4))
    trained = Local(MeanField(D), table)
    assert list(fixed.parameters()) == [] and list(trained.parameters()) == [table]
    assert set(fixed.state_dict()) == set(trained.state_dict()) == {"table"}
    z = trained.rows(torch.tensor([1, 4]))(x[:2])
    z.sum().backward()
    assert (table.grad != 0).any(1).tolist() == [False, True, False, False, True]


@pytest.mark.parametrize("make", [amortized, local], ids=["amortized", "local"])
def test_copies_are_the_same_guide(make, x):
    guide = make()
    z = torch.randn(B, D)
    for other in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        torch.testing.assert_close(other.distribution(x).log_prob(z), guide.distribution(x).log_prob(z))
        assert other.site == guide.site


def test_works_with_predictive(x):
    draws = Predictive(model, guide=amortized(), num_samples=6)(x)
    assert draws["z"].shape == (6, B, D)


def test_two_guides_in_one_global_store_do_not_touch_each_other(x):
    """Plain SVI in Pyro's own store: each trains alone, exactly as it does in a store of its own."""

    def train(guide, steps=5):
        pyro.set_rng_seed(0)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        for _ in range(steps):
            svi.step(x)

    first = amortized()
    second = copy.deepcopy(first)
    alone = copy.deepcopy(first)
    start = second.encoder.weight.detach().clone()
    train(first)
    assert torch.equal(second.encoder.weight, start) and not torch.equal(first.encoder.weight, start)
    after = first.encoder.weight.detach().clone()
    train(second)
    assert torch.equal(first.encoder.weight, after)
    pyro.clear_param_store()
    train(alone)
    assert torch.equal(second.encoder.weight, alone.encoder.weight)


# Bad input ------------------------------------------------------------------------------------------------------------


class Announced(nn.Module):
    num_outputs = 3

    def forward(self, x):
        return x


@pytest.mark.parametrize("encoder", [nn.Linear(P, 5), Announced()], ids=["out_features", "num_outputs"])
def test_an_encoder_that_announces_another_size(encoder):
    with pytest.raises(
        ValueError, match=r"encoder: expected family.num_params = 4 outputs .* MeanField\(2\); got [35]"
    ):
        Amortized(MeanField(D), encoder)


class Returns(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value


@pytest.mark.parametrize(
    ("value", "came"),
    [
        (torch.zeros(B, 3), r"shape \(5, 3\)"),
        (torch.zeros(4), r"shape \(4,\)"),
        (torch.zeros(1, 4), r"shape \(1, 4\)"),
        ((torch.zeros(B, 2), torch.zeros(B, 2)), "tuple"),
    ],
    ids=["size", "no batch", "one row for all", "a pair"],
)
def test_an_encoder_that_returns_something_else(value, came, x):
    guide = Amortized(MeanField(D), Returns(value))
    with pytest.raises(ValueError, match=rf"encoder: expected .*got {came}, where \(5, 4\) was expected. End"):
        guide(x)


@pytest.mark.parametrize("shape", [(4,), (B, 3), (2, B, 4)], ids=str)
def test_a_table_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"params: expected shape \(N, 4\) for MeanField\(2\); got"):
        Local(MeanField(D), torch.zeros(shape))


def test_local_at_other_datapoints(x):
    with pytest.raises(ValueError, match=r"x: expected the 5 datapoints .* got 2. .*guide.rows\(index\)"):
        local()(x[:2])
