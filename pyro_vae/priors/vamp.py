"""A mixture of the guide's own posteriors."""

from __future__ import annotations

import copy
import math
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from inference.guides import Amortized
from pyro_vae.networks import check_size
from pyro_vae.priors.base import Prior
from pyro_vae.priors.mixtures import mixture

__all__ = ["VampPrior"]

# A pseudo-input started at a datapoint keeps this share of the range from its ends, where a sigmoid is flat.
_MARGIN = 0.01


class VampPrior(Prior):
    r"""A mixture of the guide's posteriors at learned pseudo-inputs.

    .. math::
        p(z) = \frac1C \sum_c q(z \mid u_c), \qquad u_c = \mathrm{max} \cdot \mathrm{sigmoid}(r_c)
        \text{ or } r_c

    Nothing is copied: the guide is the one that the VAE trains, and every step moves both. So the prior is part of the
    model and of the guide at once, which two engines must not overlook:

    * a guide trained on a model that stands still, or a model fitted by variational EM, must not share weights:
      `keep_own_guide()` gives the prior a frozen copy, from then on;
    * variational EM from cold has no encoder to make the prior from: `check_cold_start()` refuses.

    Args:
        guide: the guide of the VAE: `Amortized(family, encoder)` with the family and encoder that the VAE gets.
        num_components: C, number of pseudo-inputs.
        num_values: P, size of a pseudo-input; by default what the encoder announces.
        max_value: data are in [0, max_value], and so are pseudo-inputs; None: any real numbers.

    Attributes:
        guide: that guide, or the prior's own copy.
        raw: r, (C, P). Starts at standard normal draws from torch's global generator; `init_from` starts it at data.

    Raises:
        ValueError: there is no guide, its densities cannot be evaluated, or a size is unknown or not a positive
            integer.

    References:
        Tomczak & Welling (2018), VAE with a VampPrior, https://arxiv.org/abs/1705.07120

    Example:
        >>> from inference.families import MeanField
        >>> guide = Amortized(MeanField(2), nn.Linear(5, 4))
        >>> prior = VampPrior(guide, num_components=10)
        >>> prior
        VampPrior(2, num_components=10, num_values=5, max_value=None)
        >>> prior().log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
    """

    _shown = ("num_components", "num_values", "max_value")

    def __init__(
        self,
        guide: Amortized | None,
        num_components: int = 500,
        *,
        num_values: int | None = None,
        max_value: float | None = None,
    ) -> None:
        if guide is None:
            raise ValueError(
                "VampPrior: guide: expected the VAE's guide, whose encoder makes the prior; got None. Give the VAE an "
                "encoder, or take GaussianMixture, which needs none."
            )
        if not isinstance(guide, Amortized):
            raise ValueError(
                f"VampPrior: guide: expected an Amortized guide; got {type(guide).__name__}. Pass Amortized(family, "
                "encoder), with the family and encoder of the VAE."
            )
        if not guide.family.has_log_prob:
            raise ValueError(
                f"VampPrior: guide: expected a family whose density can be evaluated anywhere; got {guide.family!r}. "
                "Take MeanField, for example."
            )
        super().__init__(guide.family.num_latents)
        announced = _num_inputs(guide.encoder)
        if num_values is None and announced is None:
            raise ValueError(
                f"VampPrior: num_values: expected the size of a datapoint, which {type(guide.encoder).__name__} does "
                "not announce. Pass num_values=P."
            )
        self.num_values = check_size("VampPrior", "num_values", announced if num_values is None else num_values)  # type: ignore[arg-type]
        if announced is not None and announced != self.num_values:
            raise ValueError(
                f"VampPrior: num_values: expected {announced}, the number of inputs of the encoder; got {num_values}. "
                "Leave it out."
            )
        self.num_components = check_size("VampPrior", "num_components", num_components)
        if max_value is not None and not 0 < max_value < math.inf:
            raise ValueError(
                f"VampPrior: max_value: expected a positive number; got {max_value!r}. Leave it out for data that are "
                "not in [0, max_value]."
            )
        self.max_value = max_value
        self.raw = nn.Parameter(torch.randn(self.num_components, self.num_values))
        self.guide = guide
        self._has_own_guide = False

    @classmethod
    def from_context(
        cls,
        guide: Amortized | None = None,
        num_values: int | None = None,
        num_levels: int | None = None,
        level_step: float | None = None,
        *,
        num_components: int = 500,
    ) -> Self:
        """The prior whose pseudo-inputs stay in the data's range, where that is a grid from 0.

        Args:
            guide: the guide of the VAE.
            num_values: P, size of a datapoint.
            num_levels: L, where data are on the grid 0, step, ..., (L - 1) step.
            level_step: that step.
            num_components: number of pseudo-inputs.
        """
        on_grid = num_levels is not None and level_step is not None
        max_value = (num_levels - 1) * level_step if on_grid else None  # type: ignore[operator]
        return cls(guide, num_components, num_values=num_values, max_value=max_value)

    @property
    def pseudo_inputs(self) -> Float[Tensor, "C P"]:
        """The pseudo-inputs u, in units of the data."""
        return self.raw if self.max_value is None else self.max_value * self.raw.sigmoid()

    def init_from(self, x: Float[Tensor, "C P"]) -> None:
        """Move the pseudo-inputs to these datapoints, as a start for training.

        Args:
            x: (C, P) datapoints; where `max_value` is given, they keep a hundredth of the range from its ends.

        Raises:
            ValueError: another shape, or values that are not finite or out of range.
        """
        high = math.inf if self.max_value is None else self.max_value
        if tuple(x.shape) != tuple(self.raw.shape) or not bool(x.isfinite().all()):
            raise ValueError(
                f"x: expected {tuple(self.raw.shape)} finite numbers, one datapoint a pseudo-input; got shape "
                f"{tuple(x.shape)}. Choose {self.num_components} fully observed rows."
            )
        if self.max_value is not None and not bool(((x >= 0) & (x <= high)).all()):
            raise ValueError(
                f"x: expected values from 0 to max_value = {high:g}; got {float(x.min()):g} to {float(x.max()):g}. "
                "Scale x as the training data are."
            )
        with torch.no_grad():
            x = x.to(self.raw)
            self.raw.copy_(x if self.max_value is None else (x / self.max_value).clamp(_MARGIN, 1 - _MARGIN).logit())

    def forward(self) -> Distribution:
        """The prior: batch shape (), event shape (D,)."""
        log_weights = self.raw.new_full((self.num_components,), -math.log(self.num_components))
        return mixture(log_weights, self.guide.family, self.guide.params(self.pseudo_inputs))

    def keep_own_guide(self) -> None:
        """From now on, make the prior from a frozen copy of the guide: what moves the guide no longer moves the prior.

        The copy is in the state dict, and so is that there is one: loaded into a prior that shares its guide, such a
        state dict makes the copy first, and leaves the shared guide alone. The pseudo-inputs are still learned.
        """
        if not self._has_own_guide:
            self.guide = _frozen_copy(self.guide)
            self._has_own_guide = True

    def check_cold_start(self) -> None:
        """Refuse to be fitted without the guide that the prior is made from.

        Raises:
            ValueError: the prior shares its guide; one with a guide of its own can be fitted.
        """
        if not self._has_own_guide:
            raise ValueError(
                "VampPrior: expected an encoder that is trained with it; variational EM from cold has none, and cannot "
                "train the prior. Take GaussianMixture, or start from a fitted guide: init=guide."
            )

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 (torch's signature)
        """As torch's; the prior's own copy of the guide stays in eval mode."""
        super().train(mode)
        if self._has_own_guide:
            self.guide.eval()
        return self

    def get_extra_state(self) -> Tensor:
        """Whether the prior has a guide of its own, for the state dict."""
        return torch.tensor(self._has_own_guide)

    def set_extra_state(self, state: Tensor) -> None:
        """Called when a state dict is loaded, before the guide's weights are.

        Raises:
            ValueError: the prior has a guide of its own, and the saved one shared the VAE's.
        """
        if bool(state):
            self.keep_own_guide()
        elif self._has_own_guide:
            raise ValueError(
                "VampPrior: the saved prior shares the VAE's guide, this one has its own copy. Build the VAE anew, and "
                "load into that."
            )


def _frozen_copy(guide: Amortized) -> Amortized:
    """A copy in eval mode whose weights are buffers: no engine finds anything to train in it."""
    copied = copy.deepcopy(guide).eval()
    for module in copied.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                del module._parameters[name]
                module.register_buffer(name, weight.detach())
    return copied


def _num_inputs(encoder: nn.Module) -> int | None:
    """The number of inputs that a network says it has."""
    while isinstance(encoder, nn.Sequential) and len(encoder):
        encoder = encoder[0]
    return getattr(encoder, "num_inputs", encoder.in_features if isinstance(encoder, nn.Linear) else None)
