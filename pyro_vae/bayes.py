"""Full variational Bayes: a variational autoencoder with a prior over its decoder's weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.infer.autoguide import AutoNormal, init_to_value
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.func import functional_call

from inference.counts import is_number, require_kind
from inference.guides import unique_name
from inference.isolation import private_store
from inference.noise import own_random_state, resolve_seed, seeded
from pyro_vae.networks import check_size
from pyro_vae.vae import VAE

__all__ = ["BayesianVAE"]


class BayesianVAE(nn.Module):
    r"""A variational autoencoder whose decoder's weights are latent variables too.

    .. math::
        w \sim N(0, \sigma^2 I), \qquad z_n \sim \mathrm{prior}, \qquad
        x_n \mid z_n, w \sim \mathrm{likelihood}(\mathrm{decoder}_w(z_n)); \qquad
        q(w, z \mid x) = N(w; m, \mathrm{diag}(v)) \prod_n q(z_n \mid x_n)

    `model` and `guide` are ordinary Pyro functions of x (B, P). Every parameter of the decoder is a global site outside
    the plate "data", named after it ("decoder.layers.0.weight"); the guide is Pyro's `AutoNormal` for these, started at
    the decoder's present weights, then the VAE's own. Fit it with `inference.fit_svi`. The decoder itself is neither
    trained nor changed; the VAE's encoder, and what its prior and likelihood learn, are trained in place.

    Args:
        vae: variational autoencoder. Its decoder must not keep running statistics.
        scale: sigma, the standard deviation of every weight under the prior.
        init_scale: standard deviation of every weight under the guide at the start.

    Raises:
        ValueError: a scale is not positive, or the decoder has no parameters or keeps running statistics.

    References:
        Kingma & Welling, Auto-Encoding Variational Bayes, 2014, appendix F, https://arxiv.org/abs/1312.6114

    Example:
        >>> from inference.families import MeanField
        >>> from pyro_vae.likelihoods import Binomial
        >>> from pyro_vae.networks import MLP
        >>> from pyro_vae.priors import StandardNormal
        >>> parts = {"family": MeanField(2), "encoder": MLP(64, 8, 4), "decoder": MLP(2, 8, 64)}
        >>> bayes = BayesianVAE(VAE(prior=StandardNormal(2), likelihood=Binomial(16), **parts))
        >>> {name: tuple(draws.shape) for name, draws in bayes.draw_weights(3, seed=0).items()}["decoder.layers.2.bias"]
        (3, 64)
    """

    def __init__(self, vae: VAE, *, scale: float = 1.0, init_scale: float = 0.01) -> None:
        super().__init__()
        require_kind("vae", vae, VAE)
        for name, value in (("scale", scale), ("init_scale", init_scale)):
            if not (is_number(value) and value > 0):
                raise ValueError(f"{name}: expected a positive standard deviation; got {value!r}.")
        _require_plain(vae.decoder)
        self.vae = vae
        self.scale = float(scale)
        # The VAE once more, with a decoder that takes its weights from outside; in a tuple, so that it is no submodule.
        self._given_weights = (copy.copy(vae), _Weighted(vae.decoder))
        start = {f"decoder.{name}": weight.detach().clone() for name, weight in vae.decoder.named_parameters()}
        self.weights_guide = AutoNormal(
            self._weights, init_loc_fn=init_to_value(values=start), init_scale=float(init_scale)
        )
        # Run once, it makes its parameters: a state dict can be loaded before the first step.
        with private_store(), own_random_state(), poutine.block():
            self._named_guide()()

    def model(self, x: Float[Tensor, "B P"]) -> Float[Tensor, "*S B P"]:
        """The generative model: samples the weights, then "z", and observes "x" in the plate "data".

        Under an enclosing plate of particles there is a decoder for each.

        Args:
            x: data, (B, P).

        Raises:
            ValueError: as `VAE.model`.
        """
        weights = self._weights()
        vae, decoder = self._given_weights
        # As the VAE is now: parts of it may have been replaced.
        vae.__dict__.update(self.vae.__dict__, _modules={**self.vae._modules, "decoder": decoder})
        with decoder.at({name.removeprefix("decoder."): value for name, value in weights.items()}, num_rows=len(x)):
            return vae.model(x)

    def guide(self, x: Float[Tensor, "B P"]) -> Float[Tensor, "*S B D"]:
        """The variational posterior: samples the weights, then "z" in the plate "data".

        Args:
            x: data, (B, P).

        Raises:
            ValueError: the VAE has no encoder.
        """
        if self.vae.guide is None:
            raise ValueError(
                "guide: expected a VAE with an encoder; got encoder=None. Pass BayesianVAE a VAE with family= and "
                "encoder=, or set vae.guide = Amortized(family, encoder)."
            )
        self._named_guide()()
        return self.vae.guide(x)

    @torch.no_grad()
    def draw_weights(self, num_draws: int, seed: int | None = None) -> dict[str, Float[Tensor, "M ..."]]:
        """Draws of the decoder's weights from the guide, to be passed as `given=`.

        Args:
            num_draws: M.
            seed: of these draws alone; torch's global generators are left as they were. None: one from them.

        Returns:
            For each parameter of the decoder, by its site's name, M draws: (M, *shape).

        Raises:
            ValueError: `num_draws` is not a positive integer, or `seed` not a non-negative one.
        """
        count = check_size("draw_weights", "num_draws", num_draws)
        with seeded(resolve_seed(seed)), private_store(self.model), poutine.block():
            draws = [self._named_guide()() for _ in range(count)]
        return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}

    def _weights(self) -> dict[str, Tensor]:
        """Sample every weight from the prior, outside any plate of data."""
        weights = {}
        for name, weight in self.vae.decoder.named_parameters():
            prior = dist.Normal(torch.zeros_like(weight), self.scale).to_event(weight.dim())
            weights[f"decoder.{name}"] = pyro.sample(f"decoder.{name}", prior)
        return weights

    def _named_guide(self) -> AutoNormal:
        """The guide of the weights, under a name that no copy of this instance has: names are keys of Pyro's store."""
        name = f"{unique_name(self)}.weights"
        if self.weights_guide._pyro_name != name:
            _rename(self.weights_guide, name)
        return self.weights_guide

    def __getstate__(self) -> object:
        for weight in self.parameters():
            # Pyro hangs a weak reference, which pickle refuses, on every parameter, and does so anew at each use.
            vars(weight).pop("unconstrained", None)
        return super().__getstate__()

    def extra_repr(self) -> str:
        """The prior's scale."""
        return f"scale={self.scale:g}"


