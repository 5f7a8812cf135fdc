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

from pyro_vae.parts.choice import (
    KINDS,
    Kind,
    Options,
    build,
    catalog,
    from_config,
    options,
    subcommands,
    to_config,
)
from pyro_vae.parts.design import Parts, Sizes, build_family

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
