"""One mechanism by which the command line, `config.json` and studies name, configure and build every part.

A part is a public class in the file of its kind (`priors`, `likelihoods`, `networks`, `inference.families`). Of its
constructor, or of its classmethod `from_context` where it has one, the positional arguments are supplied by name from
the context (the sizes, and what else follows from the data and the other parts), and the keyword-only arguments are its
options, each with a default. So a new class needs no further code:

* the options become a frozen dataclass, a subclass of `Options`, with the docstring's summary and argument descriptions
  as its help;
* `subcommands(kind)` is the type from which tyro makes `likelihood:binomial --likelihood.total-count 16`;
* `to_config` and `from_config` go to and from JSON: `{"part": "binomial", "total_count": 16}`;
* `build` makes the module; `Parts` holds one of each kind and builds them all.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping
from difflib import get_close_matches
from types import ModuleType, NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    Self,
    TypeAlias,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import tyro
from torch import nn
from torch.distributions.constraints import Constraint

from inference import families
from inference.families import Family
from inference.guides import Amortized
from inference.supports import is_unconstrained
from pyro_vae import likelihoods, networks, priors
from pyro_vae.networks import check_size

__all__ = [
    "KINDS",
    "Kind",
    "Options",
    "Parts",
    "Sizes",
    "build",
    "build_family",
    "catalog",
    "from_config",
    "options",
    "subcommands",
    "to_config",
]

Kind = Literal["prior", "likelihood", "family", "decoder", "encoder"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_ROOMS: dict[str, tuple[ModuleType, type[nn.Module]]] = {
    "prior": (priors, priors.Prior),
    "likelihood": (likelihoods, likelihoods.Likelihood),
    "family": (families, families.Family),
    "decoder": (networks, networks.Network),
    "encoder": (networks, networks.Network),
}

# One dataclass a part: instances made at different times are compared, and matched to the members of a union.
_made: dict[tuple[Kind, type[nn.Module]], type[Options]] = {}


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of one part. Its subclasses, one for each part, are made from the part's signature."""

    _kind: ClassVar[Kind]
    _part: ClassVar[type[nn.Module]]

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made at run time: there is no module attribute for pickle to find it under.
        return from_config, (self._kind, to_config(self))


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the data, and the size chosen for z, fix for every part.

    Kept beside the options in a run's `config.json`: together they determine every module.

    Args:
        num_latents: size of the latent vector that the decoder reads. A prior may hold more: scales, an upper layer.
        num_values: P, values in a datapoint.
        image_shape: shape of a datapoint that is an image, else None.
        max_value: largest value in the training data, where known.
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


def catalog(kind: Kind) -> dict[str, type[nn.Module]]:
    """The parts of a kind by name, in the order of their file.

    Args:
        kind: "prior", "likelihood", "family", "decoder" or "encoder".

    Raises:
        ValueError: there is no such kind.

    Example:
        >>> list(catalog("likelihood"))[:2]
        ['bernoulli', 'binomial']
    """
    if kind not in _ROOMS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}; got {kind!r}.")
    room, base = _ROOMS[kind]
    return {
        _kebab(name): value
        for name, value in vars(room).items()
        if isinstance(value, type)
        and issubclass(value, base)
        and value is not base
        and not name.startswith("_")
        # Defined in this file, or in a file of this folder: not what it imports from elsewhere.
        and f"{value.__module__}.".startswith(f"{room.__name__}.")
        and kind in getattr(value, "roles", {kind})
    }


def options(kind: Kind, part: str, /, **values: object) -> Options:
    """The options of one part, with defaults for what is not given.

    Args:
        kind: kind of part.
        part: its name in `catalog(kind)`.
        **values: options to set.

    Raises:
        ValueError: the part or an option is unknown, or a value has the wrong type.

    Example:
        >>> options("decoder", "mlp", hidden=[64])
        MLPOptions(hidden=(64,), activation='elu', residual=False, layer_norm=False)
    """
    parts = catalog(kind)
    if part not in parts:
        raise ValueError(f"{kind}: expected one of {', '.join(parts)}; got {part!r}.{_did_you_mean(part, parts)}")
    options_class = _options_class(kind, parts[part])
    hints = {field.name: field.type for field in dataclasses.fields(options_class)}
    for name in values:
        if name not in hints:
            known = f"expected one of {', '.join(hints)}" if hints else "it has no options"
            raise ValueError(f"{kind} {part}: {known}; got {name!r}.{_did_you_mean(name, hints)}")
    return options_class(
        **{name: _coerce(value, hints[name], f"{kind} {part}: {name}") for name, value in values.items()}
    )


def subcommands(kind: Kind) -> Any:
    """The type of a command line field that chooses a part of this kind: a union with one subcommand a part.

    Pass tyro `config=(tyro.conf.CascadeSubcommandArgs,)`, so that other flags may follow a subcommand.

    Args:
        kind: kind of part.

    Example:
        >>> tyro.cli(subcommands("likelihood"), args=["binomial", "--total-count", "16"])
        BinomialOptions(total_count=16, mask=False)
    """
    members = [
        Annotated[_options_class(kind, part), tyro.conf.subcommand(name=name, description=_summary(part))]
        for name, part in catalog(kind).items()
    ]
    return Union[tuple(members)]  # noqa: UP007 - the members are known at run time


def to_config(chosen: Options) -> dict[str, Any]:
    """The options as a dictionary that JSON can hold.

    Example:
        >>> to_config(options("encoder", "linear"))
        {'part': 'linear'}
    """
    values = {field.name: getattr(chosen, field.name) for field in dataclasses.fields(chosen)}
    return {"part": _kebab(chosen._part.__name__)} | {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
    }


