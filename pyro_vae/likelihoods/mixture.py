"""Real numbers with several modes."""

from __future__ import annotations

import pyro.distributions as dist
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.likelihoods.normal import WideNormal
from pyro_vae.likelihoods.scales import check_scale, near_floor, scale_above
from pyro_vae.networks import check_size

__all__ = ["MixtureOfGaussians"]


class MixtureOfGaussians(Likelihood):
    r"""Real numbers from a mixture of normals for each data value, all of it from the decoder.

    .. math::
        p(x \mid a, m, r) = \prod_p \sum_k w_{pk} \, N(x_p; m_{pk}, s_{pk}^2), \qquad
        w_{pk} = \frac{e^{a_{pk}}}{\sum_j e^{a_{pj}}}, \qquad s_{pk} = \mathrm{floor} + \log(1 + e^{r_{pk}})

    The decoder's outputs are K blocks of a, K blocks of m, and K blocks of r.

    Args:
        num_components: K, normals a data value.
        floor: what a scale cannot fall below, in the units of x; without one a component that settles on one value
            makes the likelihood unbounded.
        mask: whether NaN stands for a value that was not observed and is marginalised; NaN is refused otherwise.

    Raises:
        ValueError: `num_components` is not a positive integer, or `floor` not positive.

    References:
        Bishop, Mixture Density Networks, 1994, https://publications.aston.ac.uk/id/eprint/373

    Example:
        >>> import torch
        >>> MixtureOfGaussians(num_components=5)(torch.zeros(15 * 64)).event_shape
        torch.Size([64])
    """

    base_measure = "lebesgue"
    support = constraints.real
    expected = "finite real numbers"
    advice = "Drop or fill the rows with infinite values."

    def __init__(self, *, num_components: int = 3, floor: float = 1e-2, mask: bool = False) -> None:
        super().__init__(mask=mask)
        self.num_components = check_size("MixtureOfGaussians", "num_components", num_components)
        self.num_params = 3 * self.num_components
        self.floor = check_scale("MixtureOfGaussians", "floor", floor)

    def forward(self, decoder_output: Float[Tensor, "*B R"]) -> Distribution:
        """The distribution of x: batch shape `*B`, event shape (P,)."""
        logits, loc, raw_scale = self.blocks(decoder_output).movedim(-2, -1).chunk(3, dim=-1)
        return dist.MixtureSameFamily(
            dist.Categorical(logits=logits, validate_args=False),
            WideNormal(loc, scale_above(self.floor, raw_scale), validate_args=False),
            validate_args=False,
        ).to_event(1)

    def on_floor(self, decoder_output: Float[Tensor, "*B R"]) -> Bool[Tensor, "*B P"]:
        """Which data values have a component whose scale is less than 1 % above the floor."""
        raw_scale = self.blocks(decoder_output)[..., 2 * self.num_components :, :]
        return near_floor(self.floor, scale_above(self.floor, raw_scale)).any(-2)

    def settings(self) -> list[str]:
        """Its number of components and its floor."""
        return [f"num_components={self.num_components}", f"floor={self.floor:g}"]