class _Weighted(nn.Module):
    """A decoder called with weights from outside; its own stay as they are."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        # In a tuple: registered, its parameters would be trained as the model's.
        self._decoder = (decoder,)
        self._weights: Mapping[str, Tensor] = {}
        self._num_rows = 0

    @contextmanager
    def at(self, weights: Mapping[str, Tensor], *, num_rows: int) -> Iterator[None]:
        """Use these weights inside, for minibatches of so many rows."""
        self._weights, self._num_rows = weights, num_rows
        try:
            yield
        finally:
            self._weights = {}

    def forward(self, z: Float[Tensor, "R D"]) -> Float[Tensor, "R O"]:
        """The decoder's output; with draws of the weights on the left, one after the other, rows belong to draws."""
        (decoder,) = self._decoder
        flat = {name: self._weights[name].reshape(-1, *weight.shape) for name, weight in decoder.named_parameters()}
        num_draws = len(next(iter(flat.values())))
        if num_draws > 1 and len(z) != num_draws * self._num_rows:
            raise ValueError(
                f"site 'z': expected one particle for each of the {num_draws} draws of the decoder's weights, "
                f"{num_draws} x {self._num_rows} rows; got {len(z)}. Sample both inside the plate of particles, or "
                "condition on one draw (inference.conditioned)."
            )
        # One call a draw, not vmap: a user's decoder may be anything that runs.
        outputs = [
            functional_call(decoder, {**_buffers(decoder), **{name: draws[s] for name, draws in flat.items()}}, (rows,))
            for s, rows in enumerate(z.chunk(num_draws))
        ]
        return outputs[0] if num_draws == 1 else torch.cat(outputs)


def _buffers(decoder: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in decoder.named_buffers()}


def _require_plain(decoder: nn.Module) -> None:
    if not any(True for _ in decoder.parameters()):
        raise ValueError(
            f"decoder: expected parameters to put a prior on; {type(decoder).__name__} has none. Use the VAE itself."
        )
    for name, module in decoder.named_modules():
        if getattr(module, "running_mean", None) is not None:
            raise ValueError(
                f"decoder: expected no running statistics, which belong to one set of weights; '{name}' "
                f"({type(module).__name__}) keeps some. Replace it by layer norm."
            )


def _rename(module: Any, name: str) -> None:  # noqa: ANN401
    module._pyro_name = name
    for key, child in module._modules.items():
        if isinstance(child, PyroModule):
            _rename(child, f"{name}.{key}")
