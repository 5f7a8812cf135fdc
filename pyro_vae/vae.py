"""A variational autoencoder: a Pyro model, and a Pyro guide where it has an encoder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from inference.batches import require_rows
from inference.counts import require_kind
from inference.exclusive import exclusive
from inference.families import Family, loc_and_tril
from inference.guides import Amortized, unique_name
from inference.isolation import eval_mode, running
from inference.noise import resolve_seed, seeded
from inference.supports import describe, is_unconstrained, same_support
from pyro_vae.data.standardization import Standardization
from pyro_vae.likelihoods import Likelihood
from pyro_vae.likelihoods.units import InDataUnits, OverStandardized, Units, require_real
from pyro_vae.networks import check_size
from pyro_vae.priors import as_prior

__all__ = ["VAE", "posterior_mean"]

# Draws that stand in for the mean of a q(z | x) of which neither the mean nor a way to draw it from noise is known.
_NUM_DRAWS = 256


class VAE(nn.Module):
    r"""A generative model with one latent vector a datapoint, and an encoder that guesses it.

    .. math::
        z_n \sim \mathrm{prior}, \qquad x_n \mid z_n \sim \mathrm{likelihood}(\mathrm{decoder}(f(z_n))), \qquad
        q(z_n \mid x_n) = \mathrm{family}(\mathrm{encoder}(x_n))

    `model` and `guide` are ordinary Pyro functions of x (B, P): latent site "z", observed site "x", one plate "data".
    f is the identity for most priors; one that holds more than the decoder reads, scales or an upper layer, says what
    it hands down (`prior.features`).

    Args:
        prior: distribution of z: a class of `pyro_vae.priors`, any distribution with event shape (D,), or a module or
            function returning one.
        likelihood: distribution of x given the decoder's output.
        decoder: module from (B, F) to (B, P x `likelihood.num_params`), F = D unless the prior says otherwise.
        family: variational family of size D, on the prior's support.
        encoder: module from (B, P) to (B, `family.num_params`). None: no guide, for variational EM; a guide can be set
            later.
        standardization: `dataset.standardization` of data that were loaded with `standardize=True`, for a likelihood of
            real numbers. `model`, `guide` and `encode` then take standardized rows, as the data set's splits give them;
            every log density is that of x in the data's own units, and `decode`, `reconstruct` and `generate` speak in
            these units, in double precision. None: rows are in the data's own units.

    Attributes:
        guide: `inference.guides.Amortized`, or None.
        num_latents: D, size of z.
        num_features: F, size of what the decoder reads.

    Raises:
        TypeError: a part is of another kind.
        ValueError: the parts do not fit together.

    References:
        Kingma & Welling, Auto-Encoding Variational Bayes, 2014, https://arxiv.org/abs/1312.6114

    Example:
        >>> from inference.families import MeanField
        >>> from pyro_vae.likelihoods import Binomial
        >>> from pyro_vae.networks import MLP
        >>> from pyro_vae.priors import StandardNormal
        >>> family = MeanField(8)
        >>> vae = VAE(
        ...     prior=StandardNormal(8),
        ...     likelihood=Binomial(16),
        ...     decoder=MLP(8, 32, 64),
        ...     family=family,
        ...     encoder=MLP(64, 32, family.num_params),
        ... )
        >>> vae.generate(3, seed=0).shape
        torch.Size([3, 64])
    """

    guide: Amortized | None
    units: Units | None

    def __init__(
        self,
        *,
        prior: nn.Module | Distribution | Callable[[], Distribution],
        likelihood: Likelihood,
        decoder: nn.Module,
        family: Family | None = None,
        encoder: nn.Module | None = None,
        standardization: Standardization | None = None,
    ) -> None:
        super().__init__()
        if isinstance(likelihood, type) or not hasattr(likelihood, "num_params"):
            require_kind("likelihood", likelihood, Likelihood)
        require_kind("decoder", decoder, nn.Module)
        if encoder is not None:
            require_kind("encoder", encoder, nn.Module)
        if family is not None:
            require_kind("family", family, Family)
        self.prior = as_prior(prior)
        self.likelihood = likelihood
        self.decoder = decoder
        self.num_latents: int = self.prior().event_shape[0]
        self.num_features: int = getattr(self.prior, "num_features", self.num_latents)
        self._check_parts(family, encoder)
        # The family is registered once, in the guide where there is one: the state dict then holds shared weights once.
        self.register_module("units", None if standardization is None else self._make_units(standardization))
        self.register_module("guide", None)
        self.register_module("_family", None)
        if family is not None and encoder is not None:
            self.guide = Amortized(family, encoder, site="z")
        else:
            self._family = family

    @property
    def standardization(self) -> Standardization | None:
        """The map from the data's own units to the rows that the model takes, or None where they are in these units."""
        return None if self.units is None else self.units.standardization

    def in_data_units(self, x: Float[Tensor, "*B P"]) -> Float[Tensor, "*B P"]:
        """Rows as the model takes them, in the data's own units: float64 where the data are standardized, else as is.

        Args:
            x: rows, (*B, P).
        """
        return x if self.units is None else self.units.standardization.invert(x)

    @property
    def family(self) -> Family | None:
        """The variational family, or None."""
        return self._family if self.guide is None else self.guide.family

    @property
    def local_family(self) -> Family | None:
        """The variational family given without an encoder, whose members rows of variational EM are; or None."""
        return self._family

    @property
    def encoder(self) -> nn.Module | None:
        """The encoder, or None."""
        return None if self.guide is None else self.guide.encoder

    def model(self, x: Float[Tensor, "B P"]) -> Float[Tensor, "*S B P"]:
        """The generative model as a Pyro function: samples "z" and observes "x" in the plate "data".

        Extra particle dimensions on the left of z are allowed. `x` is checked against the likelihood's support while
        Pyro's validation is on.

        Args:
            x: data, (B, P).

        Raises:
            TypeError: `x` is no tensor.
            ValueError: `x` is no (B, P) tensor or outside the support, or the decoder's outputs do not fit P.
        """
        _require_rows(x)
        if dist.is_validation_enabled():
            self.likelihood.check(x)
        name = unique_name(self)
        # The parts of the model alone: an encoder registered here would be trained, and counted, as the model's.
        pyro.module(f"{name}.prior", self.prior)
        pyro.module(f"{name}.decoder", self.decoder)
        pyro.module(f"{name}.likelihood", self.likelihood)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior())
            output = self.decoder_output(z)
            if output.shape[-1] != x.shape[-1] * self.likelihood.num_params:
                raise ValueError(_wrong_outputs(self.likelihood, output.shape[-1], x.shape[-1]))
            p = self.likelihood(output)
            if self.units is not None:
                p = OverStandardized(p, self.units, mask=self.likelihood.mask)
            return pyro.sample("x", p, obs=x)

    def decoder_output(self, z: Float[Tensor, "*B D"]) -> Float[Tensor, "*B R"]:
        """The decoder applied to z with any number of dimensions on the left.

        Args:
            z: latent vectors, (*B, D). The decoder sees them as one batch.

        Returns:
            The decoder's output, (*B, P x `likelihood.num_params`).

        Raises:
            TypeError: `z` is no tensor.
            ValueError: `z` has another size or type, or the decoder does not return one row for each z.
        """
        require_kind("z", z, Tensor, hint="Try torch.as_tensor.")
        if not z.dim() or z.shape[-1] != self.num_latents:
            raise ValueError(f"z: expected shape (..., {self.num_latents}); got {tuple(z.shape)}.")
        rows = z.reshape(-1, z.shape[-1])
        if hasattr(self.prior, "features"):
            rows = self.prior.features(rows)  # type: ignore[operator]
        with running(self.decoder, rows, name="z"):
            output = self.decoder(rows)
        if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(rows):
            came = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"decoder: expected shape ({len(rows)}, P x {self.likelihood.num_params}) from z of shape "
                f"{tuple(rows.shape)}; got {came}. "
                "Return one row a z: .flatten(1) an image."
            )
        return output.reshape(*z.shape[:-1], output.shape[-1])

    def decode(self, z: Float[Tensor, "*B D"]) -> Distribution:
        """The likelihood at z, of x in the data's own units.

        Args:
            z: latent vectors, (*B, D).

        Returns:
            p(x | z): batch shape `*B`, event shape (P,). Its x is `in_data_units(rows)` where the data are
            standardized.
        """
        with exclusive():
            p = self.likelihood(self.decoder_output(z))
        return p if self.units is None else InDataUnits(p, self.units, mask=self.likelihood.mask)

    def encode(self, x: Float[Tensor, "B P"]) -> Distribution:
        """The encoder's posterior, with gradients and in the module's present mode (train or eval).

        Args:
            x: data, (B, P).

        Returns:
            q(z | x): batch shape (B,), event shape (D,).

        Raises:
            TypeError: `x` is no tensor.
            ValueError: the VAE has no encoder, or x is no (B, P) tensor.
        """
        if self.guide is None:
            raise ValueError(
                "encoder: expected a VAE with an encoder; got encoder=None. Refine q for each datapoint "
                "(inference.refine, fit_em), "
                "or set vae.guide = Amortized(family, encoder) and train it with fit_svi(..., train='guide')."
            )
        _require_rows(x)
        with exclusive():
            return self.guide.distribution(x)

    def reconstruct(self, x: Float[Tensor, "B P"]) -> Float[Tensor, "B P"]:
        """The mean of x given the posterior mean of z: E[x | z = E_q[z | x]].

        Without gradients, in `eval()` mode. Where q has no mean in closed form, the mean of draws with a fixed seed
        takes its place.

        Args:
            x: data, (B, P); standardized rows where the data are standardized.

        Returns:
            Means, (B, P), in the data's own units.

        Raises:
            ValueError: the VAE has no encoder.
        """
        with eval_mode(self), torch.no_grad():
            return self.decode(posterior_mean(self.encode(x))).mean

    def generate(self, num_draws: int, *, seed: int | None = None) -> Float[Tensor, "n P"]:
        """Draws of x from the prior predictive distribution: z from the prior, then x given z.

        Args:
            num_draws: n.
            seed: seed of these draws alone; torch's global generators are left as they were. None: draw from the global
                generators.

        Returns:
            Draws, (n, P), in the data's own units.

        Raises:
            ValueError: `num_draws` is not a positive integer, or `seed` not a non-negative one.
        """
        shape = torch.Size((check_size("generate", "num_draws", num_draws),))
        with nullcontext() if seed is None else seeded(resolve_seed(seed)), eval_mode(self), torch.no_grad():
            return self.decode(self.prior().sample(shape)).sample()

    def __getstate__(self) -> object:
        for weight in self.parameters():
            # Pyro hangs a weak reference, which pickle refuses, on every parameter, and does so anew at each use.
            vars(weight).pop("unconstrained", None)
        return super().__getstate__()

    def __repr__(self) -> str:
        """One line a part, with its number of parameters."""
        parts = {
            "prior": self.prior,
            "likelihood": self.likelihood,
            "decoder": self.decoder,
            "family": self.family,
            "encoder": self.encoder,
        }
        lines = []
        for name, part in parts.items():
            num_parameters = 0 if part is None else sum(weight.numel() for weight in part.parameters())
            count = f"  ({num_parameters:,} parameter{'s' * (num_parameters > 1)})" if num_parameters else ""
            lines.append(f"  {name + ':':<12}{_one_line(part)}{count}")
        if self.units is not None:
            lines.append(f"  {'units:':<12}standardized by the training split; densities and draws in the data's own")
        return "\n".join(["VAE(", *lines, ")"])

    def _make_units(self, standardization: Standardization) -> Units:
        require_kind("standardization", standardization, Standardization, hint="Pass dataset.standardization.")
        require_real(self.likelihood, fix="Choose GaussianOutputScale, or load the data without standardize=True.")
        _, num_outputs = _announced(self.decoder)
        wanted = standardization.num_values * self.likelihood.num_params
        if num_outputs is not None and num_outputs != wanted:
            raise ValueError(
                f"standardization: expected as many values as the decoder has, {num_outputs} outputs for "
                f"{self.likelihood!r}; got {standardization.num_values} values. Pass that of the data that are fitted."
            )
        return Units(standardization)

    def _check_parts(self, family: Family | None, encoder: nn.Module | None) -> None:
        if encoder is not None and family is None:
            raise ValueError(
                "family: expected a variational family for the encoder's output; got None. Pass family=MeanField(D), "
                "for example."
            )
        if family is not None and family.num_latents != self.num_latents:
            raise ValueError(
                f"family: expected size {self.num_latents}, as the prior's; got {family!r}. Give both the same number "
                "of latent dimensions."
            )
        if family is not None and not same_support(family.support, support := self.prior().support):
            raise ValueError(
                f"family: expected distributions on {describe(support)}, where the prior {self.prior!r} lives; got "
                f"{family!r} on {describe(family.support)}. {_support_hint(family, support)}"
            )
        num_inputs, num_outputs = _announced(self.decoder)
        if num_inputs is not None and num_inputs != self.num_features:
            raise ValueError(
                f"decoder: expected {self.num_features} inputs, the size of what the prior hands down; got "
                f"{num_inputs}. Begin the decoder with {self.num_features}."
            )
        num_values, num_params = (None, None) if encoder is None else _announced(encoder)
        if family is not None and num_params is not None and num_params != family.num_params:
            raise ValueError(
                f"encoder: expected family.num_params = {family.num_params} outputs for {family!r}; got {num_params}. "
                f"End the encoder in {family.num_params} outputs."
            )
        if num_outputs is None:
            return
        if num_outputs % self.likelihood.num_params or (
            num_values is not None and num_outputs != num_values * self.likelihood.num_params
        ):
            raise ValueError(_wrong_outputs(self.likelihood, num_outputs, num_values))


