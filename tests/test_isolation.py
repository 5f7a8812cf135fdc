import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule, PyroParam, pyro_method
from torch import nn
from torch.distributions import constraints

from inference.isolation import device_of, eval_mode, frozen, modules_of, private_store, trainable

X = torch.ones(4, 2, dtype=torch.float64)


def observe(mean, x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


# Finding modules ------------------------------------------------------------------------------------------------------

global_net = nn.Linear(2, 2)
global_nets = {"first": [nn.Linear(2, 2)]}


class Holder:
    """A plain object: a model is one of its bound methods."""

    def __init__(self):
        self.net = nn.Linear(2, 2)
        self.more = [nn.Linear(2, 2), {"key": nn.Linear(2, 2)}]

    def model(self, x):
        return self.net(x)

    def __call__(self, x):
        return self.net(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def model(self, x):
        return self.linear(x)


def names_a_global(x):
    return global_net(x)


def names_a_global_inside(x):
    return [(lambda row: global_net(row))(row) for row in x]


def calls_another(x):
    return names_a_global(x)


def names_a_container(x):
    return global_nets["first"][0](x)


global_holder = Holder()


def names_an_object(x):
    return global_holder.net(x)


def in_a_closure(net):
    def model(x):
        return net(x)

    return model


def in_a_default(net):
    def model(x, *, net=net):
        return net(x)

    return model


def decorated(net):
    @functools.wraps(global_net.forward)
    def model(*args):
        return in_a_closure(net)(*args)

    return model


def cases():
    net, holder, mine = nn.Linear(2, 2), Holder(), Net()
    everything = [holder.net, holder.more[0], holder.more[1]["key"]]
    return {
        "the program itself": (net, [net]),
        "a method of a module": (mine.model, [mine]),
        "a method of a plain object": (holder.model, everything),
        "a callable object": (holder, everything),
        "a closure": (in_a_closure(net), [net]),
        "a default argument": (in_a_default(net), [net]),
        "a global": (names_a_global, [global_net]),
        "a global in an inner function": (names_a_global_inside, [global_net]),
        "a function that is called": (calls_another, [global_net]),
        "a global container": (names_a_container, [global_nets["first"][0]]),
        "an attribute of a global": (names_an_object, [global_holder.net, *modules_of(global_holder.more)]),
        "a decorated function": (decorated(net), [net]),
        "a function decorated by torch": (torch.no_grad()(in_a_closure(net)), [net]),
        "partial": (functools.partial(lambda net, x: net(x), net), [net]),
        "partial by keyword": (functools.partial(lambda x, net: net(x), net=net), [net]),
        "partial of partial of a method": (functools.partial(functools.partial(mine.model), X), [mine]),
        "a handler around a closure": (poutine.mask(in_a_closure(net), mask=True), [net]),
        "two handlers around a method": (poutine.block(poutine.scale(mine.model, scale=2.0)), [mine]),
        "None": (None, []),
    }


@pytest.mark.parametrize("case", cases())
def test_modules_of(case):
    program, expected = cases()[case]
    found = modules_of(program)
    assert all(any(module is other for other in found) for module in expected)
    assert len(found) == len(expected)


def test_modules_of_are_unique():
    net = nn.Linear(2, 2)
    assert modules_of(in_a_closure(net), net, functools.partial(in_a_closure(net), net)) == [net]


def test_modules_of_a_name_that_is_not_bound_yet():
    def model(x):
        return later(x)

    assert modules_of(model) == []
    later = nn.Linear(2, 2)
    assert modules_of(model) == [later]


def test_modules_of_stops_at_cycles():
    holder = Holder()
    holder.more.append(holder.more)
    holder.self = holder
    assert holder.net in modules_of(holder.model)


# Modes ----------------------------------------------------------------------------------------------------------------


def test_eval_mode_restores_each_modules_own_mode():
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)), nn.Linear(2, 2))
    net[1][1].eval()
    other = nn.Dropout().eval()
    modes = [module.training for module in net.modules()]
    assert len(set(modes)) == 2
    with eval_mode(in_a_closure(net), other, None):
        assert not any(module.training for module in (*net.modules(), other))
    assert [module.training for module in net.modules()] == modes and not other.training
    with pytest.raises(RuntimeError), eval_mode(net):
        raise RuntimeError
    assert [module.training for module in net.modules()] == modes


