"""Convolutional networks for images of any size and number of channels.

A datapoint is a vector that holds an image (H, W) or (H, W, C) row by row, channels last; the networks reshape inside.
"""

from __future__ import annotations

from math import prod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vae.networks.base import LAST_GAIN, Activation, Network, affine, check_activation, check_size, check_sizes

__all__ = ["ConvDecoder", "ConvEncoder"]


class ConvEncoder(Network):
    r"""Convolutions that halve an image, then fully connected layers; the last layer is linear.

    .. math::
        f(x) = A_L \, h_{L-1}, \qquad h_l = s(A_l h_{l-1}), \quad h_0 = \text{image}(x)

    with s the activation and A_l first a convolution (3 x 3, stride 2, zeros around the image) for each entry of
    `channels`, then affine for each of `hidden`. A side of n pixels becomes :math:`\lceil n / 2 \rceil`, so odd sizes
    need no cropping: 28 x 20 goes to 14 x 10 and 7 x 5.

    Weights start as those of `MLP` do, with the number of inputs that the average output of a convolution sees inside
    the image.

    Args:
        image_shape: (H, W) or (H, W, C) of one datapoint, in pixels.
        num_outputs: size of the last output dimension.
        channels: channels after each convolution; as many as the image can be halved, at most.
        hidden: widths of the fully connected layers that follow, if any.
        activation: function between the layers: "elu", "relu", "tanh", "softplus", "silu" or "gelu".

    Raises:
        ValueError: the data are not images, a size is not a positive integer, the image cannot be halved so often, or
            the activation is unknown.

    Example:
        >>> import torch
        >>> encoder = ConvEncoder((28, 20), 16)
        >>> encoder(torch.zeros(5, 28 * 20)).shape
        torch.Size([5, 16])
    """

    roles: ClassVar[frozenset[str]] = frozenset({"encoder"})

    def __init__(
        self,
        image_shape: tuple[int, ...],
        num_outputs: int,
        *,
        channels: tuple[int, ...] = (32, 64),
        hidden: tuple[int, ...] = (256,),
        activation: Activation = "elu",
    ) -> None:
        self_name = type(self).__name__
        image = _check_image(self_name, image_shape)
        super().__init__(prod(image), num_outputs)
        function, gain = check_activation(self_name, activation)
        self.image_shape = tuple(image_shape)
        self.channels = check_sizes(self_name, "channels", channels)
        self.hidden = check_sizes(self_name, "hidden", hidden)
        self.activation = activation
        self._image = image
        sides = _halvings(self_name, image, len(self.channels))
        layers: list[nn.Module] = []
        counts = (image[2], *self.channels)
        for layer, (before, after) in enumerate(zip(counts, counts[1:], strict=False)):
            convolution = nn.Conv2d(before, after, 3, stride=2, padding=1)
            # The image has not passed through the activation: no gain on the first layer.
            layers += [_start(convolution, *sides[layer : layer + 2], gain=gain if layer else 1.0), function()]
        layers.append(nn.Flatten())
        widths = (counts[-1] * prod(sides[-1]), *self.hidden)
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [affine(before, after, gain=gain), function()]
        layers.append(affine(widths[-1], self.num_outputs, gain=LAST_GAIN))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "*B P"]) -> Float[Tensor, "*B O"]:
        """The outputs at these images."""
        images = x.reshape(-1, *self._image).movedim(-1, 1)
        return self.layers(images).reshape(*x.shape[:-1], self.num_outputs)

    def __repr__(self) -> str:
        """One line, whatever the depth."""
        return (
            f"ConvEncoder({self.image_shape}, {self.num_outputs}, channels={self.channels}, hidden={self.hidden}, "
            f"activation={self.activation!r})"
        )