def _support_hint(family: Family, support: Constraint) -> str:
    if is_unconstrained(support):
        return "Pass a family on R^D, or a prior that lives where the family does."
    return f"Push it through a bijection: Constrained({family!r}, prior().support)."


def _wrong_outputs(likelihood: Likelihood, came: int, num_values: int | None) -> str:
    product = (
        f"P x {likelihood.num_params}"
        if num_values is None
        else f"{num_values} x {likelihood.num_params} = {num_values * likelihood.num_params}"
    )
    return (
        f"decoder: expected {product} outputs, data values x likelihood.num_params, for {likelihood!r}; got {came}. "
        "Change the decoder's last size, or choose a likelihood with another num_params."
    )


def _announced(network: nn.Module) -> tuple[int | None, int | None]:
    """The sizes a network says it has, before it is ever called."""
    first = last = network
    while isinstance(first, nn.Sequential) and len(first):
        first = first[0]
    while isinstance(last, nn.Sequential) and len(last):
        last = last[-1]
    num_inputs = getattr(first, "num_inputs", first.in_features if isinstance(first, nn.Linear) else None)
    num_outputs = getattr(last, "num_outputs", last.out_features if isinstance(last, nn.Linear) else None)
    return num_inputs, num_outputs


def _require_rows(x: Tensor) -> None:
    if isinstance(x, Tensor) and x.dim() != 2:
        raise ValueError(f"x: expected shape (B, P), one row a datapoint; got {tuple(x.shape)}. {_reshape_hint(x)}")
    require_rows(x)


def _reshape_hint(x: Tensor) -> str:
    return (
        "Add the batch dimension: x[0:1] in place of x[0], or x[None]."
        if x.dim() < 2
        else "Flatten each datapoint to a vector: x.flatten(1)."
    )


def _one_line(part: nn.Module | None) -> str:
    text = repr(part)
    if len(text.splitlines()) > 1 or len(text) > 100:
        num_modules = 0 if part is None else sum(1 for _ in part.modules()) - 1
        return f"{type(part).__name__} of {num_modules} modules" if num_modules else f"{text.splitlines()[0][:97]}..."
    return text


def posterior_mean(q: Distribution) -> Float[Tensor, "*B D"]:
    """The mean of q(z | x); where it has no closed form, that of draws made from one fixed noise.

    Args:
        q: batch shape `*B`, event shape (D,).
    """
    try:
        return loc_and_tril(q)[0]
    except NotImplementedError:
        with seeded(0):
            return q.sample(torch.Size((_NUM_DRAWS,))).mean(0)