def test_frozen_leaves_nothing_behind():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    state = torch.get_rng_state()

    def model(x):
        pyro.module("net", net)
        pyro.param("bare", torch.zeros(2))
        return pyro.sample("z", dist.Normal(net(x), 1.0).to_event(2))

    with frozen(model):
        model(X)
    assert len(pyro.get_param_store()) == 0 and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, buffers[name]) for name, value in net.named_buffers())
    assert all(module.training for module in net.modules())


# The parameter store --------------------------------------------------------------------------------------------------


def snapshot():
    state = pyro.get_param_store().get_state()
    return (
        list(state["params"].items()),
        {name: value.detach().clone() for name, value in state["params"].items()},
        state["constraints"],
    )


def assert_store_is(before):
    items, values, kinds = before
    state = pyro.get_param_store().get_state()
    assert list(state["params"]) == [name for name, _ in items]
    assert all(state["params"][name] is value for name, value in items)
    assert all(torch.equal(state["params"][name], value) for name, value in values.items())
    assert state["constraints"] == kinds


class Pyro(PyroModule):
    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](2, 2)
        self.scale = PyroParam(torch.ones(2), constraint=constraints.positive)

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(self.linear(x), self.scale).to_event(1), obs=x)


def programs():
    """Models of every kind that Pyro knows how to give parameters to."""
    net, module = nn.Linear(2, 2), Pyro()

    def registered(x):
        pyro.module("net", net)
        observe(net(x), x)

    def bare(x):
        observe(pyro.param("new", torch.zeros(2)) * pyro.param("old", torch.zeros(2)), x)

    def constrained(x):
        with pyro.plate("data", len(x), dim=-1):
            scale = pyro.param("new", torch.ones(2), constraint=constraints.positive)
            pyro.sample("x", dist.Normal(0.0, scale).to_event(1), obs=x)

    return {"module": registered, "PyroModule": module.model, "bare": bare, "constrained": constrained}


@pytest.fixture
def store():
    """A caller's store that is in use: a bare site, a constrained one, a module's parameters, a PyroModule's."""
    pyro.param("old", torch.ones(2))
    pyro.param("positive", torch.ones(2), constraint=constraints.positive)
    pyro.module("net", nn.Linear(2, 2))
    return pyro.get_param_store()


@pytest.mark.parametrize("kind", programs())
def test_private_store_leaves_the_callers_as_it_was(kind, store):
    program = programs()[kind]
    before = snapshot()
    with private_store(program):
        program(X)
        assert len(store) > 0
    assert_store_is(before)
    with pytest.raises(RuntimeError, match="inside"), private_store(program, keep=True):
        program(X)
        raise RuntimeError("inside")
    assert_store_is(before)


@pytest.mark.parametrize("kind", programs())
def test_keep_hands_new_bare_sites_over(kind, store):
    program = programs()[kind]
    before = set(store)
    with private_store(program, keep=True):
        program(X)
        if "new" in store:
            leaf = dict(store.named_parameters())["new"]
    new = set(store) - before
    assert new == ({"new"} if kind in ("bare", "constrained") else set())
    if new:
        assert dict(store.named_parameters())["new"] is leaf
        assert store["new"].unconstrained() is leaf
        torch.testing.assert_close(store["new"].detach(), torch.zeros(2) if kind == "bare" else torch.ones(2))
    if kind == "constrained":
        # The constraint came with it.
        with torch.no_grad():
            leaf.fill_(-3.0)
        torch.testing.assert_close(store["new"].detach(), torch.full((2,), -3.0).exp())


