"""The exactly solvable case: probabilistic principal component analysis and factor analysis."""

from __future__ import annotations

from contextlib import nullcontext
from math import log, pi
from typing import Self

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from inference.guides import unique_name
from inference.noise import resolve_seed, seeded
from pyro_vae.networks import check_size

__all__ = ["LinearGaussian"]


class LinearGaussian(nn.Module):
    r"""A linear decoder with Gaussian noise, whose evidence and posterior are known.

    .. math::
        z \sim N(0, I), \quad x \mid z \sim N(W z + b, S^2), \quad S = \mathrm{diag}(s); \qquad
        \Lambda = I + W^\top S^{-2} W

    Everything is computed from the D x D matrix :math:`\Lambda`, in the dtype of the parameters. The weight, the bias
    and the log scale are parameters, so that the model can also be trained.

    Args:
        weight: W, (P, D).
        bias: b, (P,).
        scale: s, noise standard deviation in the units of x: one number (probabilistic PCA) or (P,) (factor analysis).

    Raises:
        ValueError: shapes that do not fit, or a scale that is not positive.

    References:
        Tipping & Bishop, Probabilistic Principal Component Analysis, 1999.
        Rubin & Thayer, EM algorithms for ML factor analysis, 1982.

    Example:
        >>> model = LinearGaussian(torch.ones(3, 1), torch.zeros(3), 1.0)
        >>> model.posterior(torch.ones(1, 3)).mean
        tensor([[0.7500]], grad_fn=<...>)
    """

    def __init__(
        self, weight: Float[Tensor, "P D"], bias: Float[Tensor, " P"], scale: float | Float[Tensor, "*P"]
    ) -> None:
        super().__init__()
        if weight.dim() != 2 or min(weight.shape) < 1:
            raise ValueError(f"weight: expected shape (P, D), data values x latent size; got {tuple(weight.shape)}.")
        num_values = len(weight)
        if tuple(bias.shape) != (num_values,):
            raise ValueError(
                f"bias: expected shape ({num_values},), as many as the rows of weight; got {tuple(bias.shape)}."
            )
        scale = torch.as_tensor(scale, dtype=weight.dtype, device=weight.device).detach()
        if tuple(scale.shape) not in ((), (num_values,)):
            raise ValueError(f"scale: expected one number or shape ({num_values},); got shape {tuple(scale.shape)}.")
        if not bool(((scale > 0) & scale.isfinite()).all()):
            raise ValueError(
                f"scale: expected positive numbers; got {scale.min().item():g}. It is a standard deviation, in the "
                "units of x."
            )
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(bias.detach().clone().to(weight))
        self.log_scale = nn.Parameter(scale.log())

    @property
    def scale(self) -> Float[Tensor, "*P"]:
        """Noise standard deviation: () or (P,)."""
        return self.log_scale.exp()

    @property
    def num_latents(self) -> int:
        """D."""
        return self.weight.shape[1]

    @property
    def precision(self) -> Float[Tensor, "D D"]:
        """Posterior precision, the same for every x."""
        scaled = self.weight / self.scale.expand(len(self.weight)).unsqueeze(-1)
        return torch.eye(self.num_latents).to(scaled) + scaled.T @ scaled

    def model(self, x: Float[Tensor, "B P"]) -> Float[Tensor, "*S B P"]:
        """The generative model as a Pyro function: samples "z" and observes "x" in the plate "data".

        Args:
            x: data, (B, P).

        Raises:
            ValueError: `x` has another shape.
        """
        self._check(x)
        pyro.module(unique_name(self), self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.weight[0]), 1.0).to_event(1))
            return pyro.sample("x", self.decode(z), obs=x)

    def decode(self, z: Float[Tensor, "*B D"]) -> dist.Independent:
        """p(x | z): batch shape `*B`, event shape (P,).

        Args:
            z: latent vectors, (*B, D).
        """
        return dist.Normal(z @ self.weight.T + self.bias, self.scale).to_event(1)

    def log_evidence(self, x: Float[Tensor, "N P"]) -> Float[Tensor, " N"]:
        r"""The exact log p(x) of each datapoint, in nats.

        With m the posterior mean,

        .. math::
            -2 \log p(x) = \| S^{-1} (x - b - W m) \|^2 + \| m \|^2 + \log \det \Lambda + \sum_p \log 2 \pi s_p^2

        which is a sum of squares, where Woodbury's difference would cancel at small noise.

        Args:
            x: data, (N, P).

        Raises:
            ValueError: `x` has another shape.
        """
        mean, tril = self._solve(x)
        residual = (x - self.bias - mean @ self.weight.T) / self.scale
        num_values = len(self.weight)
        log_det = 2 * tril.diagonal().log().sum() + 2 * self.log_scale.expand(num_values).sum()
        return -0.5 * (residual.square().sum(-1) + mean.square().sum(-1) + log_det + num_values * log(2 * pi))

    def posterior(self, x: Float[Tensor, "N P"]) -> dist.MultivariateNormal:
        r"""The exact posterior.

        .. math::
            p(z \mid x) = N(z; \Lambda^{-1} W^\top S^{-2} (x - b), \Lambda^{-1})

        Args:
            x: data, (N, P).

        Returns:
            Distribution with batch shape (N,) and event shape (D,).

        Raises:
            ValueError: `x` has another shape.
        """
        mean, tril = self._solve(x)
        return dist.MultivariateNormal(mean, covariance_matrix=torch.cholesky_inverse(tril))

    def generate(self, num_draws: int, *, seed: int | None = None) -> Float[Tensor, "n P"]:
        """Draws of x.

        Args:
            num_draws: n.
            seed: seed of these draws alone; torch's global generators are left as they were. None: draw from the global
                generators.

        Returns:
            Draws, (n, P).

        Raises:
            ValueError: `num_draws` is not a positive integer, or `seed` not a non-negative one.
        """
        check_size("generate", "num_draws", num_draws)
        with nullcontext() if seed is None else seeded(resolve_seed(seed)), torch.no_grad():
            return self.decode(torch.randn(num_draws, self.num_latents).to(self.weight)).sample()

    @classmethod
    def fit(cls, x: Float[Tensor, "N P"], num_latents: int) -> Self:
        r"""Maximum likelihood with one noise scale, in closed form.

        With the eigenvalues :math:`\lambda_1 \ge \ldots \ge \lambda_P` of the sample covariance, L the diagonal matrix
        of the first D and U their eigenvectors,

        .. math::
            b = \bar x, \qquad s^2 = \frac{1}{P - D} \sum_{p > D} \lambda_p, \qquad W = U (L - s^2 I)^{1/2}

        W is unique up to a rotation: compare the evidence of two fits, never their weights.

        Args:
            x: data, (N, P).
            num_latents: D, smaller than P.

        Raises:
            ValueError: D is not below P, there are fewer than two rows, or D dimensions hold all the variance (the
                likelihood is then unbounded).

        References:
            Tipping & Bishop, Probabilistic Principal Component Analysis, 1999.
        """
        covariance, bias, size = _moments(x, num_latents)
        values, vectors = torch.linalg.eigh(covariance)
        # The order of eigh is ascending.
        noise = values[:-size].mean()
        if not noise > 1e-12 * values[-1]:
            raise ValueError(
                f"num_latents: expected variance in more than {size} dimensions of x; got none, so the noise would be "
                "0. Take fewer latent dimensions."
            )
        weight = vectors[:, -size:].flip(-1) * (values[-size:].flip(-1) - noise).clamp(min=0).sqrt()
        # eigh leaves each sign to chance.
        weight = weight * weight.gather(0, weight.abs().argmax(0, keepdim=True)).sign()
        return cls(weight.to(x), bias.to(x), noise.sqrt().to(x))

    @classmethod
    def fit_factor_analysis(
        cls,
        x: Float[Tensor, "N P"],
        num_latents: int,
        *,
        floor: float = 1e-2,
        tol: float = 1e-9,
        max_steps: int = 10_000,
    ) -> Self:
        """Maximum likelihood with a noise scale for each data value, by EM from the solution of `fit`.

        Args:
            x: data, (N, P).
            num_latents: D, smaller than P.
            floor: what a noise scale cannot fall below, in the units of x: a constant data value makes the likelihood
                unbounded.
            tol: stop when a step raises the mean evidence by less, in nats per datapoint.
            max_steps: stop after so many steps.

        Raises:
            ValueError: as `fit`; or a non-positive `floor`, `tol` or `max_steps`.

        References:
            Rubin & Thayer, EM algorithms for ML factor analysis, 1982.
        """
        for name, value in (("floor", floor), ("tol", tol)):
            if not value > 0:
                raise ValueError(f"{name}: expected a positive number; got {value!r}.")
        check_size("fit_factor_analysis", "max_steps", max_steps)
        covariance, bias, size = _moments(x, num_latents)
        start = cls.fit(x.double(), size)
        weight, noise = start.weight.detach(), start.scale.detach().square().expand(len(bias)).clamp(min=floor**2)
        identity = torch.eye(size).to(covariance)
        before = -torch.inf
        for _ in range(max_steps):
            scaled = weight / noise.unsqueeze(-1)
            tril = torch.linalg.cholesky(identity + weight.T @ scaled)
            gain = torch.cholesky_solve(scaled.T, tril)
            cross = covariance @ gain.T
            # The evidence at the parameters before this step, from the moments alone.
            quadratic = (covariance.diagonal() / noise).sum() - (scaled * cross).sum()
            evidence = -0.5 * float(
                quadratic + 2 * tril.diagonal().log().sum() + noise.log().sum() + len(bias) * log(2 * pi)
            )
            if evidence - before < tol:
                break
            before = evidence
            second_moment = torch.cholesky_inverse(tril) + gain @ cross
            weight = torch.linalg.solve(second_moment, cross, left=False)
            noise = (covariance.diagonal() - (weight * cross).sum(-1)).clamp(min=floor**2)
        return cls(weight.to(x), bias.to(x), noise.sqrt().to(x))

    def extra_repr(self) -> str:
        """Its sizes and kind of noise."""
        num_values, num_latents = self.weight.shape
        return f"{num_values}, {num_latents}, noise={'diagonal' if self.log_scale.dim() else 'isotropic'}"

    def _solve(self, x: Tensor) -> tuple[Float[Tensor, "N D"], Float[Tensor, "D D"]]:
        """Posterior means, and the Cholesky factor of the posterior precision."""
        self._check(x)
        tril = torch.linalg.cholesky(self.precision)
        projected = ((x - self.bias) / self.scale.square()) @ self.weight
        return torch.cholesky_solve(projected.T, tril).T, tril

    def _check(self, x: Tensor) -> None:
        if x.dim() != 2 or x.shape[1] != len(self.weight):
            raise ValueError(f"x: expected shape (N, {len(self.weight)}), one row a datapoint; got {tuple(x.shape)}.")


def _moments(x: Tensor, num_latents: int) -> tuple[Tensor, Tensor, int]:
    """Sample covariance (P, P) and mean (P,) in double precision, and the checked latent size."""
    size = check_size("LinearGaussian", "num_latents", num_latents)
    if x.dim() != 2 or len(x) < 2:
        raise ValueError(f"x: expected shape (N, P) with at least 2 rows; got {tuple(x.shape)}.")
    if not bool(x.isfinite().all()):
        raise ValueError("x: expected finite numbers; got NaN or infinity. Drop or fill those rows.")
    if size >= x.shape[1]:
        raise ValueError(f"num_latents: expected fewer than the {x.shape[1]} data values; got {size}.")
    rows = x.double()
    bias = rows.mean(0)
    centred = rows - bias
    return centred.T @ centred / len(rows), bias, size
