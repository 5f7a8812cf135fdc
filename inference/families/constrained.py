"""A family pushed onto a support that is not all of R^D."""

from __future__ import annotations

import math
from typing import ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, Transform, TransformedDistribution, biject_to, constraints
from torch.distributions.transforms import IndependentTransform

from inference.families.family import Family
from inference.families.flow import Bijection, Pushed
from inference.families.reading import family_of
from inference.supports import is_unconstrained, same_support


class Constrained(Family):
    r"""A family on R^D pushed through a bijection onto a support.

    .. math::
        z = T(y), \quad y \sim q_0, \qquad \log q(z) = \log q_0(T^{-1} z) - \log |\det \partial T / \partial y|

    with T = `torch.distributions.biject_to(support)`: logistic onto an interval, exponential onto a half-line. Rows are
    those of the family on R^D. A draw that a float would round onto the boundary stays a little inside: y is clamped
    where T is flat in its dtype.

    Args:
        family: family on R^D.
        support: constraint on vectors, or on the numbers of a vector, such as a prior's `support`.

    Raises:
        ValueError: the family is constrained itself, or no bijection from R^D onto the support is known.

    Example:
        >>> from torch.distributions import constraints
        >>> from inference.families import MeanField
        >>> family = Constrained(MeanField(2), constraints.interval(-1.0, 1.0))
        >>> family
        Constrained(MeanField(2), interval(-1, 1))
        >>> q = family(torch.zeros(5, 4))
        >>> bool((q.sample().abs() < 1).all()), q.unconstrained.event_shape
        (True, torch.Size([2]))
    """

    roles: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, family: Family, support: constraints.Constraint) -> None:
        if not isinstance(family, Family) or family.support is not constraints.real_vector:
            raise ValueError(f"family: expected a family on R^D; got {family!r}. Pass the family before its bijection.")
        super().__init__(family.num_latents)
        kind = support
        while isinstance(kind, type(constraints.real_vector)):
            kind = kind.base_constraint
        try:
            onto = biject_to(kind)
        except NotImplementedError:
            onto = None
        if onto is None or onto.domain.event_dim or onto.codomain.event_dim:
            raise ValueError(
                f"support: expected a constraint that each number of a vector satisfies by itself, and that R can be "
                f"mapped onto, such as an interval or a half-line; got {kind}. Choose another prior."
            )
        self.family = family
        self.num_params = family.num_params
        self.num_locations = family.num_locations
        self.has_log_prob = family.has_log_prob
        self._kind = kind
        self._bounds = [name for name in ("lower_bound", "upper_bound") if hasattr(kind, name)]
        for name in self._bounds:
            bound = getattr(kind, name)
            if not isinstance(bound, Tensor):
                setattr(self, f"_{name}", bound)
                continue
            # So that it follows the family to its device.
            self.register_buffer(f"_{name}", bound.detach().clone().to(torch.get_default_dtype()), persistent=False)
            if bound.dim() > 1 or (bound.dim() and bound.shape[0] not in (1, family.num_latents)):
                raise ValueError(
                    f"support: expected bounds that are numbers or have shape ({family.num_latents},); got "
                    f"{tuple(bound.shape)}. Pass one number for each latent dimension of {family!r}."
                )

    @property
    def support(self) -> constraints.Constraint:
        """Where the members live."""
        return constraints.independent(self._base(), 1)

    def _base(self) -> constraints.Constraint:
        """The constraint on each number, its bounds where the family is."""
        bounds = [getattr(self, f"_{name}") for name in self._bounds]
        return type(self._kind)(*bounds) if any(isinstance(bound, Tensor) for bound in bounds) else self._kind

    @property
    def num_noise(self) -> int:
        """R of the family on R^D."""
        return self.family.num_noise

    @property
    def is_fitted(self) -> bool:
        """Whether the family on R^D is."""
        return self.family.is_fitted

    def forward(self, params: Float[Tensor, "*B K"]) -> Distribution:
        """The distribution at these parameters."""
        return ConstrainedDistribution(self.family(params), [Inside(self._base())], validate_args=False)

    def initial_params(self, num_rows: int, *, like: Tensor) -> Float[Tensor, "N K"]:
        """Rows to start a cold search from: those of the family on R^D."""
        return self.family.initial_params(num_rows, like=like)

    def params_from(self, q: Distribution) -> Float[Tensor, "*B K"]:
        """Parameters at which the family is `q`, or comes close to it.

        Of a distribution pushed onto the same support by the same bijection the one on R^D is taken, as the family on
        R^D takes it; of any other the mean and the covariance, carried to R^D by the bijection's slope at the mean.

        Raises:
            ValueError: `q` lives elsewhere, has another event shape, or scales that the family cannot represent.
        """
        self._check_event(q)
        # First: what torch says of the support of such an image may be wrong.
        free = _unconstrained(q, self._base())
        if free is not None:
            return self.family.params_from(free)
        if not same_support(q.support, self.support):  # type: ignore[arg-type]
            raise ValueError(
                f"{self!r}: expected a distribution on {_describe(self.support)}; got a {type(q).__name__} on "
                f"{_describe(q.support)}. Push it through biject_to of that support."  # type: ignore[arg-type]
            )
        loc, tril = self._moments(q)
        onto = Inside(self._base())
        centre, _ = onto.pull(loc)
        slope = onto.log_slope(centre).exp()
        return self.family.params_from(
            dist.MultivariateNormal(centre, scale_tril=tril / slope.unsqueeze(-1), validate_args=False)
        )

    def step_units(self, params: Float[Tensor, "*B K"]) -> Float[Tensor, "*B K"]:
        """What a step of size 1 means for each parameter: as for the family on R^D."""
        return self.family.step_units(params)

    def natural_direction(
        self,
        params: Float[Tensor, "*B K"],
        grad: Float[Tensor, "*B K"],
        *,
        reach: float = math.inf,
        stretch: float | Tensor = math.inf,
    ) -> Tensor | None:
        """The natural gradient: that of the family on R^D, since a bijection leaves the Fisher information as it is."""
        return self.family.natural_direction(params, grad, reach=reach, stretch=stretch)

    def extra_repr(self) -> str:
        """The family on R^D, and the support."""
        return f"{self.family!r}, {_describe(self.support)}"


