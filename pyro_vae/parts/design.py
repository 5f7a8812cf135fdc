"""One part of each kind, and the sizes that they share: together they determine a VAE."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from torch.distributions.constraints import Constraint

from inference import families
from inference.families import Family
from inference.guides import Amortized
from inference.supports import is_unconstrained
from pyro_vae.names import did_you_mean
from pyro_vae.networks import check_size
from pyro_vae.parts.choice import KINDS, Options, build, from_config, options, subcommands, to_config
from pyro_vae.parts.signatures import needs

__all__ = ["Parts", "Sizes", "build_family"]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the data, and the size chosen for z, fix for every part.

    Kept beside the options in a run's `config.json`: together they determine every module.

    Args:
        num_latents: size of the latent vector that the decoder reads. A prior may hold more: scales, an upper layer.
        num_values: P, values in a datapoint.
        image_shape: shape of a datapoint that is an image, else None.
        max_value: largest value in the data, where known.
        num_levels: L, where the values lie on the grid 0, step, ..., (L - 1) step.
        level_step: that step.

    Raises:
        ValueError: a size is not a positive integer.
    """

    num_latents: int
    num_values: int
    image_shape: tuple[int, ...] | None = None
    max_value: float | None = None
    num_levels: int | None = None
    level_step: float | None = None

    def __post_init__(self) -> None:
        check_size("Sizes", "num_latents", self.num_latents)
        check_size("Sizes", "num_values", self.num_values)
        if self.image_shape is not None:
            # JSON has no tuples.
            object.__setattr__(self, "image_shape", tuple(self.image_shape))


def build_family(chosen: Options, num_latents: int, support: Constraint) -> Family:
    """A family for a latent vector of this size, pushed through a bijection where the vector is constrained.

    Args:
        chosen: the family and its options.
        num_latents: D, size of z.
        support: where z lives.

    Raises:
        ValueError: the family refuses its arguments, or no bijection onto the support is known.
    """
    family = build(chosen, {"num_latents": num_latents})
    return family if is_unconstrained(support) else families.Constrained(family, support)


if TYPE_CHECKING:
    # What tyro needs is made at run time; a type checker sees the base class.
    _Prior: TypeAlias = Options
    _Likelihood: TypeAlias = Options
    _Family: TypeAlias = Options
    _Decoder: TypeAlias = Options
    _Encoder: TypeAlias = Options
else:
    _Prior, _Likelihood, _Family, _Decoder, _Encoder = map(subcommands, KINDS)


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of one VAE.

    As a field of a tyro command line, annotated `tyro.conf.arg(name="")`, it offers `prior:...`, `likelihood:...`,
    `family:...`, `decoder:...` and `encoder:...`, in any order, each with its options.

    Args:
        prior: distribution of z.
        likelihood: distribution of x given the decoder's output.
        family: variational family.
        decoder: network from z to the likelihood's parameters.
        encoder: network from x to the family's parameters; None for no guide.

    Example:
        >>> from pyro_vae.vae import VAE
        >>> parts = Parts(likelihood=options("likelihood", "binomial"))
        >>> vae = VAE(**parts.build(Sizes(num_latents=8, num_values=64, max_value=16.0)))
        >>> vae.likelihood, vae.decoder
        (Binomial(16), MLP(8, 200, 200, 64, activation='elu'))
    """

    prior: _Prior = options("prior", "standard-normal")
    likelihood: _Likelihood = options("likelihood", "bernoulli")
    family: _Family = options("family", "mean-field")
    decoder: _Decoder = options("decoder", "mlp")
    encoder: _Encoder | None = options("encoder", "mlp")

    def build(self, sizes: Sizes) -> dict[str, Any]:
        """The modules, as the keyword arguments of `VAE`.

        Their initial weights are drawn from torch's global generator.

        Args:
            sizes: what the data and the latent size fix.

        Raises:
            ValueError: a part needs something that is not there, or refuses its arguments.
        """
        context = {field.name: getattr(sizes, field.name) for field in dataclasses.fields(sizes)}
        likelihood = build(self.likelihood, context)
        # Before the family, which follows its size and support; after the guide, where it is made from one.
        prior = None if needs(self.prior._part, "guide") else build(self.prior, context)
        family = (
            build(self.family, context)
            if prior is None
            else build_family(self.family, prior.num_latents, prior().support)
        )
        decoder = build(
            self.decoder,
            context | {"num_inputs": sizes.num_latents, "num_outputs": sizes.num_values * likelihood.num_params},
        )
        encoder = guide = None
        if self.encoder is not None:
            encoder = build(self.encoder, context | {"num_inputs": sizes.num_values, "num_outputs": family.num_params})
            guide = Amortized(family, encoder)
        if prior is None:
            prior = build(self.prior, context | {"guide": guide})
        return {"prior": prior, "likelihood": likelihood, "family": family, "decoder": decoder, "encoder": encoder}

    def to_config(self) -> dict[str, Any]:
        """The choices as a dictionary that JSON can hold: one entry a kind."""
        chosen = {kind: getattr(self, kind) for kind in KINDS}
        return {kind: None if part is None else to_config(part) for kind, part in chosen.items()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The choices that `to_config` wrote. Kinds left out take their defaults.

        Args:
            config: `{"prior": {"part": name, ...}, ...}`; `"encoder": None` for no guide.

        Raises:
            ValueError: a kind, part or option is unknown, or a value has the wrong type.
        """
        for kind in config:
            if kind not in KINDS:
                raise ValueError(f"parts: expected {', '.join(KINDS)}; got {kind!r}.{did_you_mean(kind, KINDS)}")
        chosen: dict[str, Any] = {}
        for kind in KINDS:
            if kind in config:
                no_encoder = kind == "encoder" and config[kind] is None
                chosen[kind] = None if no_encoder else from_config(kind, config[kind])
        return cls(**chosen)
