"""One part by its name, with its options: from and to JSON and the command line, and made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_type_hints

import tyro
from torch import nn

from inference import families
from pyro_vae import likelihoods, networks, priors
from pyro_vae.names import did_you_mean, kebab
from pyro_vae.parts.signatures import descriptions, factory, parameters, summary
from pyro_vae.parts.values import coerce

__all__ = ["KINDS", "Kind", "Options", "build", "catalog", "from_config", "options", "subcommands", "to_config"]

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
        kebab(name): value
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
        raise ValueError(f"{kind}: expected one of {', '.join(parts)}; got {part!r}.{did_you_mean(part, parts)}")
    options_class = _options_class(kind, parts[part])
    hints = {field.name: field.type for field in dataclasses.fields(options_class)}
    for name in values:
        if name not in hints:
            known = f"expected one of {', '.join(hints)}" if hints else "it has no options"
            raise ValueError(f"{kind} {part}: {known}; got {name!r}.{did_you_mean(name, hints)}")
    return options_class(
        **{name: coerce(value, hints[name], f"{kind} {part}: {name}") for name, value in values.items()}
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
        Annotated[_options_class(kind, part), tyro.conf.subcommand(name=name, description=summary(part))]
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
    return {"part": kebab(chosen._part.__name__)} | {
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
    for parameter in parameters(chosen._part):
        if parameter.kind is parameter.KEYWORD_ONLY:
            continue
        value = context.get(parameter.name)
        if value is None:
            if parameter.default is parameter.empty:
                known = ", ".join(name for name, known in context.items() if known is not None)
                raise ValueError(
                    f"{chosen._kind} {kebab(chosen._part.__name__)}: needs {parameter.name}, which is not known here; "
                    f"known: {known}. "
                    f"Choose another {chosen._kind}."
                )
            value = parameter.default
        positional.append(value)
    return factory(chosen._part)(*positional, **{f.name: getattr(chosen, f.name) for f in dataclasses.fields(chosen)})


def _options_class(kind: Kind, part: type[nn.Module]) -> type[Options]:
    if (kind, part) in _made:
        return _made[kind, part]
    make = factory(part)
    hints = get_type_hints(make if make is not part else part.__init__)
    described = descriptions(part.__doc__) | descriptions(make.__doc__)
    fields: list[tuple[str, Any, Any]] = []
    for parameter in parameters(part):
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
    made.__doc__ = "\n".join([summary(part), *(["", "Args:", *arguments] if arguments else [])])
    made.__module__ = __name__
    made._kind, made._part = kind, part
    _made[kind, part] = made
    return made