class ConvDecoder(Network):
    r"""Fully connected layers, then transposed convolutions that double up to an image; the last one is linear.

    .. math::
        f(z) = \text{vector}(A_L \, h_{L-1}), \qquad h_l = s(A_l h_{l-1}), \quad h_0 = z

    with s the activation and A_l first affine for each of `hidden` and for the smallest image, then a transposed
    convolution (4 x 4, stride 2, so that 2 x 2 inputs reach every output) for each entry of `channels`. The image grows
    through the sizes that `ConvEncoder` would halve it to, the surplus last row or column of an odd size cut off: 7 x
    7 is made from 4 x 4.

    The outputs come in blocks: the first P are the first parameter of every value, in the order (H, W, C) that x has;
    the next P the second, and so on.

    Weights start as those of `MLP` do, with the number of inputs that the average output of a convolution sees inside
    the image.

    Args:
        num_inputs: size of the last input dimension.
        image_shape: (H, W) or (H, W, C) of one datapoint, in pixels; P = H W C values.
        num_outputs: size of the last output dimension, P times the number of parameters of a value.
        channels: channels before each transposed convolution; as many as the image can be halved, at most.
        hidden: widths of the fully connected layers that come first, if any.
        activation: function between the layers: "elu", "relu", "tanh", "softplus", "silu" or "gelu".

    Raises:
        ValueError: the data are not images, a size is not a positive integer, the outputs are no multiple of the
            image's values, the image cannot be halved so often, or the activation is unknown.

    References:
        Odena, Dumoulin & Olah (2016), Deconvolution and checkerboard artifacts.

    Example:
        >>> import torch
        >>> decoder = ConvDecoder(8, (28, 20), 2 * 28 * 20)
        >>> decoder(torch.zeros(5, 8)).shape
        torch.Size([5, 1120])
    """

    roles: ClassVar[frozenset[str]] = frozenset({"decoder"})

    def __init__(
        self,
        num_inputs: int,
        image_shape: tuple[int, ...],
        num_outputs: int,
        *,
        channels: tuple[int, ...] = (64, 32),
        hidden: tuple[int, ...] = (256,),
        activation: Activation = "elu",
    ) -> None:
        self_name = type(self).__name__
        image = _check_image(self_name, image_shape)
        super().__init__(num_inputs, num_outputs)
        function, gain = check_activation(self_name, activation)
        if self.num_outputs % prod(image):
            raise ValueError(
                f"ConvDecoder: num_outputs: expected a multiple of the {prod(image)} values of an image of shape "
                f"{tuple(image_shape)}; got {self.num_outputs}. Pass num_values * likelihood.num_params."
            )
        self.image_shape = tuple(image_shape)
        self.channels = check_sizes(self_name, "channels", channels)
        self.hidden = check_sizes(self_name, "hidden", hidden)
        self.activation = activation
        sides = _halvings(self_name, image, len(self.channels))[::-1]
        counts = (*self.channels, image[2] * (self.num_outputs // prod(image)))
        self._image = image
        widths = (self.num_inputs, *self.hidden)
        layers: list[nn.Module] = []
        for layer, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
            layers += [affine(before, after, gain=gain if layer else 1.0), function()]
        first = LAST_GAIN if not self.channels else gain if self.hidden else 1.0
        layers.append(affine(widths[-1], counts[0] * prod(sides[0]), gain=first))
        layers.append(nn.Unflatten(-1, (counts[0], *sides[0])))
        for layer, (before, after) in enumerate(zip(counts, counts[1:], strict=False)):
            is_last = layer == len(self.channels) - 1
            double = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)
            layers += [function(), _start(double, *sides[layer : layer + 2], gain=LAST_GAIN if is_last else gain)]
            layers.append(_Crop(*sides[layer + 1]))
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """The outputs at these inputs."""
        images = self.layers(z.reshape(-1, self.num_inputs))
        num_colors = self._image[2]
        blocks = images.unflatten(1, (-1, num_colors)).movedim(2, -1)
        return blocks.reshape(*z.shape[:-1], self.num_outputs)

    def __repr__(self) -> str:
        """One line, whatever the depth."""
        return (
            f"ConvDecoder({self.num_inputs}, {self.image_shape}, {self.num_outputs}, channels={self.channels}, "
            f"hidden={self.hidden}, activation={self.activation!r})"
        )


class _Crop(nn.Module):
    """The first `height` rows and `width` columns."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        return images[..., : self.height, : self.width]


def _check_image(owner: str, image_shape: tuple[int, ...] | None) -> tuple[int, int, int]:
    """Height, width and number of channels."""
    if image_shape is None:
        raise ValueError(
            f"{owner}: image_shape: expected (H, W) or (H, W, C); got None: the data are rows without an image shape. "
            "Save them as images (N, H, W), or choose an MLP."
        )
    if not isinstance(image_shape, tuple | list) or len(image_shape) not in (2, 3):
        raise ValueError(
            f"{owner}: image_shape: expected (H, W) or (H, W, C); got {image_shape!r}. Pass the shape of one "
            "image, channels last."
        )
    sizes = [check_size(owner, f"image_shape[{i}]", size) for i, size in enumerate(image_shape)]
    return sizes[0], sizes[1], sizes[2] if len(sizes) == 3 else 1


def _halvings(owner: str, image: tuple[int, int, int], depth: int) -> list[tuple[int, int]]:
    """Height and width before and after each of `depth` halvings, rounded up."""
    sides = [image[:2]]
    while sides[-1] != (1, 1):
        height, width = sides[-1]
        sides.append(((height + 1) // 2, (width + 1) // 2))
    if depth >= len(sides):
        path = " -> ".join(f"{height} x {width}" for height, width in sides)
        raise ValueError(
            f"{owner}: channels: expected at most {len(sides) - 1} entries, because convolutions cannot halve an image "
            f"of {image[0]} x {image[1]} more often ({path}); got {depth}. Pass fewer channels, or choose an MLP."
        )
    return sides[: depth + 1]


def _start(
    layer: nn.Conv2d | nn.ConvTranspose2d, before: tuple[int, int], after: tuple[int, int], *, gain: float
) -> nn.Module:
    """The layer with normal weights of variance gain^2 / fan_in and biases 0, for images of these sides."""
    apply = F.conv_transpose2d if isinstance(layer, nn.ConvTranspose2d) else F.conv2d
    # At the edge part of a kernel lies on zeros: on a small image that is most of it.
    ones = torch.ones(1, 1, *before), torch.ones(1, 1, *layer.kernel_size)
    taps = apply(*ones, stride=2, padding=1)[..., : after[0], : after[1]].mean().item()
    nn.init.normal_(layer.weight, std=gain * (layer.in_channels * taps) ** -0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
