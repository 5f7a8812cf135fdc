"""Networks without structure: affine, and fully connected."""

from __future__ import annotations

from typing import Self

from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.networks.base import LAST_GAIN, Activation, Network, affine, check_activation, check_size

__all__ = ["MLP", "Linear"]


class Linear(Network):
    r"""An affine map, without hidden layers.

    .. math::
        f(x) = W x + b

    Args:
        num_inputs: size of the last input dimension.
        num_outputs: size of the last output dimension.

    Raises:
        ValueError: a size is not a positive integer.

    Example:
        >>> Linear(8, 64)
        Linear(8, 64)
    """

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__(num_inputs, num_outputs)
        self.affine = affine(self.num_inputs, self.num_outputs, gain=LAST_GAIN)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """The outputs at these inputs."""
        return self.affine(x)

    def __prepare_scriptable__(self) -> nn.Module:
        """The affine layer."""
        return self.affine

    def __repr__(self) -> str:
        """One line."""
        return f"Linear({self.num_inputs}, {self.num_outputs})"


class MLP(Network):
    r"""Fully connected layers with an activation between them; the last layer is linear.

    .. math::
        f(x) = A_L \, h_{L-1}, \qquad h_l = s(A_l h_{l-1}), \quad h_0 = x, \qquad A_l \text{ affine}, \;
        s \text{ the activation}

    With `layer_norm`, :math:`h_l = s(N_l A_l h_{l-1})`, where N standardises the values of a layer over its width, row
    by row, and then scales and shifts each by what it learns. With `residual`, :math:`h_{l-1}` is added to
    :math:`h_l` in every hidden layer that is as wide as the one before it (or as x).

    Weights start normal, with the variance that keeps the mean square of the hidden layers at that of x, and of the
    outputs at about a hundredth; biases start at 0. With r skips, each adds 1/r of that root mean square at
    the start, so that their sum grows by less than e at any depth (softplus, which is not 0 at 0, adds 0.7 to each).

    Args:
        num_inputs: size of the last input dimension.
        *sizes: widths of the hidden layers, if any, and then the number of outputs: `MLP(8, 128, 128, 64)`.
        activation: function between the layers: "elu", "relu", "tanh", "softplus", "silu" or "gelu".
        residual: add a hidden layer's input to its output, where their widths agree.
        layer_norm: standardise each hidden layer over its width, before the activation.

    Raises:
        ValueError: a size is not a positive integer, no number of outputs is given, the activation is unknown, or
            a layer has nothing to standardise over.

    References:
        He, Zhang, Ren & Sun (2016), Deep residual learning for image recognition.
        Ba, Kiros & Hinton (2016), Layer normalization.

    Example:
        >>> import torch
        >>> decoder = MLP(8, 128, 128, 64)
        >>> decoder(torch.zeros(5, 8)).shape
        torch.Size([5, 64])
    """

    def __init__(
        self,
        num_inputs: int,
        *sizes: int,
        activation: Activation = "elu",
        residual: bool = False,
        layer_norm: bool = False,
    ) -> None:
        if not sizes:
            raise ValueError(
                f"MLP: num_outputs: expected at least two sizes; got MLP({num_inputs!r}). Write MLP(num_inputs, "
                "*hidden, num_outputs)."
            )
        super().__init__(num_inputs, sizes[-1])
        function, gain = check_activation("MLP", activation)
        self.hidden = tuple(check_size("MLP", f"hidden[{i}]", width) for i, width in enumerate(sizes[:-1]))
        self.activation = activation
        self.residual = residual
        self.layer_norm = layer_norm
        widths = (self.num_inputs, *self.hidden)
        num_skips = sum(width == before for before, width in zip(widths, widths[1:], strict=False)) if residual else 0
        if layer_norm and 1 in self.hidden:
            raise ValueError(
                f"MLP: layer_norm: expected hidden layers of at least 2 values; got {self.hidden}: one value alone is "
                "always standardised to 0. Widen the layer, or leave layer_norm out."
            )
        layers: list[nn.Module] = []
        for layer, (before, width) in enumerate(zip(widths, widths[1:], strict=False)):
            skips = residual and before == width
            share = 1 / num_skips if skips else 1.0
            # The inputs have not passed through the activation: no gain on the first layer.
            made: list[nn.Module] = [affine(before, width, gain=(gain if layer else 1.0) * share)]
            if layer_norm:
                norm = nn.LayerNorm(width)
                nn.init.constant_(norm.weight, share)
                made.append(norm)
            made.append(function())
            layers += [_Skip(*made)] if skips else made
        layers.append(affine(widths[-1], self.num_outputs, gain=LAST_GAIN))
        self.layers = nn.Sequential(*layers)

    @classmethod
    def from_context(
        cls,
        num_inputs: int,
        num_outputs: int,
        *,
        hidden: tuple[int, ...] = (200, 200),
        activation: Activation = "elu",
        residual: bool = False,
        layer_norm: bool = False,
    ) -> Self:
        """The network whose hidden layers are an option.

        Args:
            num_inputs: size of the last input dimension.
            num_outputs: size of the last output dimension.
            hidden: widths of the hidden layers, first to last.
            activation: function between the layers.
            residual: add a hidden layer's input to its output, where their widths agree.
            layer_norm: standardise each hidden layer over its width, before the activation.
        """
        return cls(num_inputs, *hidden, num_outputs, activation=activation, residual=residual, layer_norm=layer_norm)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """The outputs at these inputs."""
        return self.layers(x)

    def __prepare_scriptable__(self) -> nn.Module:
        """The layers alone."""
        return self.layers

    def __repr__(self) -> str:
        """One line, whatever the depth."""
        sizes = ", ".join(map(str, (self.num_inputs, *self.hidden, self.num_outputs)))
        on = "".join(f", {name}=True" for name in ("residual", "layer_norm") if getattr(self, name))
        return f"MLP({sizes}, activation={self.activation!r}{on})"


class _Skip(nn.Sequential):
    """Layers whose input is added to their output."""

    # TorchScript reads this code: no shapes in the annotations, and no call of the parent's.
    def forward(self, input: Tensor) -> Tensor:
        output = input
        for layer in self:
            output = layer(output)
        return input + output
