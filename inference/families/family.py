"""What every variational family is: a map from unconstrained parameters to a distribution."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from inference.counts import require_count, require_kind
from inference.families.moments import loc_and_tril
from inference.families.raw import raw_of, scale_of


class Family(nn.Module):
    """A set of distributions over (D,) vectors, indexed by unconstrained parameters.

    Subclasses say how `forward` maps rows of parameters to a distribution, and how `params_from` goes back.

    Args:
        num_latents: D, size of the latent vector.

    Attributes:
        num_latents: D.
        num_params: K, parameters a datapoint.
        has_log_prob: whether the density of points it did not draw itself can be evaluated.
        num_locations: how many of a row's first parameters only move q; the others change its shape.
        roles: the kinds of part it can be chosen as by name.

    Raises:
        ValueError: D is not a positive integer.
    """

    num_params: int
    has_log_prob: bool = True
    num_locations: int = 0
    roles: ClassVar[frozenset[str]] = frozenset({"family"})

    def __init__(self, num_latents: int) -> None:
        super().__init__()
        self.num_latents = self._size("num_latents", num_latents)

    @property
    def num_shared(self) -> int:
        """Number of weights the family owns, shared by all datapoints."""
        return sum(weight.numel() for weight in self.parameters())

    @property
    def num_noise(self) -> int:
        """R, standard normal numbers that `from_noise` makes a draw of."""
        return self.num_latents

    @property
    def support(self) -> constraints.Constraint:
        """Where the members live: a constraint on (D,) vectors."""
        return constraints.real_vector

    @property
    def is_fitted(self) -> bool:
        """Whether shared weights, where there are any, are other than at construction."""
        initial = self._buffers.get("_initial_shared")
        return initial is None or not self.num_shared or not torch.equal(self._shared(), initial)

    @property
    def has_weights(self) -> bool:
        """Whether it owns weights: parameters, or, in a frozen copy, what was made of them."""
        return self.num_shared > 0 or "_initial_shared" in self._buffers

    def remember_initial_weights(self) -> None:
        """Keep a copy of the shared weights, for `is_fitted` to compare with: the last line of a constructor.

        A family that does not call it counts as fitted.
        """
        if self.num_shared:
            # A buffer goes through every change of dtype and device that the weights go through, and into state dicts.
            self.register_buffer("_initial_shared", self._shared().clone())

    def _shared(self) -> Tensor:
        return torch.cat([weight.detach().flatten() for weight in self.parameters()])

    def __call__(self, params: Float[Tensor, "*B K"]) -> Distribution:
        """The distribution at these parameters: batch shape `*B`, event shape (D,).

        Raises:
            TypeError: `params` is no tensor.
            ValueError: `params` has not K entries in its last dimension or no floating-point ones, or the family does
                not keep its word.
        """
        if not isinstance(params, Tensor):
            raise TypeError(
                f"{self!r}: expected params to be a tensor (..., {self.num_params}); got {type(params).__name__}."
            )
        if params.dim() == 0 or params.shape[-1] != self.num_params:
            raise ValueError(
                f"{self!r}: expected params of shape (..., {self.num_params}); got {tuple(params.shape)}. An encoder "
                f"for this family ends in family.num_params = {self.num_params} outputs."
            )
        if not params.is_floating_point():
            raise ValueError(f"{self!r}: expected floating-point params; got {params.dtype}. Pass params.float().")
        try:
            q = super().__call__(params)
        except (RuntimeError, IndexError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(self._broken(params, f"{type(error).__name__}: {error}")) from error
        if (tuple(q.batch_shape), tuple(q.event_shape)) != (tuple(params.shape[:-1]), (self.num_latents,)):
            raise ValueError(
                self._broken(params, f"batch shape {tuple(q.batch_shape)} and event shape {tuple(q.event_shape)}")
            )
        return q

    def _broken(self, params: Tensor, came: str) -> str:
        return (
            f"{self!r}: expected forward(params), with the num_params = {self.num_params} that it announces, to return "
            f"a distribution with batch shape {tuple(params.shape[:-1])} and event shape ({self.num_latents},); got "
            f"{came}. Let num_params be the number that forward reads, and end in .to_event(1)."
        )

    def initial_params(self, num_rows: int, *, like: Tensor) -> Float[Tensor, "N K"]:
        """Rows to start a cold search from: the standard normal distribution, or what comes closest to it.

        Args:
            num_rows: N.
            like: tensor whose dtype and device the rows take.
        """
        return like.new_zeros(num_rows, self.num_params)

    def params_from(self, q: Distribution) -> Float[Tensor, "*B K"]:
        """Parameters at which the family is `q`, or, where it does not contain `q`, has `q`'s moments.

        Of a distribution that is no kind of normal the means and variances are taken, and covariances of zero.

        Args:
            q: distribution with batch shape `*B` and event shape (D,).

        Raises:
            ValueError: `q` has another event shape, or scales that the family cannot represent.
            NotImplementedError: `q`'s moments are not known in closed form, nor can it be drawn from noise.
        """
        raise NotImplementedError

    def step_units(self, params: Float[Tensor, "*B K"]) -> Float[Tensor, "*B K"]:
        """What a step of size 1 means for each parameter, at these parameters.

        Adam's steps have the size they are told, not one that fits the problem: around a posterior that is narrower
        than a step, a location would jitter for ever. A family with locations measures their steps in standard
        deviations of q.

        Args:
            params: (*B, K) rows.
        """
        return torch.ones_like(params)

    def natural_direction(
        self,
        params: Float[Tensor, "*B K"],
        grad: Float[Tensor, "*B K"],
        *,
        reach: float = math.inf,
        stretch: float | Tensor = math.inf,
    ) -> Tensor | None:
        r"""The natural gradient: F^-1 g, with F the Fisher information of q in these parameters.

        .. math::
            F(\lambda) = E_{q_\lambda}[\nabla_\lambda \log q_\lambda(z) \, \nabla_\lambda \log q_\lambda(z)^\top]

        None in a family that does not offer it.

        Args:
            params: (*B, K) rows.
            grad: (*B, K) gradient at them.
            reach: it is cut so that no location moves further, in standard deviations of q,
            stretch: and no scale by a larger factor than e^stretch, to first order; a number, or one a row (*B, 1).

        References:
            Amari (1998), Natural gradient works efficiently in learning.
        """
        return None

    def extra_repr(self) -> str:
        """Its size."""
        return str(self.num_latents)

    def __repr__(self) -> str:
        # On one line, also where networks are inside.
        return f"{type(self).__name__}({self.extra_repr()})"

    def _size(self, name: str, value: int) -> int:
        hint = "Pass the size of z." if name == "num_latents" else ""
        require_count(f"{type(self).__name__}: {name}", value, hint=hint)
        return value

    def _moments(self, q: Distribution) -> tuple[Tensor, Tensor]:
        """Mean (*B, D) and lower Cholesky factor of the covariance (*B, D, D) of `q`."""
        self._check_event(q)
        return loc_and_tril(q)

    def _check_event(self, q: Distribution) -> None:
        require_kind(f"{self!r}: q", q, Distribution)
        if tuple(q.event_shape) != (self.num_latents,):
            raise ValueError(
                f"{self!r}: expected a distribution with event shape ({self.num_latents},); got batch shape "
                f"{tuple(q.batch_shape)} and event shape {tuple(q.event_shape)}. Declare the latent dimension with "
                ".to_event(1)."
            )


class LocationScale(Family):
    r"""A family whose rows begin with a location and a log scale for each dimension.

    .. math::
        z = \mu + \sigma \odot y, \qquad \lambda = (\mu, r, \text{rest}), \quad \log \sigma = 12 \tanh(r / 12)

    where the rest of the row says how y is distributed: at `start` as the standard normal, or as near as it can.

    Args:
        num_latents: D, size of the latent vector.
        start: (K - 2 D,) the rest of the row to start from.
    """

    _start: Tensor

    def __init__(self, num_latents: int, start: Float[Tensor, " K-2*D"] | None = None) -> None:
        super().__init__(num_latents)
        start = torch.zeros(0) if start is None else start
        self.num_params = 2 * self.num_latents + len(start)
        self.num_locations = self.num_latents
        self.register_buffer("_start", start.to(torch.get_default_dtype()), persistent=False)

    def initial_params(self, num_rows: int, *, like: Tensor) -> Float[Tensor, "N K"]:
        """Rows to start a cold search from: the standard normal distribution, or what comes closest to it."""
        head = like.new_zeros(2 * self.num_latents)
        return torch.cat([head, self._start.to(like)]).repeat(num_rows, 1)

    def params_from(self, q: Distribution) -> Float[Tensor, "*B K"]:
        """Parameters at which the family is `q`, or has its means and variances."""
        loc, tril = self._moments(q)
        return self._row(loc, raw_of(tril.norm(dim=-1)), self._start.to(loc))

    def step_units(self, params: Float[Tensor, "*B K"]) -> Float[Tensor, "*B K"]:
        """One standard deviation of q for a location, at most 1; 1 for all else."""
        _, scale, _ = self._split(params.detach())
        return torch.cat([scale.clamp_max(1.0), torch.ones_like(params[..., self.num_latents :])], dim=-1)

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Location, scale and the rest of the row."""
        size = self.num_latents
        loc, raw, rest = params.split([size, size, self.num_params - 2 * size], dim=-1)
        return loc, scale_of(raw), rest

    def _row(self, loc: Tensor, raw: Tensor, *rest: Tensor) -> Tensor:
        return torch.cat([loc, raw, *(part.expand(*loc.shape[:-1], -1) for part in rest)], dim=-1)