def test_parameters_made_at_the_first_run_belong_to_their_module():
    class Lazy(PyroModule):
        @PyroParam(constraint=constraints.positive)
        def scale(self):
            return torch.ones(2)

        def forward(self, x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("x", dist.Normal(0.0, self.scale).to_event(1), obs=x)

    lazy = Lazy()
    with private_store(lazy, keep=True):
        lazy(X)
    assert len(pyro.get_param_store()) == 0 and [name for name, _ in lazy.named_parameters()] == ["scale_unconstrained"]


def fit(program, *, keep=True):
    with private_store(program, keep=keep):
        leaves = trainable(program, x=X)
        optimizer = torch.optim.SGD(leaves.values(), lr=0.1)
        loss = Trace_ELBO().differentiable_loss(program, lambda x: None, X)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return leaves


def test_existing_bare_sites_are_trained_in_place(store):
    leaf = dict(store.named_parameters())["old"]
    before = leaf.detach().clone()
    with torch.no_grad():
        pyro.param("new", torch.full((2,), 0.5))
    leaves = fit(programs()["bare"], keep=False)
    assert leaves["old"] is leaf and dict(store.named_parameters())["old"] is leaf
    # d/d old of the loss: new times the sum of (new old - x) over the four rows, by hand.
    torch.testing.assert_close(leaf.detach(), before - 0.1 * 4 * 0.5 * (0.5 - 1.0) * torch.ones(2))


def test_what_is_fitted_is_the_module():
    net = nn.Linear(2, 2)

    def model(x):
        pyro.module("net", net)
        observe(net(x), x)

    before = net.bias.detach().clone()
    expected = before - 0.1 * (net(X) - X).detach().sum(0)
    leaves = fit(model)
    assert set(leaves) == {"net$$$weight", "net$$$bias"} and leaves["net$$$bias"] is net.bias
    torch.testing.assert_close(net.bias.detach(), expected)
    assert len(pyro.get_param_store()) == 0


def test_two_modules_under_one_name_both_train():
    """In one store the second silently does not; in private ones each does."""

    def model_of(net):
        def model(x):
            pyro.module("net", net)
            observe(net(x), x)

        return model

    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    for net in (first, second):
        before = net.weight.detach().clone()
        fit(model_of(net))
        assert not torch.equal(net.weight, before)

    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    before = second.weight.detach().clone()
    for net in (first, second):
        SVI(model_of(net), lambda x: None, pyro.optim.SGD({"lr": 0.1}), Trace_ELBO()).step(X)
    assert torch.equal(second.weight, before)


def test_what_the_caller_registered_under_the_same_name_is_not_in_the_way(store):
    """The caller's store has another module's parameters under "net"; ours is fitted, theirs is not touched."""
    net = nn.Linear(2, 2)

    def model(x):
        pyro.module("net", net)
        observe(net(x), x)

    before, weight = snapshot(), net.weight.detach().clone()
    fit(model)
    assert not torch.equal(net.weight, weight)
    assert_store_is(before)


# What is trained ------------------------------------------------------------------------------------------------------


def test_trainable_returns_each_leaf_once():
    net, module = nn.Linear(2, 2), Pyro()

    def twice(x):
        pyro.module("net", net)
        pyro.module("again", net)
        observe(net(x), x)

    leaves = trainable(twice, twice, functools.partial(twice), x=X)
    assert {id(leaf) for leaf in leaves.values()} == {id(weight) for weight in net.parameters()} and len(leaves) == 2
    leaves = trainable(twice, module.model, x=X)
    assert {id(leaf) for leaf in leaves.values()} == {
        id(weight) for weight in (*net.parameters(), *module.parameters())
    }


def test_trainable_gives_the_unconstrained_leaf():
    leaves = trainable(programs()["constrained"], x=X)
    assert list(leaves) == ["new"]
    assert leaves["new"].is_leaf and leaves["new"].requires_grad
    torch.testing.assert_close(leaves["new"].detach(), torch.zeros(2))  # log 1


def test_trainable_leaves_out_what_is_not_trained():
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(False)

    def model(x):
        pyro.module("net", net)
        observe(net(x), x)

    assert list(trainable(model, x=X)) == ["net$$$weight"]


def test_trainable_trains_no_running_statistics():
    net = nn.BatchNorm1d(2)

    def model(x):
        pyro.module("net", net)
        observe(net(x), x)

    buffers = {name: value.clone() for name, value in net.named_buffers()}
    with poutine.trace() as outer:
        assert len(trainable(model, x=X)) == 2
    assert all(torch.equal(value, buffers[name]) for name, value in net.named_buffers()) and net.training
    assert [name for name, node in outer.trace.nodes.items() if node["type"] == "param"] == []


def test_device_of():
    assert device_of(in_a_closure(nn.Linear(2, 2)), None) == torch.device("cpu")
    assert device_of(in_a_closure(nn.Linear(2, 2, device="meta"))) == torch.device("meta")
    assert device_of(nn.BatchNorm1d(2, affine=False, device="meta")) == torch.device("meta")
    assert device_of(lambda x: x) == torch.device("cpu")
