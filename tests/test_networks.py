import copy
import io
from math import prod

import numpy as np
import pytest
import torch
from torch import nn

from pyro_vae import parts
from pyro_vae.networks import MLP, ConvDecoder, ConvEncoder, Linear, Network

ACTIVATIONS = ["elu", "relu", "tanh", "softplus", "silu", "gelu"]


@pytest.fixture(params=[*parts.catalog("encoder").items(), *parts.catalog("decoder").items()], ids=lambda item: item[0])
def network(request):
    name, cls = request.param
    kind = "decoder" if "decoder" in cls.roles else "encoder"
    return parts.build(parts.options(kind, name), {"num_inputs": 6, "num_outputs": 12, "image_shape": (2, 3)})


def test_shapes_and_gradients(network):
    assert isinstance(network, Network)
    assert (network.num_inputs, network.num_outputs) == (6, 12)
    x = torch.randn(5, 6)
    assert network(x).shape == (5, 12)
    assert network(x[0]).shape == (12,) and network(x[:0]).shape == (0, 12)
    torch.testing.assert_close(network(x.expand(2, 5, 6)), network(x).expand(2, 5, 12))
    network(x).square().sum().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0, name


def test_rows_do_not_depend_on_each_other(network):
    x = torch.randn(5, 6)
    torch.testing.assert_close(network(x)[2:3], network(x[2:3]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_save_load_and_dtype(network, dtype):
    network = network.to(dtype)
    x = torch.randn(5, 6, dtype=dtype)
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
    assert f", {network.num_outputs}" in repr(network)
    assert repr(getattr(network, "image_shape", network.num_inputs)) in repr(network)


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


def hidden_layers(network):
    """Each hidden layer's affine map and normalisation (or None), read off the modules."""
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)][:-1]
    norms = [module for module in network.modules() if isinstance(module, nn.LayerNorm)] or [None] * len(linears)
    return list(zip(linears, norms, strict=True))


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_mlp_with_skips_and_norms_is_the_composition_it_says(residual, layer_norm):
    network = MLP(3, 3, 5, 5, 5, 4, 2, activation="tanh", residual=residual, layer_norm=layer_norm)
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_()
    x = torch.randn(7, 3)
    h = x
    for linear, norm in hidden_layers(network):
        u = h @ linear.weight.T + linear.bias
        if norm is not None:
            u = (u - u.mean(1, keepdim=True)) / (u.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
            u = u * norm.weight + norm.bias
        h = torch.tanh(u) + (h if residual and u.shape == h.shape else 0)
    last = network.layers[-1]
    torch.testing.assert_close(network(x), h @ last.weight.T + last.bias)


def test_mlp_options_that_are_off_change_nothing():
    torch.manual_seed(3)
    plain = MLP(4, 4, 4, 2)
    torch.manual_seed(3)
    off = MLP(4, 4, 4, 2, residual=False, layer_norm=False)
    assert list(off.state_dict()) == [f"layers.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")]
    for name, weight in plain.state_dict().items():
        assert torch.equal(off.state_dict()[name], weight)
    assert repr(off) == repr(plain) == "MLP(4, 4, 4, 2, activation='elu')"


def test_first_weights_of_an_mlp_are_those_of_every_release():
    torch.manual_seed(3)
    network = MLP(4, 4, 4, 2)
    assert network.layers[0].weight[0].tolist() == pytest.approx(
        [-0.6732178445132864, -0.14208462940867445, 0.08397237550706486, 0.37902866431079096], abs=1e-12
    )


def test_repr_names_the_options_that_are_on():
    assert repr(MLP(4, 4, 2, residual=True)) == "MLP(4, 4, 2, activation='elu', residual=True)"
    assert repr(MLP(4, 4, 2, layer_norm=True)) == "MLP(4, 4, 2, activation='elu', layer_norm=True)"


@pytest.mark.parametrize("options", [{"residual": True}, {"layer_norm": True}, {"residual": True, "layer_norm": True}])
def test_gradients_reach_every_parameter_through_skips_and_norms(options):
    network = MLP(6, 6, 6, 3, **options)
    network(torch.randn(5, 6)).square().sum().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0, name


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "softplus"])
def test_skips_keep_the_mean_square_at_any_depth(activation, layer_norm):
    network = MLP(200, *[200] * 12, 200, activation=activation, residual=True, layer_norm=layer_norm)
    with torch.no_grad():
        before = network.layers[:-1](torch.randn(300, 200))
    # Without the shares a dozen skips of equal size would multiply it by hundreds or more.
    assert 0.9 < before.square().mean() < np.e**2


def test_linear_starts_as_the_last_layer_of_an_mlp():
    assert Linear(400, 300).affine.weight.std().item() == pytest.approx(0.1 / 20, rel=0.05)
    assert MLP(400, 300).layers[-1].weight.std().item() == pytest.approx(0.1 / 20, rel=0.05)


# ----------------------------------------------------------------------------------------------------- convolutional

