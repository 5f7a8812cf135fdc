"""Small networks inside a flow, with weights that are shared or a datapoint's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from inference.families.flow import Bijection, FlowFamily
from inference.families.noise import times
from inference.families.raw import confine, directions

# Own weights are confined to [-WEIGHT, WEIGHT], an entry of a context to [-CONTEXT, CONTEXT], and the log scale of a
# layer to [-LOG_STEP, LOG_STEP]: no real row can then overflow a draw.
WEIGHT = 30.0
CONTEXT = 10.0
LOG_STEP = 3.0

# The shift and the log scale (*S, *B, O), given the inputs (*S, *B, I).
Net = Callable[[Tensor], tuple[Tensor, Tensor]]


class Conditioner(nn.Module):
    """A network with tanh units from I inputs to O shifts and O log scales.

    Args:
        masks: one (outputs, inputs) matrix of zeros and ones a layer; the last has 2 O outputs.
        num_context: numbers that all units of the first layer see beside their inputs.
        shared: whether the weights are parameters of the module; else each datapoint brings its own.
    """

    def __init__(self, masks: Sequence[Float[Tensor, "O I"]], *, num_context: int, shared: bool) -> None:
        super().__init__()
        self.shared = shared
        self._shapes = [tuple(mask.shape) for mask in masks]
        for number, mask in enumerate(masks):
            self.register_buffer(f"_mask_{number}", mask.to(torch.get_default_dtype()), persistent=False)
            # Of own weights only those that do something are in a row.
            self.register_buffer(f"_live_{number}", mask.flatten().nonzero().squeeze(-1), persistent=False)
        if shared:
            layers = [nn.Linear(inputs, outputs) for outputs, inputs in self._shapes]
            self.layers = nn.ModuleList(layers)
            self.context = nn.Linear(num_context, self._shapes[0][0], bias=False)

    def start(self) -> Float[Tensor, " W"]:
        """Own weights at which all shifts and log scales are 0, and no symmetry keeps a gradient from growing."""
        parts = []
        last = len(self._shapes) - 1
        for number, (outputs, inputs) in enumerate(self._shapes):
            live = len(self._live(number))
            size = 0.0 if number == last else 1.0
            weight = directions(live, seed=1) / math.sqrt(max(inputs, 1))
            parts += [size * weight, size * directions(outputs, seed=2) / 2]
        return torch.cat(parts)

    def net(self, rows: Float[Tensor, "*B C"], gate: Float[Tensor, "*B 1"] | None = None) -> Net:
        """The network of each datapoint.

        Args:
            rows: the context of shared weights, or own weights.
            gate: (*B, 1) in [-1, 1], what shift and log scale are multiplied by.
        """
        layers = self._shared_layers(rows) if self.shared else self._own_layers(rows)

        def net(x: Tensor) -> tuple[Tensor, Tensor]:
            for number, (weight, bias) in enumerate(layers):
                x = torch.tanh(x) if number else x
                x = (nn.functional.linear(x, weight) if self.shared else times(weight, x)) + bias
            shift, raw = x.chunk(2, dim=-1)
            log_scale = confine(raw, LOG_STEP)
            return (shift, log_scale) if gate is None else (gate * shift, gate * log_scale)

        return net

    def _shared_layers(self, context: Tensor) -> list[tuple[Tensor, Tensor]]:
        # Copies: a distribution stays what it is when the weights change under it.
        layers = [(layer.weight * self._mask(n), layer.bias.clone()) for n, layer in enumerate(self._linear())]
        weight, bias = layers[0]
        return [(weight, bias + self.context(confine(context, CONTEXT))), *layers[1:]]

    def _linear(self) -> list[nn.Linear]:
        return list(self.layers)  # type: ignore[arg-type]

    def _own_layers(self, row: Tensor) -> list[tuple[Tensor, Tensor]]:
        sizes = [size for n, (outputs, _) in enumerate(self._shapes) for size in (len(self._live(n)), outputs)]
        parts = confine(row, WEIGHT).split(sizes, dim=-1)
        layers = []
        for number, (outputs, inputs) in enumerate(self._shapes):
            weight = row.new_zeros(*row.shape[:-1], outputs * inputs)
            weight[..., self._live(number)] = parts[2 * number]
            layers.append((weight.unflatten(-1, (outputs, inputs)), parts[2 * number + 1]))
        return layers

    def _mask(self, number: int) -> Tensor:
        return self.get_buffer(f"_mask_{number}")

    def _live(self, number: int) -> Tensor:
        return self.get_buffer(f"_live_{number}")


class ConditionedFlow(FlowFamily):
    """A flow of affine layers, each with shift and log scale from a `Conditioner`.

    Args:
        num_latents: D, size of the latent vector.
        masks: of the conditioner of each layer.
        hidden: widths of the hidden layers.
        context: size of the context of shared weights.
        shared: whether the weights are shared by all datapoints.
    """

    def __init__(
        self,
        num_latents: int,
        masks: Sequence[Sequence[Tensor]],
        *,
        hidden: tuple[int, ...],
        context: int,
        shared: bool,
    ) -> None:
        conditioners = [Conditioner(layer, num_context=context, shared=shared) for layer in masks]
        start = torch.zeros(context + len(masks)) if shared else torch.cat([c.start() for c in conditioners])
        super().__init__(num_latents, start)
        self.conditioners = nn.ModuleList(conditioners)
        self.num_layers = len(masks)
        self.hidden = hidden
        self.context = context
        self.shared = shared
        self.remember_initial_weights()

    def _bijections(self, rest: Tensor) -> list[Bijection]:
        conditioners: list[Conditioner] = list(self.conditioners)  # type: ignore[arg-type]
        if self.shared:
            context, gates = rest.split([self.context, self.num_layers], dim=-1)
            gates = torch.tanh(gates)
            nets = [c.net(context, gates[..., n : n + 1]) for n, c in enumerate(conditioners)]
        else:
            sizes = [len(c.start()) for c in conditioners]
            nets = [c.net(row) for c, row in zip(conditioners, rest.split(sizes, dim=-1), strict=True)]
        return [self._layer(number, net) for number, net in enumerate(nets)]

    def _layer(self, number: int, net: Net) -> Bijection:
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Its size and options."""
        context = f"context={self.context}" if self.shared else "shared=False"
        return f"{self.num_latents}, num_layers={self.num_layers}, hidden={self.hidden}, {context}"


def check_hidden(name: str, hidden: tuple[int, ...] | None, *, shared: bool) -> tuple[int, ...]:
    """The widths of the hidden layers.

    Raises:
        ValueError: they are not positive integers, or there are none.
    """
    if hidden is None:
        return (64,) if shared else (8,)
    if not isinstance(hidden, tuple | list) or not hidden or not all(type(w) is int and w > 0 for w in hidden):
        raise ValueError(
            f"{name}: hidden: expected a tuple of one or more positive integers; got {hidden!r}. Pass, for example, "
            "hidden=(64,)."
        )
    return tuple(hidden)
