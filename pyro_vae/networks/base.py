"""What every network shares: its sizes, its activation, the scale of its first weights."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import ClassVar, Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn

from inference.isolation import running

__all__ = ["Activation", "Network", "check_size"]

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
LAST_GAIN = 0.1


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


def check_sizes(owner: str, name: str, values: Sequence[int]) -> tuple[int, ...]:
    """The sizes as a tuple of `int`.

    Raises:
        ValueError: they are no tuple or list, or one is not a positive integer.
    """
    if not isinstance(values, tuple | list):
        raise ValueError(f"{owner}: {name}: expected a tuple of sizes; got {values!r}. Write ({values!r},) for one.")
    return tuple(check_size(owner, f"{name}[{i}]", value) for i, value in enumerate(values))


def check_activation(owner: str, activation: str) -> tuple[type[nn.Module], float]:
    """The activation's module and the gain of the layer that follows it.

    Raises:
        ValueError: there is no such activation.
    """
    if activation not in _ACTIVATIONS:
        raise ValueError(f"{owner}: activation: expected one of {', '.join(get_args(Activation))}; got {activation!r}.")
    return _ACTIVATIONS[activation]


def affine(num_inputs: int, num_outputs: int, *, gain: float) -> nn.Linear:
    """A linear layer with normal weights of variance gain^2 / num_inputs and biases 0."""
    layer = nn.Linear(num_inputs, num_outputs)
    nn.init.normal_(layer.weight, std=gain * num_inputs**-0.5)
    nn.init.zeros_(layer.bias)
    return layer


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

    def __call__(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """The outputs at these inputs.

        Raises:
            TypeError: `x` is no tensor.
            ValueError: it has rows of another size, or another type than the weights.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"{self!r}: expected a tensor (..., {self.num_inputs}); got {type(x).__name__}.")
        if not x.dim() or x.shape[-1] != self.num_inputs:
            raise ValueError(
                f"{self!r}: expected rows of {self.num_inputs} values; got shape {tuple(x.shape)}. Compare num_inputs "
                "with the width of the data, or with the size of z."
            )
        with running(self.forward, x, name="x"):
            return super().__call__(x)

    def __prepare_scriptable__(self) -> nn.Module:
        """Return the module that `torch.jit.script` compiles in place of this one, with the same weights.

        Raises:
            TypeError: there is none.
        """
        raise TypeError(
            f"torch.jit.script: expected a module that TorchScript can read; {type(self).__name__} is written in "
            "Python that it cannot. Use torch.jit.trace(network, x), torch.export or torch.compile."
        )
