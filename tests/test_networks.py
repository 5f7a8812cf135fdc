import copy
import io

import numpy as np
import pytest
import torch

from pyro_vae import parts
from pyro_vae.networks import MLP, Linear, Network

ACTIVATIONS = ["elu", "relu", "tanh", "softplus", "silu", "gelu"]


@pytest.fixture(params=[*parts.catalog("encoder").items(), *parts.catalog("decoder").items()], ids=lambda item: item[0])
def network(request):
    name, cls = request.param
    kind = "decoder" if "decoder" in cls.roles else "encoder"
    return parts.build(parts.options(kind, name), {"num_inputs": 3, "num_outputs": 4, "image_shape": (2, 2)})


def test_shapes_and_gradients(network):
    assert isinstance(network, Network)
    assert (network.num_inputs, network.num_outputs) == (3, 4)
    x = torch.randn(5, 3)
    network(x).square().sum().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0, name


def test_rows_do_not_depend_on_each_other(network):
    x = torch.randn(5, 3)
    torch.testing.assert_close(network(x)[2:3], network(x[2:3]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_save_load_and_dtype(network, dtype):
    network = network.to(dtype)
    x = torch.randn(5, 3, dtype=dtype)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(network)
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    assert not torch.equal(other(x), network(x))
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(x), network(x))
    assert network(x).dtype == dtype


def test_repr_is_one_line(network):
    assert len(repr(network).splitlines()) == 1
    assert f"{network.num_inputs}, " in repr(network) and f", {network.num_outputs}" in repr(network)


def test_linear_is_affine():
    network = Linear(3, 4)
    x, y = torch.randn(2, 5, 3)
    origin = network(torch.zeros(1, 3))
    torch.testing.assert_close(network(x + y) - origin, network(x) - origin + network(y) - origin)


def test_mlp_is_the_composition_it_says():
    network = MLP(3, 5, 6, 2, activation="tanh")
    x = torch.randn(7, 3)
    first, second, last = (network.layers[i] for i in (0, 2, 4))
    expected = torch.tanh(torch.tanh(x @ first.weight.T + first.bias) @ second.weight.T + second.bias)
    torch.testing.assert_close(network(x), expected @ last.weight.T + last.bias)
    assert len(network.layers) == 5
    assert network.hidden == (5, 6)


def test_mlp_without_hidden_layers_is_affine():
    assert [type(layer) for layer in MLP(3, 2).layers] == [torch.nn.Linear]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_initial_weights_keep_the_mean_square_at_any_depth(activation):
    network = MLP(400, *[400] * 8, 400, activation=activation)
    with torch.no_grad():
        x = torch.randn(300, 400)
        before, output = network.layers[:-2](x), network(x)
    # Seven gains: one wrong by 10 % would show as a factor of 3.8.
    assert 0.6 < before.square().mean() < 1.7
    after = network.layers[-2](before).square().mean()
    assert output.square().mean().item() == pytest.approx(0.01 * after.item(), rel=0.25)
    assert all(not layer.bias.any() for layer in network.layers if isinstance(layer, torch.nn.Linear))


def test_linear_starts_as_the_last_layer_of_an_mlp():
    assert Linear(400, 300).affine.weight.std().item() == pytest.approx(0.1 / 20, rel=0.05)
    assert MLP(400, 300).layers[-1].weight.std().item() == pytest.approx(0.1 / 20, rel=0.05)


def test_sizes_may_be_numpy_integers():
    assert MLP(np.int64(3), np.int64(5), np.int64(2)).num_outputs == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: MLP(0, 5, 2), "MLP: num_inputs: expected a positive integer; got 0", id="no inputs"),
        pytest.param(lambda: MLP(3, 5, -1), "MLP: num_outputs: .* got -1", id="negative outputs"),
        pytest.param(lambda: MLP(3, 5, 0, 2), r"MLP: hidden\[1\]: .* got 0", id="empty hidden layer"),
        pytest.param(lambda: MLP(3, 5.0, 2), r"MLP: hidden\[0\]: .* got 5.0", id="float width"),
        pytest.param(lambda: MLP(3, True, 2), r"MLP: hidden\[0\]: .* got True", id="boolean width"),
        pytest.param(lambda: MLP(3), r"MLP: num_outputs: .* got MLP\(3\)", id="one size"),
        pytest.param(lambda: MLP(3, 2, activation="rleu"), "MLP: activation: .*relu.* got 'rleu'", id="activation"),
        pytest.param(lambda: Linear(3, 0), "Linear: num_outputs: .* got 0", id="linear"),
    ],
)
def test_bad_sizes(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