def on_support(family: Family, support: constraints.Constraint | None) -> Family:
    """The family where it may live on all of R^D, else the family pushed onto the support.

    Args:
        family: variational family on R^D.
        support: constraint on (D,) vectors, a prior's for example.

    Example:
        >>> from inference.families import MeanField
        >>> on_support(MeanField(2), constraints.real_vector)
        MeanField(2)
    """
    return family if is_unconstrained(support) else Constrained(family, support)  # type: ignore[arg-type]


def _unconstrained(q: Distribution, base: constraints.Constraint) -> Distribution | None:
    """The distribution on R^D that q is the image of under the bijection onto this support, if it is one."""
    if isinstance(q, ConstrainedDistribution):
        return q.unconstrained if same_support(q.support, constraints.independent(base, 1)) else None  # type: ignore[arg-type]
    if isinstance(q, TransformedDistribution) and len(q.base_dist.event_shape) == 1 and len(q.transforms) == 1:
        transform = q.transforms[0]
        while isinstance(transform, IndependentTransform):
            transform = transform.base_transform
        return q.base_dist if transform == biject_to(base) else None
    return None


def _describe(support: constraints.Constraint) -> str:
    """The support in words, all its bounds included: two families that are described alike are alike."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if support is constraints.real:
        return "all real vectors"
    low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    if low is None and high is None:
        return str(support)
    return f"interval({_number(low, '-inf')}, {_number(high, 'inf')})"


def _number(bound: Tensor | float | None, otherwise: str) -> str:
    if bound is None:
        return otherwise
    values = torch.as_tensor(bound).flatten().tolist()
    if len(set(values)) == 1:
        return f"{values[0]:g}"
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"


class Inside(Bijection):
    """From R^D to the inside of a support: never onto its boundary, whatever the dtype."""

    def __init__(self, base: constraints.Constraint) -> None:
        super().__init__()
        self.base = base
        self.onto: Transform = biject_to(base)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        """The support."""
        return constraints.independent(self.base, 1)

    def push(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Onto the support."""
        x = self._clamp(x)
        return self._within(self.onto(x)), self.log_slope(x).sum(-1)

    def pull(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Back to R^D."""
        x = self._clamp(self.onto.inv(self._within(y)))
        return x, self.log_slope(x).sum(-1)

    def log_slope(self, x: Tensor) -> Tensor:
        """Log of the absolute slope of the bijection, number by number."""
        return self.onto.log_abs_det_jacobian(x, self.onto(x))

    def _clamp(self, x: Tensor) -> Tensor:
        if self.base is constraints.real:
            return x
        if hasattr(self.base, "lower_bound") and hasattr(self.base, "upper_bound"):
            # Beyond, the logistic function differs from 0 or 1 by less than its dtype can say.
            most = -torch.log(torch.tensor(torch.finfo(x.dtype).eps, dtype=torch.float64)).item()
        else:
            # The square root of the largest float.
            most = 0.5 * torch.log(torch.tensor(torch.finfo(x.dtype).max, dtype=torch.float64)).item()
        return x.clamp(-most, most)

    def _within(self, y: Tensor) -> Tensor:
        low, high = (getattr(self.base, name, None) for name in ("lower_bound", "upper_bound"))
        infinity = torch.full_like(y[..., :1], torch.inf)
        if low is not None:
            y = torch.maximum(y, torch.nextafter(torch.as_tensor(low).to(y) + 0 * y.detach(), infinity))
        if high is not None:
            y = torch.minimum(y, torch.nextafter(torch.as_tensor(high).to(y) + 0 * y.detach(), -infinity))
        return y


class ConstrainedDistribution(Pushed):
    """A distribution on R^D pushed onto a support."""

    @property
    def unconstrained(self) -> Distribution:
        """The distribution on R^D."""
        return self.base_dist


@family_of.register
def _(q: ConstrainedDistribution) -> Family:
    return Constrained(family_of(q.unconstrained), q.support)  # type: ignore[arg-type]