IMAGE_SHAPES = [(7, 7), (28, 20), (32, 32, 3), (28, 28), (105, 105), (5, 9, 2), (1, 6)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", IMAGE_SHAPES, ids=str)
def test_images_of_any_size(shape, dtype):
    num_values = prod(shape)
    encoder = ConvEncoder(shape, 6, channels=(4, 8), hidden=(16,)).to(dtype)
    decoder = ConvDecoder(3, shape, 2 * num_values, channels=(8, 4), hidden=(16,)).to(dtype)
    assert (encoder.num_inputs, encoder.num_outputs) == (num_values, 6)
    assert (decoder.num_inputs, decoder.num_outputs) == (3, 2 * num_values)
    for network, size in ((encoder, num_values), (decoder, 3)):
        out = network(torch.randn(4, size, dtype=dtype))
        assert (out.shape, out.dtype) == ((4, network.num_outputs), dtype)
        out.square().sum().backward()
        for name, weight in network.named_parameters():
            assert weight.grad is not None and weight.grad.abs().max() > 0, name


@pytest.mark.parametrize("shape", [(7, 7), (28, 20), (5, 9, 3)], ids=str)
def test_every_value_of_the_image_reaches_the_encoder_and_is_reached_by_the_decoder(shape):
    num_values = prod(shape)
    encoder = ConvEncoder(shape, 6, channels=(4, 8), hidden=(16,))
    x = torch.randn(3, num_values, requires_grad=True)
    encoder(x).square().sum().backward()
    assert (x.grad != 0).all()
    decoder = ConvDecoder(3, shape, num_values, channels=(8, 4), hidden=(16,))
    assert (decoder(torch.randn(2, 3)).diff(dim=0) != 0).all()


def test_encoder_sees_the_image_that_the_vector_holds():
    shape = (6, 8, 2)
    encoder = ConvEncoder(shape, 3, channels=(5,), hidden=())
    convolution, linear = encoder.layers[0], encoder.layers[-1]
    x = torch.randn(4, prod(shape))
    image = x.reshape(4, 6, 8, 2)
    # By hand: a 3 x 3 window around each second pixel, of an image with zeros around it.
    padded = torch.zeros(4, 8, 10, 2)
    padded[:, 1:7, 1:9] = image
    maps = torch.empty(4, 5, 3, 4)
    for row in range(3):
        for column in range(4):
            window = padded[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            maps[:, :, row, column] = torch.einsum("bhwc,ochw->bo", window, convolution.weight) + convolution.bias
    torch.testing.assert_close(encoder(x), linear(nn.functional.elu(maps).flatten(1)))


def test_one_colour_channel_is_told_from_another():
    shape = (6, 6, 3)
    encoder = ConvEncoder(shape, 3, channels=(5,), hidden=())
    with torch.no_grad():
        encoder.layers[0].weight[:, [0, 2]] = 0
    x = torch.randn(2, 6, 6, 3)
    other = x.clone()
    other[..., [0, 2]] += 1
    assert torch.equal(encoder(other.flatten(1)), encoder(x.flatten(1)))
    other[..., 1] = x[..., 1].roll(1, dims=1)
    assert not torch.allclose(encoder(other.flatten(1)), encoder(x.flatten(1)))


def test_decoder_writes_blocks_in_the_order_of_x():
    height, width, num_colors, num_params = 5, 4, 3, 2
    decoder = ConvDecoder(2, (height, width, num_colors), height * width * num_colors * num_params, channels=(4,))
    last = [module for module in decoder.modules() if isinstance(module, nn.ConvTranspose2d)][-1]
    marks = torch.tensor([[10.0, 20.0, 30.0], [11.0, 21.0, 31.0]])
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(marks.flatten())
    out = decoder(torch.randn(6, 2)).reshape(6, num_params, height, width, num_colors)
    assert torch.equal(out, marks[:, None, None, :].expand_as(out))


def test_decoder_writes_rows_and_columns_in_the_order_of_x():
    decoder = ConvDecoder(2, (6, 4), 24, channels=(3,), hidden=())
    linear, last = decoder.layers[0], decoder.layers[-2]
    z = torch.randn(2, 2)
    maps = nn.functional.elu(linear(z)).reshape(2, 3, 3, 2)
    # By hand: the pixel (i, j) of the small image paints a 4 x 4 patch around (2 i, 2 j).
    canvas = torch.zeros(2, 8, 6)
    for row in range(3):
        for column in range(2):
            patch = torch.einsum("bc,chw->bhw", maps[:, :, row, column], last.weight[:, 0])
            canvas[:, 2 * row : 2 * row + 4, 2 * column : 2 * column + 4] += patch
    torch.testing.assert_close(decoder(z), (canvas[:, 1:7, 1:5] + last.bias).flatten(1))


@pytest.mark.parametrize("shape", [(28, 28), (7, 7), (2, 3, 3)], ids=str)
def test_initial_convolutions_keep_the_mean_square(shape):
    num_values = prod(shape)
    encoder = ConvEncoder(shape, 300, channels=(64, 128), hidden=(300,), activation="relu")
    decoder = ConvDecoder(300, shape, num_values, channels=(128, 64), hidden=(300,), activation="relu")
    with torch.no_grad():
        for network, x in ((encoder, torch.randn(100, num_values)), (decoder, torch.randn(100, 300))):
            squares = []
            for layer in network.layers:
                if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                    layer.register_forward_hook(
                        lambda *call, seen=squares: seen.append(call[-1].square().mean().item())
                    )
            network(x)
            # One layer's gain wrong by 30 %, or an edge forgotten, would show.
            assert len(squares) == 4 and all(0.6 < square < 1.7 for square in squares[:-1])
            # A rectifier halves the mean square, and the last layer takes a hundredth of that.
            assert 0.003 < squares[-1] < 0.0085
    assert not any(weight.any() for name, weight in decoder.named_parameters() if name.endswith("bias"))


def test_hidden_layers_and_convolutions_can_be_left_out():
    encoder, decoder = ConvEncoder((3, 3), 2, channels=(), hidden=()), ConvDecoder(2, (3, 3), 9, channels=(), hidden=())
    assert len(list(encoder.parameters())) == len(list(decoder.parameters())) == 2
    x = torch.randn(4, 9)
    torch.testing.assert_close(encoder(x), encoder.layers[-1](x))


def test_convolutions_run_under_vmap():
    encoder = ConvEncoder((5, 4), 2, channels=(3,))
    x = torch.randn(6, 20)
    torch.testing.assert_close(torch.func.vmap(encoder)(x), encoder(x))


def test_deepest_stack_halves_to_one_pixel():
    assert ConvEncoder((7, 5), 2, channels=(2, 2, 2))(torch.zeros(1, 35)).shape == (1, 2)
    with pytest.raises(ValueError, match=r"cannot halve .* 7 x 5 .*7 x 5 -> 4 x 3 -> 2 x 2 -> 1 x 1"):
        ConvEncoder((7, 5), 2, channels=(2, 2, 2, 2))


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
        pytest.param(lambda: MLP(3, 4, 1, 2, layer_norm=True), r"MLP: layer_norm: .* got \(4, 1\)", id="norm of one"),
        pytest.param(
            lambda: ConvEncoder(None, 4), "ConvEncoder: image_shape: .* got None: the data are rows", id="no image"
        ),
        pytest.param(lambda: ConvDecoder(3, None, 4), "ConvDecoder: image_shape: .* got None", id="no image to make"),
        pytest.param(lambda: ConvEncoder((784,), 4), r"image_shape: expected \(H, W\) .* got \(784,\)", id="1-D image"),
        pytest.param(lambda: ConvEncoder((8, 0), 4), r"ConvEncoder: image_shape\[1\]: .* got 0", id="flat image"),
        pytest.param(lambda: ConvEncoder((8, 8), 0), "ConvEncoder: num_outputs: .* got 0", id="encoder outputs"),
        pytest.param(lambda: ConvDecoder(0, (8, 8), 64), "ConvDecoder: num_inputs: .* got 0", id="decoder inputs"),
        pytest.param(
            lambda: ConvDecoder(3, (8, 8), 100),
            r"ConvDecoder: num_outputs: expected a multiple of the 64 values .*\(8, 8\); got 100",
            id="part of an image",
        ),
        pytest.param(
            lambda: ConvDecoder(3, (2, 2), 4),
            "ConvDecoder: channels: expected at most 1 entries, because convolutions cannot halve .* 2 x 2 .* got 2",
            id="too deep",
        ),
        pytest.param(lambda: ConvEncoder((8, 8), 4, channels=(4, 0)), r"channels\[1\]: .* got 0", id="no channels"),
        pytest.param(lambda: ConvDecoder(3, (8, 8), 64, hidden=(0,)), r"hidden\[0\]: .* got 0", id="no hidden width"),
        pytest.param(
            lambda: ConvEncoder((8, 8), 4, activation="rleu"),
            "ConvEncoder: activation: .* got 'rleu'",
            id="conv activation",
        ),
        pytest.param(
            lambda: ConvEncoder((8, 8), 4)(torch.zeros(2, 63)),
            r"ConvEncoder\(\(8, 8\).*: expected rows of 64 values; got shape \(2, 63\)",
            id="another image",
        ),
    ],
)
def test_bad_sizes(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "network",
    [Linear(6, 3), MLP(6, 4), MLP(6, 8, 8, 4, residual=True, layer_norm=True), nn.Sequential(MLP(6, 5), Linear(5, 2))],
    ids=repr,
)
def test_a_network_that_is_scripted_gives_the_same_numbers(network, tmp_path):
    x = torch.randn(3, 2, 6, dtype=next(network.parameters()).dtype)
    torch.jit.save(torch.jit.script(network), tmp_path / "network.pt")
    torch.testing.assert_close(torch.jit.load(tmp_path / "network.pt")(x), network(x), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_network_that_cannot_be_scripted_says_what_to_do():
    with pytest.raises(TypeError, match=r"torch.jit.script: .*ConvEncoder.*torch.jit.trace\(network, x\)"):
        torch.jit.script(ConvEncoder((8, 8), 4))
