"""Plain networks from (B, num_inputs) to (B, num_outputs).

Any `nn.Module` of those shapes can be an encoder or a decoder; these are the ones that the command line offers.
"""

from __future__ import annotations

from operator import index
from typing import ClassVar, Literal, Self, get_args

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["MLP", "Activation", "Linear", "Network"]

Activation = Literal["elu", "relu", "tanh", "softplus", "silu", "gelu"]

# Next to each activation f, the gain 1 / sqrt(E[f(u)^2]), u standard normal: weights of variance gain^2 / fan_in then
# keep the mean square of the hidden layers at 1, at any depth.
_ACTIVATIONS: dict[str, tuple[type[nn.Module], float]] = {
    "elu": (nn.ELU, 1.2452),
    "relu": (nn.ReLU, 1.4142),
    "tanh": (nn.Tanh, 1.5925),
    "softplus": (nn.Softplus, 1.0419),
    "silu": (nn.SiLU, 1.6765),
    "gelu": (nn.GELU, 1.5335),
}

# The last layer starts at a tenth of that. Its outputs are logits, means and log scales: at full size they start so far
# apart, above all where x is not standardised, that training spends its first epochs on undoing it.
_LAST_GAIN = 0.1


def check_size(owner: str, name: str, value: int) -> int:
    """The size as an `int`.

    Raises:
        ValueError: it is not a positive integer.
    """
    try:
        size = index(value)
    except TypeError:
        size = 0
    if isinstance(value, bool) or size < 1:
        raise ValueError(f"{owner}: {name}: expected a positive integer; got {value!r}. Pass a size of at least 1.")
    return size


class Network(nn.Module):
    """A map from (B, num_inputs) to (B, num_outputs) that announces its sizes.

    Args:
        num_inputs: size of the last input dimension.
        num_outputs: size of the last output dimension.

    Attributes:
        roles: which parts of a VAE it can be, "encoder", "decoder" or both.

    Raises:
        ValueError: a size is not a positive integer.
    """

    roles: ClassVar[frozenset[str]] = frozenset({"encoder", "decoder"})

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.num_inputs = check_size(type(self).__name__, "num_inputs", num_inputs)
        self.num_outputs = check_size(type(self).__name__, "num_outputs", num_outputs)


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
        self.affine = _affine(self.num_inputs, self.num_outputs, gain=_LAST_GAIN)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """The outputs at these inputs."""
        return self.affine(x)

    def __repr__(self) -> str:
        """One line."""
        return f"Linear({self.num_inputs}, {self.num_outputs})"


class MLP(Network):
    r"""Fully connected layers with an activation between them; the last layer is linear.

    .. math::
        f(x) = A_L \, s(A_{L-1} \cdots s(A_1 x)), \qquad A_l \text{ affine}, \; s \text{ the activation}

    Weights start normal, with the variance that keeps the mean square of the hidden layers at that of x, and of the
    outputs at about a hundredth; biases start at 0.

    Args:
        num_inputs: size of the last input dimension.
        *sizes: widths of the hidden layers, if any, and then the number of outputs: `MLP(8, 128, 128, 64)`.
        activation: function between the layers: "elu", "relu", "tanh", "softplus", "silu" or "gelu".

    Raises:
        ValueError: a size is not a positive integer, no number of outputs is given, or the activation is unknown.

    Example:
        >>> import torch
        >>> decoder = MLP(8, 128, 128, 64)
        >>> decoder(torch.zeros(5, 8)).shape
        torch.Size([5, 64])
    """

    def __init__(self, num_inputs: int, *sizes: int, activation: Activation = "elu") -> None:
        if not sizes:
            raise ValueError(
                f"MLP: num_outputs: expected at least two sizes; got MLP({num_inputs!r}). Write MLP(num_inputs, "
                "*hidden, num_outputs)."
            )
        super().__init__(num_inputs, sizes[-1])
        if activation not in _ACTIVATIONS:
            raise ValueError(f"MLP: activation: expected one of {', '.join(get_args(Activation))}; got {activation!r}.")
        self.hidden = tuple(check_size("MLP", f"hidden[{i}]", width) for i, width in enumerate(sizes[:-1]))
        self.activation = activation
        function, gain = _ACTIVATIONS[activation]
        layers: list[nn.Module] = []
        width = self.num_inputs
        for layer, next_width in enumerate(self.hidden):
            # The inputs have not passed through the activation: no gain on the first layer.
            layers += [_affine(width, next_width, gain=gain if layer else 1.0), function()]
            width = next_width
        layers.append(_affine(width, self.num_outputs, gain=_LAST_GAIN))
        self.layers = nn.Sequential(*layers)

    @classmethod
    def from_context(
        cls, num_inputs: int, num_outputs: int, *, hidden: tuple[int, ...] = (200, 200), activation: Activation = "elu"
    ) -> Self:
        """The network whose hidden layers are an option.

        Args:
            num_inputs: size of the last input dimension.
            num_outputs: size of the last output dimension.
            hidden: widths of the hidden layers, first to last.
            activation: function between the layers.
        """
        return cls(num_inputs, *hidden, num_outputs, activation=activation)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """The outputs at these inputs."""
        return self.layers(x)

    def __repr__(self) -> str:
        """One line, whatever the depth."""
        sizes = ", ".join(map(str, (self.num_inputs, *self.hidden, self.num_outputs)))
        return f"MLP({sizes}, activation={self.activation!r})"


def _affine(num_inputs: int, num_outputs: int, *, gain: float) -> nn.Linear:
    layer = nn.Linear(num_inputs, num_outputs)
    nn.init.normal_(layer.weight, std=gain * num_inputs**-0.5)
    nn.init.zeros_(layer.bias)
    return layer
