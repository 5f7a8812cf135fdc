"""Flows: their layers against formulas written out, what is nested, and weights that change under a draw."""

import math

import pyro.distributions as dist
import pytest
import torch

from inference.families import AutoregressiveFlow, Constrained, CouplingFlow, PlanarFlow, SylvesterFlow, from_noise
from inference.families.planar import Planar


def random_params(family, *batch, scale=0.5):
    return scale * torch.randn(*batch, family.num_params)


def stretched(amount):
    return 0.999 * (math.log1p(math.exp(amount + math.log(math.e - 1))) - 1)


def test_numbers_of_parameters():
    assert PlanarFlow(3, num_layers=2).num_params == 6 + 2 * 7
    assert SylvesterFlow(3, num_layers=2, rank=2).num_params == 6 + 2 * (6 + 8)
    assert SylvesterFlow(2, num_layers=1, rank=5).num_params == 4 + (4 + 8)
    assert CouplingFlow(3, num_layers=4, context=5).num_params == 6 + 5 + 4
    # One hidden layer of 2: 1 -> 2 -> 4 and 2 -> 2 -> 2.
    own = CouplingFlow(3, num_layers=2, hidden=(2,), shared=False)
    assert own.num_params == 6 + (2 + 2 + 8 + 4) + (4 + 2 + 4 + 2) and own.num_shared == 0
    # Degrees 1 and 2 see one and two inputs; three outputs (twice) see none, one and two of them.
    own = AutoregressiveFlow(3, num_layers=1, hidden=(2,), shared=False)
    assert own.num_params == 6 + (1 + 2 + 2) + (2 * (0 + 1 + 2) + 6)


def test_a_planar_layer_is_what_it_says():
    family = PlanarFlow(2, num_layers=1)
    row = random_params(family)
    loc, raw, u, w, b = row.split([2, 2, 2, 2, 1])
    u, w = (100 * torch.tanh(v / 100) for v in (u, w))
    inner = float(w @ u)
    u = u + (stretched(inner) - inner) * w / (w @ w)
    assert float(w @ u) > -1
    y = torch.randn(5, 2)
    expected = loc + (12 * torch.tanh(raw / 12)).exp() * (y + u * torch.tanh(y @ w + b).unsqueeze(-1))
    torch.testing.assert_close(from_noise(family(row), y)[0], expected)


def test_a_sylvester_layer_is_what_it_says():
    family = SylvesterFlow(3, num_layers=1, rank=2)
    row = random_params(family)
    vectors, amount, steep, one, other, b = row[6:].split([6, 2, 2, 1, 1, 2])
    turn = torch.eye(3)
    for v in vectors.reshape(2, 3):
        # The first reflection ends up outermost: Q = H_1 H_2 E.
        turn = turn @ (torch.eye(3) - 2 * torch.outer(v, v) / (v @ v))
    frame = turn[:, :2]
    torch.testing.assert_close(frame.T @ frame, torch.eye(2))
    steep = (4 * torch.tanh(steep / 4)).exp()
    amount = 100 * torch.tanh(amount / 100)
    diagonal = torch.tensor([stretched(float(s * a)) / s for s, a in zip(steep, amount, strict=True)])
    first, second = torch.diag(diagonal), torch.diag(steep)
    first[0, 1], second[0, 1] = 100 * torch.tanh(one / 100), 100 * torch.tanh(other / 100)
    y = torch.randn(5, 3)
    moved = y + torch.tanh(y @ frame @ second.T + b) @ first.T @ frame.T
    expected = row[:3] + (12 * torch.tanh(row[3:6] / 12)).exp() * moved
    torch.testing.assert_close(from_noise(family(row), y)[0], expected)


def test_a_sylvester_layer_of_one_direction_is_planar():
    """u along w: the two parametrisations meet."""
    sylvester = SylvesterFlow(2, num_layers=1, rank=1)
    row = torch.zeros(sylvester.num_params)
    row[4:6] = torch.tensor([1.0, -1.0])  # the reflection takes the first axis to (0, 1)
    row[6], row[7], row[8] = 0.8, 0.3, 0.2
    steep = (4 * torch.tanh(torch.tensor(0.3) / 4)).exp()
    amount = 100 * math.tanh(0.8 / 100)
    u = torch.tensor([0.0, math.atanh(amount / 100) * 100])
    w = 100 * torch.atanh(torch.tensor([0.0, steep / 100]))
    layer = Planar(u, w, row[8:9])
    y = torch.randn(5, 2)
    torch.testing.assert_close(from_noise(sylvester(row), y)[0], layer.push(y)[0])


@pytest.mark.parametrize("amount", [-50.0, -1e3, 1e38, -1e38])
def test_layers_stay_invertible(amount):
    """Where w'u would be far below -1, the log determinant is finite and a line is mapped in order."""
    u, w, b = (torch.tensor([value], dtype=torch.float32) for value in (amount, 7.0, 0.0))
    layer = Planar(u, w, b)
    y = torch.linspace(-2, 2, 101, dtype=torch.float32).unsqueeze(-1)
    z, log_det = layer.push(y)
    assert log_det.isfinite().all() and (z.diff(dim=0) >= 0).all()