def from_config(kind: Kind, config: Mapping[str, Any]) -> Options:
    """The options that `to_config` wrote. Options left out take their defaults.

    Args:
        kind: kind of part.
        config: `{"part": name, option: value, ...}`.

    Raises:
        ValueError: the part or an option is unknown, or a value has the wrong type.
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("part"), str):
        raise ValueError(f'{kind}: expected {{"part": name, ...}}; got {config!r}.')
    return options(kind, config["part"], **{name: value for name, value in config.items() if name != "part"})


def build(chosen: Options, context: Mapping[str, Any]) -> Any:
    """The part as a module.

    Args:
        chosen: the part and its options.
        context: what its positional arguments are taken from, by name: `num_latents`, `num_values`, `num_inputs`,
            `num_outputs`, ...

    Raises:
        ValueError: the part needs something that is not there, or refuses its arguments.
    """
    positional = []
    for parameter in _parameters(chosen._part):
        if parameter.kind is parameter.KEYWORD_ONLY:
            continue
        value = context.get(parameter.name)
        if value is None:
            if parameter.default is parameter.empty:
                known = ", ".join(name for name, known in context.items() if known is not None)
                raise ValueError(
                    f"{chosen._kind} {_kebab(chosen._part.__name__)}: needs {parameter.name}, which is not known here; "
                    f"known: {known}. "
                    f"Choose another {chosen._kind}."
                )
            value = parameter.default
        positional.append(value)
    return _factory(chosen._part)(*positional, **{f.name: getattr(chosen, f.name) for f in dataclasses.fields(chosen)})


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


def _needs(chosen: Options, name: str) -> bool:
    return any(parameter.name == name for parameter in _parameters(chosen._part))


def _factory(part: type[nn.Module]) -> Any:
    return getattr(part, "from_context", part)


def _parameters(part: type[nn.Module]) -> list[inspect.Parameter]:
    parameters = inspect.signature(_factory(part)).parameters.values()
    # A class without a constructor has nn.Module's *args and **kwargs.
    return [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _options_class(kind: Kind, part: type[nn.Module]) -> type[Options]:
    if (kind, part) in _made:
        return _made[kind, part]
    factory = _factory(part)
    hints = get_type_hints(factory if factory is not part else part.__init__)
    described = _descriptions(part.__doc__) | _descriptions(factory.__doc__)
    fields: list[tuple[str, Any, Any]] = []
    for parameter in _parameters(part):
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        if parameter.default is parameter.empty:
            raise TypeError(
                f"{part.__qualname__}: option {parameter.name!r} has no default. Give it one, or make it a size before "
                "the '*'."
            )
        fields.append((parameter.name, hints[parameter.name], dataclasses.field(default=parameter.default)))
    made: Any = dataclasses.make_dataclass(f"{part.__name__}Options", fields, bases=(Options,), frozen=True)
    # tyro reads a command's help off the docstring.
    arguments = [f"    {name}: {described.get(name, '')}" for name, _, _ in fields]
    made.__doc__ = "\n".join([_summary(part), *(["", "Args:", *arguments] if arguments else [])])
    made.__module__ = __name__
    made._kind, made._part = kind, part
    _made[kind, part] = made
    return made


def _summary(part: type[nn.Module]) -> str:
    return inspect.cleandoc(part.__doc__ or part.__name__).split("\n\n")[0].replace("\n", " ").replace("`", "")


def _descriptions(docstring: str | None) -> dict[str, str]:
    """The entries of a docstring's `Args:` section, each on one line."""
    section = re.search(r"^Args:\n((?:[ ]{4}.*\n?|\n)+)", inspect.cleandoc(docstring or "") + "\n", re.MULTILINE)
    entries = re.findall(r"^[ ]{4}(\w+):((?:.*\n)(?:^[ ]{5,}.*\n)*)", section.group(1) if section else "", re.MULTILINE)
    return {name: " ".join(text.split()).replace("`", "") for name, text in entries}


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


def _did_you_mean(name: str, known: Mapping[str, object]) -> str:
    close = get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _coerce(value: object, hint: Any, where: str) -> Any:
    """The value as the type of its option: JSON has lists for tuples, and writes 1.0 as 1."""
    arguments = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        for member in arguments:
            try:
                return _coerce(value, member, where)
            except ValueError:
                continue
        raise ValueError(f"{where}: expected {' or '.join(_type_name(member) for member in arguments)}; got {value!r}.")
    if get_origin(hint) is Literal:
        if value in arguments:
            return value
        names = dict.fromkeys(map(str, arguments))
        raise ValueError(
            f"{where}: expected one of {', '.join(names)}; got {value!r}.{_did_you_mean(str(value), names)}"
        )
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        members = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(members) == len(value):
            pairs = enumerate(zip(value, members, strict=True))
            return tuple(_coerce(item, member, f"{where}[{i}]") for i, (item, member) in pairs)
    elif isinstance(hint, type) and isinstance(value, bool) == (hint is bool):
        if isinstance(value, hint):
            return value
        if hint is float and isinstance(value, int):
            return float(value)
    raise ValueError(f"{where}: expected {_type_name(hint)}; got {value!r}.")


def _type_name(hint: Any) -> str:
    if hint is NoneType:
        return "None"
    return str(hint) if get_args(hint) else hint.__name__


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
        prior = None if _needs(self.prior, "guide") else build(self.prior, context)
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
                raise ValueError(
                    f"parts: expected {', '.join(KINDS)}; got {kind!r}.{_did_you_mean(kind, dict.fromkeys(KINDS))}"
                )
        chosen: dict[str, Any] = {}
        for kind in KINDS:
            if kind in config:
                no_encoder = kind == "encoder" and config[kind] is None
                chosen[kind] = None if no_encoder else from_config(kind, config[kind])
        return cls(**chosen)
