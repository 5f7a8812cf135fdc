"""A variational autoencoder whose decoder is linear, read as the exactly solvable model that it is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from inference.isolation import eval_mode
from inference.noise import seeded
from pyro_vae.linear.model import LinearGaussian
from pyro_vae.vae import VAE

__all__ = ["as_linear_gaussian"]

_NUM_PROBES = 16


@torch.no_grad()
def as_linear_gaussian(vae: VAE) -> LinearGaussian:
    r"""The exact model of a VAE with standard normal z, an affine decoder and Gaussian noise of constant scale.

    .. math::
        b = f(0), \qquad W_{\cdot d} = f(e_d) - b, \qquad f \text{ the mean of } p(x \mid z)

    Its `log_evidence` and `posterior` are then those of the VAE, without an encoder and without error. What the decoder
    is made of does not matter: it is probed, at the origin, at the unit vectors, and at 16 draws, which must lie on the
    affine map.

    Args:
        vae: the VAE; its weights are copied.

    Raises:
        ValueError: the prior, the decoder or the likelihood is another; the message says which.

    Example:
        >>> from pyro_vae.likelihoods import GaussianSharedScale
        >>> from pyro_vae.networks import Linear
        >>> from pyro_vae.priors import StandardNormal
        >>> vae = VAE(prior=StandardNormal(2), likelihood=GaussianSharedScale(), decoder=Linear(2, 5))
        >>> as_linear_gaussian(vae)
        LinearGaussian(5, 2, noise=isotropic)
    """

    def given(z: Tensor) -> Distribution:
        """p(x | z) of x as the model takes it: of standardized rows where the data are standardized."""
        return vae.likelihood(vae.decoder_output(z))

    weights = next(vae.parameters())
    size = vae.num_latents
    with eval_mode(vae):
        with seeded(0):
            draws = 3.0 * torch.randn(_NUM_PROBES, size).to(weights)
        if not _close(vae.prior().log_prob(draws), Normal(torch.zeros_like(draws), 1.0).log_prob(draws).sum(-1)):
            raise ValueError(f"prior: expected a standard normal; got {vae.prior!r}. Take StandardNormal({size}).")
        at_zero, *at_units = _mean(given(torch.cat([torch.zeros_like(draws[:1]), torch.eye(size).to(draws)])))
        weight = torch.stack([unit - at_zero for unit in at_units], -1)
        probed = given(draws)
        affine = draws @ weight.T + at_zero
        if not _close(_mean(probed), affine):
            worst = float((_mean(probed) - affine).abs().max())
            raise ValueError(
                f"decoder: expected an affine map of z; the mean of x is up to {worst:.3g} from one. Take "
                f"Linear({size}, {len(weight)})."
            )
        scale = probed.variance.sqrt()
        normal = Normal(affine, scale[:1].expand_as(affine))
        with seeded(0):
            x = normal.sample()
        if not _close(scale, scale[:1]) or not _close(probed.log_prob(x), normal.log_prob(x).sum(-1)):
            raise ValueError(
                f"likelihood: expected normal noise whose scale does not depend on z; got {vae.likelihood!r}. Take "
                "GaussianSharedScale."
            )
    shared = bool((scale[0] == scale[0, 0]).all())
    scale = scale[0, 0] if shared else scale[0]
    return LinearGaussian(weight, at_zero, scale, standardization=vae.standardization)


def _mean(q: Distribution) -> Tensor:
    return q.mean


def _close(ours: Tensor, theirs: Tensor) -> bool:
    # Sums of products in single precision err in the fifth digit of the largest.
    tolerance = 1e-8 if ours.dtype == torch.float64 else 1e-4
    return bool(((ours - theirs).abs() <= tolerance * (1 + theirs.abs().max())).all())