SHARED = {
    "coupling": lambda size: CouplingFlow(size, context=3, hidden=(8, 8)),
    "autoregressive": lambda size: AutoregressiveFlow(size, context=3, hidden=(8, 8)),
}
OWN = {
    "coupling, own": lambda size: CouplingFlow(size, shared=False, num_layers=3),
    "autoregressive, own": lambda size: AutoregressiveFlow(size, shared=False, num_layers=3),
}


@pytest.mark.parametrize("name", SHARED | OWN)
def test_what_depends_on_what(name):
    """The Jacobian of each layer is triangular in its order, so the product of its diagonal is the determinant."""
    family = (SHARED | OWN)[name](4)
    q = family(random_params(family, scale=0.8))
    for number, layer in enumerate(q.transforms[:-1]):
        y = torch.randn(4)
        jacobian = torch.autograd.functional.jacobian(lambda y: layer.push(y)[0], y)  # noqa: B023
        if "coupling" in name:
            still = slice(0, 2) if number % 2 == 0 else slice(2, 4)
            torch.testing.assert_close(jacobian[still], torch.eye(4)[still])
        else:
            jacobian = jacobian if number % 2 == 0 else jacobian.flip(0, 1)
            assert (jacobian.triu(1) == 0).all() and (jacobian.tril(-1) != 0).sum() == 6
        torch.testing.assert_close(layer.push(y)[1], torch.linalg.slogdet(jacobian)[1])
        x, log_det = layer.pull(layer.push(y)[0])
        torch.testing.assert_close(x, y)
        torch.testing.assert_close(log_det, layer.push(y)[1])


@pytest.mark.parametrize("name", SHARED)
def test_closed_gates_are_the_identity_whatever_the_weights(name):
    family = SHARED[name](3)
    with torch.no_grad():
        for weight in family.parameters():
            weight.normal_()
    row = random_params(family, 5)
    row[:, -family.num_layers :] = 0
    noise = torch.randn(2, 5, 3)
    z, _ = from_noise(family(row), noise)
    torch.testing.assert_close(z, row[:, :3] + (12 * torch.tanh(row[:, 3:6] / 12)).exp() * noise)


@pytest.mark.parametrize("name", SHARED)
def test_the_context_moves_the_flow(name):
    """Of the first dimension too, which sees no other."""
    family = SHARED[name](3)
    row = random_params(family)
    row[-family.num_layers :] = 1.0
    other = row.clone()
    other[6] += 1.0
    noise = torch.randn(1, 3)
    changed = from_noise(family(row), noise)[0] != from_noise(family(other), noise)[0]
    assert changed.all()


WRAPS = {"free": lambda f: f, "positive": lambda f: Constrained(f, dist.constraints.positive)}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("name", SHARED)
def test_no_draw_outlives_a_change_of_weights(name, wrap):
    """A distribution stays what it was when it was made; one made later takes the old draw for any other point."""
    family = WRAPS[wrap](SHARED[name](3))
    params = random_params(family, 5)
    q = family(params)
    z = q.rsample()
    before = q.log_prob(z)
    torch.testing.assert_close(before, q.log_prob(z.clone()))
    for weight in family.parameters():
        weight.data.mul_(1.5)
    for point in (z, z.clone()):
        torch.testing.assert_close(q.log_prob(point), before)
    after = family(params).log_prob(z)
    assert not torch.allclose(after, before)
    copied = WRAPS[wrap](SHARED[name](3))
    copied.load_state_dict(family.state_dict())
    torch.testing.assert_close(after, copied(params).log_prob(z), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SHARED | OWN)
def test_no_draw_outlives_a_change_of_its_row(name):
    """A location is a view of the row, which an optimiser moves in place: the remembered pair is then no pair."""
    family = (SHARED | OWN)[name](3)
    params = random_params(family, 5)
    q = family(params)
    z = q.rsample()
    params[:, :3] += 1.0
    torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()))


@pytest.mark.parametrize("name", SHARED)
def test_members_of_a_flow_with_other_weights_are_not_its_own(name):
    family, other = SHARED[name](3), SHARED[name](3)
    q = family(random_params(family, 5))
    assert torch.equal(family.params_from(q), q.params)
    assert not torch.equal(other.params_from(q), q.params)
    other.load_state_dict(family.state_dict())
    assert torch.equal(other.params_from(q), q.params)


def test_a_flow_of_nothing_to_couple():
    with pytest.raises(ValueError, match="CouplingFlow: num_latents: expected at least 2, .* got 1. Choose Planar"):
        CouplingFlow(1)


@pytest.mark.parametrize("hidden", [(), (0,), (8, -1), (2.0,), 8, "8"], ids=str)
@pytest.mark.parametrize("cls", [CouplingFlow, AutoregressiveFlow], ids=lambda c: c.__name__)
def test_bad_hidden_layers(cls, hidden):
    with pytest.raises(ValueError, match=f"{cls.__name__}: hidden: expected a tuple of one or more positive integers"):
        cls(3, hidden=hidden)


def test_reprs_say_what_distinguishes():
    assert repr(CouplingFlow(3)) == "CouplingFlow(3, num_layers=4, hidden=(64,), context=8)"
    assert repr(CouplingFlow(3, shared=False)) == "CouplingFlow(3, num_layers=4, hidden=(8,), shared=False)"
    assert repr(PlanarFlow(3, num_layers=2)) == "PlanarFlow(3, num_layers=2)"
    assert repr(SylvesterFlow(3, rank=1)) == "SylvesterFlow(3, num_layers=2, rank=1)"
