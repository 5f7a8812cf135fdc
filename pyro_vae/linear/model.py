"""A linear decoder with Gaussian noise: evidence, posterior and maximum likelihood, all exact."""

from __future__ import annotations

import time
from contextlib import nullcontext
from math import log, pi
from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import constraints

from inference.batches import require_numbers
from inference.counts import is_number, require_kind
from inference.guides import unique_name
from inference.isolation import running
from inference.noise import like, resolve_seed, seeded
from inference.results import Fit
from pyro_vae.data.standardization import Standardization
from pyro_vae.likelihoods.units import InDataUnits, OverStandardized, Units
from pyro_vae.linear.em import (
    Noise,
    Params,
    check_data,
    check_em,
    complete_step,
    maximise,
    missing_step,
    moments,
    start,
)
from pyro_vae.networks import check_size

__all__ = ["LinearGaussian"]

# A scale counts as sitting on its floor when it is less than 1 % above it.
_ON_FLOOR = 1.01


class LinearGaussian(nn.Module):
    r"""A linear decoder with Gaussian noise, whose evidence and posterior are known.

    .. math::
        z \sim N(0, I), \quad x \mid z \sim N(W z + b, S^2), \quad S = \mathrm{diag}(s); \qquad
        \Lambda = I + W^\top S^{-2} W

    Everything is computed from the D x D matrix :math:`\Lambda`, in double precision, and comes in the dtype of the
    parameters and the data. The weight, the bias and the log scale are parameters, so that the model can also be
    trained.

    NaN in x means not observed, in every method that reads x but the two closed-form starts `fit` and
    `fit_factor_analysis`: the marginal of a Gaussian is its observed rows, so nothing is approximated. :math:`\Lambda`
    is then that of the observed rows of W, one for each datapoint.

    Args:
        weight: W, (P, D).
        bias: b, (P,).
        scale: s, noise standard deviation in the units of x: one number (probabilistic PCA) or (P,) (factor analysis).
        standardization: `dataset.standardization` of data that were loaded with `standardize=True`. x is then a
            standardized row wherever the model takes one, and weight, bias and scale are in its units; densities,
            `decode`, `reconstruct` and `generate` are in the data's own. None: x is in the data's own units.

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

    units: Units | None

    def __init__(
        self,
        weight: Float[Tensor, "P D"],
        bias: Float[Tensor, " P"],
        scale: float | Float[Tensor, "*P"],
        *,
        standardization: Standardization | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("weight", weight), ("bias", bias)):
            require_kind(name, value, Tensor, hint="Try torch.as_tensor.")
            if not bool(value.isfinite().all()):
                raise ValueError(f"{name}: expected finite numbers; got NaN or infinity.")
        if not weight.is_floating_point():
            raise ValueError(f"weight: expected floating-point numbers; got {weight.dtype}. Pass weight.float().")
        if not is_number(scale):
            require_kind("scale", scale, Tensor)
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
        if standardization is not None:
            require_kind("standardization", standardization, Standardization, hint="Pass dataset.standardization.")
            if standardization.num_values != num_values:
                raise ValueError(
                    f"standardization: expected {num_values} values, as many as the rows of weight; got "
                    f"{standardization.num_values}. Pass that of the data."
                )
        self.units = None if standardization is None else Units(standardization).to(weight.device)

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
        """Posterior precision, the same for every x that is fully observed."""
        return self._precision().to(self.weight.dtype)

    def model(self, x: Float[Tensor, "B P"]) -> Float[Tensor, "*S B P"]:
        """The generative model as a Pyro function: samples "z" and observes "x" in the plate "data".

        Args:
            x: data, (B, P). NaN is not observed: the log density of the site is that of the other values.

        Raises:
            ValueError: `x` has another shape.
        """
        self._check(x)
        pyro.module(unique_name(self), self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.weight[0]), 1.0).to_event(1))
            p: Any = self._rows_given(z)
            if self.units is not None:
                p = OverStandardized(p, self.units, mask=True)
            return pyro.sample("x", p, obs=x)

    def decode(self, z: Float[Tensor, "*B D"]) -> dist.Independent | InDataUnits:
        """p(x | z): batch shape `*B`, event shape (P,). Its log density leaves out values that are NaN.

        Args:
            z: latent vectors, (*B, D).
        """
        p = self._rows_given(z)
        return p if self.units is None else InDataUnits(p, self.units, mask=True)

    def _rows_given(self, z: Float[Tensor, "*B D"]) -> dist.Independent:
        return _ObservedNormal(z @ self.weight.T + self.bias, self.scale).to_event(1)

    def encode(self, x: Float[Tensor, "N P"]) -> dist.MultivariateNormal:
        """The exact posterior, under the name it has in `VAE`: `posterior(x)`.

        Args:
            x: data, (N, P); NaN is not observed.
        """
        return self.posterior(x)

    def reconstruct(self, x: Float[Tensor, "N P"]) -> Float[Tensor, "N P"]:
        """The mean of x given the posterior mean of z, without gradients: W E[z | x] + b.

        At a missing value this is its best guess, E[x_p | the observed values].

        Args:
            x: data, (N, P); NaN is not observed.

        Returns:
            Means, (N, P), in the data's own units, none missing.

        Raises:
            ValueError: `x` has another shape.
        """
        with torch.no_grad():
            mean = self._in_dtype(x, self._solve(x)[0] @ self.weight.double().T + self.bias.double())
            return mean if self.units is None else self.units.standardization.invert(mean)

    def log_evidence(self, x: Float[Tensor, "N P"]) -> Float[Tensor, " N"]:
        r"""The exact log p(x) of each datapoint, in nats.

        With m the posterior mean,

        .. math::
            -2 \log p(x) = \| S^{-1} (x - b - W m) \|^2 + \| m \|^2 + \log \det \Lambda + \sum_p \log 2 \pi s_p^2

        which is a sum of squares, where Woodbury's difference would cancel at small noise. Of a row with missing values
        it is the log density of the observed ones, 0 where there are none. It is that of x in the data's own units: of
        standardized rows, the sum of log scales of the standardization is subtracted.

        Args:
            x: data, (N, P); NaN is not observed.

        Raises:
            ValueError: `x` has another shape.
        """
        mean, tril = self._solve(x)
        left = self._residual(x) - (mean @ self.weight.double().T).masked_fill(x.isnan(), 0.0)
        residual = left / self.scale.double()
        # The scale is the number that `decode` has, so that both are the same density.
        log_noise = (2 * self.scale.double().log() + log(2 * pi)).expand(len(self.weight))
        log_det = 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) + (~x.isnan()).to(mean) @ log_noise
        value = -0.5 * (residual.square().sum(-1) + mean.square().sum(-1) + log_det)
        if self.units is not None:
            value = value - self.units.log_jacobian(x, mask=True)
        return self._in_dtype(x, value)

    def posterior(self, x: Float[Tensor, "N P"]) -> dist.MultivariateNormal:
        r"""The exact posterior.

        .. math::
            p(z \mid x) = N(z; \Lambda^{-1} W^\top S^{-2} (x - b), \Lambda^{-1})

        Args:
            x: data, (N, P); NaN is not observed. With missing values each row has a covariance of its own, (N, D, D).

        Returns:
            Distribution with batch shape (N,) and event shape (D,).

        Raises:
            ValueError: `x` has another shape.
        """
        mean, tril = self._solve(x)
        return dist.MultivariateNormal(
            self._in_dtype(x, mean), covariance_matrix=self._in_dtype(x, torch.cholesky_inverse(tril))
        )

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
    def fit(cls, x: Float[Tensor, "N P"], num_latents: int, *, standardization: Standardization | None = None) -> Self:
        r"""Maximum likelihood with one noise scale, in closed form.

        With the eigenvalues :math:`\lambda_1 \ge \ldots \ge \lambda_P` of the sample covariance, L the diagonal matrix
        of the first D and U their eigenvectors,

        .. math::
            b = \bar x, \qquad s^2 = \frac{1}{P - D} \sum_{p > D} \lambda_p, \qquad W = U (L - s^2 I)^{1/2}

        W is unique up to a rotation: compare the evidence of two fits, never their weights.

        Args:
            x: data, (N, P).
            num_latents: D, smaller than P.
            standardization: `dataset.standardization` where x are standardized rows; the evidence is then that of the
                data in their own units.

        Raises:
            ValueError: D is not below P, there are fewer than two rows, or D dimensions hold all the variance (the
                likelihood is then unbounded).

        References:
            Tipping & Bishop, Probabilistic Principal Component Analysis, 1999.
        """
        covariance, bias, size = moments(x, num_latents)
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
        like_x = like(x)
        return cls(weight.to(like_x), bias.to(like_x), noise.sqrt().to(like_x), standardization=standardization)

    @classmethod
    def fit_factor_analysis(
        cls,
        x: Float[Tensor, "N P"],
        num_latents: int,
        *,
        floor: float = 1e-2,
        tol: float = 1e-9,
        max_steps: int = 10_000,
        standardization: Standardization | None = None,
    ) -> Self:
        """Maximum likelihood with a noise scale for each data value, by EM from the solution of `fit`.

        Args:
            x: data, (N, P).
            num_latents: D, smaller than P.
            floor: what a noise scale cannot fall below, in the units of x: a constant data value makes the likelihood
                unbounded.
            tol: stop when a step raises the mean evidence by less, in nats per datapoint.
            max_steps: stop after so many steps.
            standardization: `dataset.standardization` where x are standardized rows; the evidence is then that of the
                data in their own units.

        Raises:
            ValueError: as `fit`; or a non-positive `floor`, `tol` or `max_steps`.

        References:
            Rubin & Thayer, EM algorithms for ML factor analysis, 1982.
        """
        check_em("fit_factor_analysis", "diagonal", floor, tol, max_steps)
        covariance, bias, size = moments(x, num_latents)
        closed = cls.fit(x.double(), size)
        noise = closed.scale.detach().square().expand(len(bias)).clamp(min=floor**2)
        step = complete_step(covariance, bias, noise="diagonal", floor=floor)
        params, _, _ = maximise(step, Params(closed.weight.detach(), bias, noise), tol=tol, max_steps=max_steps)
        return cls._from_params(params, "diagonal", x, standardization)

    @classmethod
    def fit_em(
        cls,
        x: Float[Tensor, "N P"],
        num_latents: int,
        *,
        noise: Noise = "isotropic",
        floor: float = 1e-2,
        tol: float = 1e-9,
        max_steps: int = 10_000,
        seed: int = 0,
        standardization: Standardization | None = None,
    ) -> tuple[Self, Fit]:
        r"""Maximum likelihood by exact EM, with missing values: the posteriors are exact, so the ELBO is the evidence.

        .. math::
            \theta_{t+1} = \arg\max_\theta \sum_n E_{p(z_n \mid x_n, \theta_t)}[\log p(x_n, z_n \mid \theta)]

        It starts from the mean and variance of each data value: half of the variance is noise, the other half comes
        from random weights. No step lowers the evidence.

        Args:
            x: data, (N, P); NaN is not observed. A row may be empty, a column not.
            num_latents: D, smaller than P.
            noise: "isotropic", one scale (probabilistic PCA), or "diagonal", one a data value (factor analysis).
            floor: what a noise scale cannot fall below, in the units of x: without one the likelihood of data that can
                be fitted exactly is unbounded.
            tol: stop when a step raises the mean evidence by less, in nats per datapoint.
            max_steps: stop after so many steps.
            seed: of the random weights.
            standardization: `dataset.standardization` where x are standardized rows; the evidence is then that of the
                data in their own units.

        Returns:
            The model, and how the fit went: `fit.elbo` is the exact mean log p(x) at the start and after each step, and
            `fit.settings["num_on_floor"]` the number of data values whose scale sits on the floor.

        Raises:
            ValueError: D is not below P, a column holds no observed value, or an option is out of range.

        References:
            Tipping & Bishop, Probabilistic Principal Component Analysis, 1999.
            Rubin & Thayer, EM algorithms for ML factor analysis, 1982.

        Example:
            >>> x = torch.randn(200, 1) * torch.ones(4) + 0.1 * torch.randn(200, 4)
            >>> x[:50, 0] = torch.nan
            >>> model, fit = LinearGaussian.fit_em(x, 1)
            >>> bool((fit.elbo.diff() > -1e-9).all())
            True
        """
        began = time.perf_counter()
        check_em("fit_em", noise, floor, tol, max_steps)
        rows, size = check_data(x, num_latents, missing=True)
        empty = torch.nonzero(rows.isnan().all(0)).flatten().tolist()
        if empty:
            raise ValueError(
                f"x: expected at least one observed value in each column; column {empty[0]} has none. Drop it."
            )
        if rows.isnan().any():
            step = missing_step(rows, noise=noise, floor=floor)
        else:
            covariance, bias, _ = moments(rows, size)
            step = complete_step(covariance, bias, noise=noise, floor=floor)
        first = start(rows, size, noise=noise, floor=floor, seed=resolve_seed(seed))
        params, evidence, converged = maximise(step, first, tol=tol, max_steps=max_steps)
        if standardization is not None:
            shift = float(standardization.log_jacobian(rows).mean())
            evidence = [value - shift for value in evidence]
        gain = f"the last step gained {evidence[-1] - evidence[-2]:.2g} nats per datapoint"
        fit = Fit(
            elbo=torch.tensor(evidence, dtype=torch.float64),
            elbo_validation=None,
            seconds=time.perf_counter() - began,
            num_steps=len(evidence) - 1,
            stopped_because=f"the evidence converged: {gain}" if converged else f"the budget of steps ended: {gain}",
            settings={
                "engine": "exact em",
                "noise": noise,
                "floor": floor,
                "tol": tol,
                "max_steps": max_steps,
                "seed": seed,
                "num_on_floor": int((params.noise.sqrt() < _ON_FLOOR * floor).sum()),
            },
        )
        return cls._from_params(params, noise, x, standardization), fit

    def extra_repr(self) -> str:
        """Its sizes and kind of noise."""
        num_values, num_latents = self.weight.shape
        return f"{num_values}, {num_latents}, noise={'diagonal' if self.log_scale.dim() else 'isotropic'}"

    @classmethod
    def _from_params(cls, params: Params, noise: Noise, x: Tensor, standardization: Standardization | None) -> Self:
        scale = params.noise.sqrt().to(like(x))
        return cls(
            params.weight.to(scale),
            params.bias.to(scale),
            scale[0] if noise == "isotropic" else scale,
            standardization=standardization,
        )

    def _precision(self) -> Float[Tensor, "D D"]:
        scaled = self.weight.double() / self.scale.double().expand(len(self.weight)).unsqueeze(-1)
        return torch.eye(self.num_latents).to(scaled) + scaled.T @ scaled

    def _solve(self, x: Tensor) -> tuple[Float[Tensor, "N D"], Float[Tensor, "*N D D"]]:
        """Posterior means, and Cholesky factors of the posterior precisions: one for all where nothing is missing.

        Both are in double precision: sums over ten thousands of values lose whole nats in single precision.
        """
        self._check(x)
        weight, variance = self.weight.double(), self.scale.double().square()
        with running(self.decode, x, name="x"):
            projected = (self._residual(x) / variance) @ weight
        observed = ~x.isnan()
        if bool(observed.all()):
            tril = self._factor(self._precision(), x)
            return torch.cholesky_solve(projected.T, tril).T, tril
        scaled = weight / variance.expand(len(weight)).unsqueeze(-1)
        outer = (weight.unsqueeze(-1) * scaled.unsqueeze(-2)).flatten(1)
        size = self.num_latents
        precision = torch.eye(size).to(outer) + (observed.to(outer) @ outer).unflatten(-1, (size, size))
        tril = self._factor(precision, x)
        return torch.cholesky_solve(projected.unsqueeze(-1), tril).squeeze(-1), tril

    def _in_dtype(self, x: Tensor, value: Tensor) -> Tensor:
        """A result in the type of the parameters and the data, whichever is wider."""
        return value.to(torch.promote_types(x.dtype, self.weight.dtype))

    def _factor(self, precision: Float[Tensor, "*N D D"], x: Tensor) -> Float[Tensor, "*N D D"]:
        tril, failed = torch.linalg.cholesky_ex(precision)
        # A precision that the type of the results cannot hold leaves a covariance of 0.
        held = self._in_dtype(x, precision.detach())
        # A pivot that is nothing but the rounding of its row comes out positive or negative by chance.
        pivot, row = (part.detach().diagonal(dim1=-2, dim2=-1) for part in (tril, precision))
        rounding = 4 * self.num_latents * torch.finfo(row.dtype).eps
        sound = tril.isfinite().all() & held.isfinite().all() & (pivot.square() > rounding * row).all()
        if bool(failed.any()) or not bool(sound):
            raise ValueError(
                f"scale: expected noise that {held.dtype} can tell from 0 beside the weights; got "
                f"{float(self.scale.detach().min()):.3g}, at which the posterior's precision has no Cholesky factor. "
                "Raise the scale, or pass float64."
            )
        return tril

    def _residual(self, x: Tensor) -> Tensor:
        """What is left of x over b; 0 where x is missing."""
        missing = x.isnan()
        # Filled first: the gradient of a NaN that is masked later is NaN.
        return (x.double().masked_fill(missing, 0.0) - self.bias.double()).masked_fill(missing, 0.0)

    def _check(self, x: Tensor) -> None:
        require_kind("x", x, Tensor, hint="Try torch.as_tensor.")
        require_numbers(x, name="x")
        if x.dim() != 2 or x.shape[1] != len(self.weight) or not len(x):
            raise ValueError(
                f"x: expected shape (N, {len(self.weight)}), one row a datapoint and at least one; got "
                f"{tuple(x.shape)}."
            )


class _ObservedNormal(dist.Normal):
    """A normal distribution that takes NaN for a value that was not observed, with log density 0."""

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        return _real_or_missing

    def log_prob(self, value: Tensor) -> Tensor:
        missing = value.isnan()
        return super().log_prob(torch.where(missing, self.loc, value)).masked_fill(missing, 0.0)


class _RealOrMissing(constraints.Constraint):
    def check(self, value: Tensor) -> Tensor:
        return ~value.isinf()


_real_or_missing = _RealOrMissing()
