"""Pyro guides: where the parameters of the variational family come from."""

from __future__ import annotations

from itertools import count
from weakref import WeakKeyDictionary

import pyro
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Distribution

from inference.counts import require_kind
from inference.families import Family
from inference.isolation import running

__all__ = ["Amortized", "Local", "unique_name"]

_names: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
_counter = count()


def unique_name(module: nn.Module) -> str:
    """A name for `pyro.module` that no other instance has, copies of this one included.

    Two modules registered under one name share the first one's parameters: the second silently does not train.
    """
    if module not in _names:
        _names[module] = f"{type(module).__name__.lower()}_{next(_counter)}"
    return _names[module]


class Amortized(nn.Module):
    r"""A guide whose variational parameters are computed from x.

    .. math::
        q(z \mid x) = \mathrm{family}(\mathrm{encoder}(x))

    Values of x that are NaN, unobserved, are 0 to the encoder.

    Args:
        family: variational family.
        encoder: module from (B, P) to (B, K), K = `family.num_params`.
        site: name of the latent site.

    Raises:
        TypeError: the family is no family, or the encoder cannot be called.
        ValueError: the encoder announces (by `num_outputs`) another number of outputs than K.

    Example:
        >>> import torch
        >>> from inference.families import MeanField
        >>> guide = Amortized(MeanField(2), torch.nn.Linear(5, 4))
        >>> guide(torch.zeros(3, 5)).shape
        torch.Size([3, 2])
    """

    def __init__(self, family: Family, encoder: nn.Module, site: str = "z") -> None:
        super().__init__()
        require_kind("family", family, Family, hint="Pass MeanField(D), for example, and the encoder second.")
        if not callable(encoder):
            raise TypeError(f"encoder: expected a module from (B, P) to (B, K); got {encoder!r}.")
        num_outputs = getattr(encoder, "num_outputs", getattr(encoder, "out_features", family.num_params))
        if num_outputs != family.num_params:
            raise ValueError(_wrong_outputs(family, f"{num_outputs} outputs"))
        self.family = family
        self.encoder = encoder
        self.site = site

    def params(self, x: Float[Tensor, "B P"]) -> Float[Tensor, "B K"]:
        """Rows of variational parameters of these datapoints.

        Raises:
            TypeError: `x` is no tensor.
            ValueError: x has no batch dimension, the encoder returned something else than (B, K), or takes data of
                another width or type.
        """
        # An unobserved value reaches the encoder as 0: what it learns from it is up to training.
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a tensor (B, P); got {type(x).__name__}. Try torch.as_tensor.")
        if x.dim() < 2:
            raise ValueError(
                f"x: expected shape (B, P), one row a datapoint; got {tuple(x.shape)}. Add the batch dimension: "
                "x[0:1] in place of x[0], or x[None]."
            )
        with running(self.encoder, x):
            params = self.encoder(torch.where(x.isnan(), 0, x))
        expected = (len(x), self.family.num_params)
        if not isinstance(params, Tensor) or tuple(params.shape) != expected:
            came = f"shape {tuple(params.shape)}" if isinstance(params, Tensor) else type(params).__name__
            raise ValueError(_wrong_outputs(self.family, f"{came}, where {expected} was expected"))
        return params

    def distribution(self, x: Float[Tensor, "B P"]) -> Distribution:
        """q(z | x): batch shape (B,), event shape (D,)."""
        return self.family(self.params(x))

    def forward(self, x: Float[Tensor, "B P"]) -> Float[Tensor, "*S B D"]:
        """Sample the latent site inside the data plate, as a Pyro guide does."""
        pyro.module(unique_name(self), self)
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample(self.site, self.distribution(x))  # type: ignore[arg-type]


def _wrong_outputs(family: Family, came: str) -> str:
    return (
        f"encoder: expected family.num_params = {family.num_params} outputs a datapoint for {family!r}; got {came}. "
        f"End the encoder in {family.num_params} outputs."
    )


class Local(nn.Module):
    r"""A guide with parameters of its own for every datapoint.

    .. math::
        q(z_n) = \mathrm{family}(\lambda_n)

    Args:
        family: variational family.
        params: (N, K) one row a datapoint. Pass an `nn.Parameter` to train the rows by gradient; a plain tensor stays
            fixed.
        site: name of the latent site.

    Raises:
        TypeError: the family is no family, or `params` no tensor.
        ValueError: `params` has not K columns of floating-point numbers.

    Example:
        >>> import torch
        >>> from inference.families import MeanField
        >>> guide = Local(MeanField(2), torch.zeros(100, 4))
        >>> guide.rows(torch.tensor([3, 7]))(torch.zeros(2, 5)).shape
        torch.Size([2, 2])
    """

    table: Tensor

    def __init__(self, family: Family, params: Float[Tensor, "N K"], site: str = "z") -> None:
        super().__init__()
        require_kind("family", family, Family)
        require_kind("params", params, Tensor, hint="Try torch.as_tensor.")
        if not params.is_floating_point():
            raise ValueError(f"params: expected floating-point rows; got {params.dtype}. Pass params.float().")
        if params.dim() != 2 or params.shape[1] != family.num_params:
            raise ValueError(
                f"params: expected shape (N, {family.num_params}) for {family!r}; got {tuple(params.shape)}. Pass one "
                "row a datapoint, for example `refine(...).params`."
            )
        self.family = family
        self.site = site
        if isinstance(params, nn.Parameter):
            self.table = params
        else:
            self.register_buffer("table", params)

    def rows(self, index: Int[Tensor, " B"]) -> Local:
        """The guide of a minibatch: the datapoints at `index`, in that order."""
        return Local(self.family, self.table[index], self.site)

    def params(self, x: Float[Tensor, "N P"]) -> Float[Tensor, "N K"]:
        """All rows; `x` must be the datapoints they belong to.

        Raises:
            ValueError: another number of datapoints than rows.
        """
        if len(x) != len(self.table):
            raise ValueError(
                f"x: expected the {len(self.table)} datapoints this guide has rows for; got {len(x)}. For a minibatch "
                "use guide.rows(index)."
            )
        return self.table

    def distribution(self, x: Float[Tensor, "N P"]) -> Distribution:
        """q(z) of all datapoints: batch shape (N,), event shape (D,)."""
        return self.family(self.params(x))

    def forward(self, x: Float[Tensor, "N P"]) -> Float[Tensor, "*S N D"]:
        """Sample the latent site inside the data plate, as a Pyro guide does."""
        pyro.module(unique_name(self), self)
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample(self.site, self.distribution(x))  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """Size of the table."""
        return f"{len(self.table)} rows, site={self.site!r}"
