"""What several verbs ask for: data, parts, training."""

from __future__ import annotations

from dataclasses import dataclass, fields
from inspect import cleandoc
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import tyro

from inference import SGD, Adam, Constant, Cosine, RobbinsMonro, Staircase, Training
from inference.objectives import Loss
from pyro_vae.engines import OBJECTIVES
from pyro_vae.parts import Parts, subcommands

__all__ = ["DataOptions", "ObjectiveOption", "PartsOptions", "TrainingOptions"]

Optimizer = (
    Annotated[Adam, tyro.conf.subcommand(name="adam", description="Adam, with one step size for all parameters.")]
    | Annotated[
        SGD, tyro.conf.subcommand(name="sgd", description="Stochastic gradient descent, with momentum if wanted.")
    ]
)
Schedule = (
    Annotated[Constant, tyro.conf.subcommand(name="constant", description="The same step size throughout.")]
    | Annotated[
        RobbinsMonro,
        tyro.conf.subcommand(name="robbins-monro", description="(1 + step / delay) ** -exponent, which converges."),
    ]
    | Annotated[Cosine, tyro.conf.subcommand(name="cosine", description="Down to nothing along half a cosine.")]
    | Annotated[
        Staircase,
        tyro.conf.subcommand(name="staircase", description="Down by a factor in stages, each longer than the last."),
    ]
)

if TYPE_CHECKING:
    ObjectiveOption = Loss | None
else:
    # `objective:iwae --objective.num-particles 8`; none: what the engine minimises by itself.
    _named = [
        Annotated[kind, tyro.conf.subcommand(name=name, description=cleandoc(kind.__doc__).split("\n")[0])]
        for name, kind in OBJECTIVES.items()
    ]
    ObjectiveOption = Union[(*_named, None)]


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Training):
    """The settings record, with the optimisers and schedules that the command line can name."""

    optimizer: Optimizer = Adam()
    schedule: Schedule = Constant()
    callbacks: tyro.conf.Suppress[tuple[()]] = ()


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The data, their split and their binarization.

    Attributes:
        name: digits, mnist, fashion-mnist, kmnist, emnist-balanced, emnist-letters, emnist-digits, cifar10, or a path
            that ends in .npy, .npz, .csv or .parquet.
        binarize: none; fixed: one draw with probability value / maximum; dynamic: a new draw at every visit (SVI only).
        binarize_seed: seed of the fixed draw; leave it alone to be comparable between runs.
        split_seed: seed of the random split; likewise.
        num_validation: size of the validation split.
        num_test: size of the test split.
        missing: refuse NaN, or keep it as unobserved; the likelihood then wants --likelihood.mask.
        key: array of an .npz file that holds x, where it is not called x.
        label_key: array of an .npz file that holds labels.
        columns: columns of a table that make up x; all but the label by default.
        label: column of a table that holds labels.
        separator: character between the columns of a .csv file, such as ';', '|' or tab; a comma by default.
        decimal: decimal mark of a .csv file, a point by default.
        stream: read rows of an .npy file when they are needed; by default where it is larger than 1 GiB.
        standardize: fit every column minus its mean, divided by its standard deviation, both of the training split;
            log densities, draws and pictures stay in the columns' own units. For likelihoods of real numbers.
        dtype: float64 for data and model of more than seven digits; by default float32.
    """

    name: Annotated[str, tyro.conf.arg(name="data", prefix_name=False)] = "digits"
    binarize: Literal["none", "fixed", "dynamic"] = "none"
    binarize_seed: int = 0
    split_seed: int = 0
    num_validation: int | None = None
    num_test: int | None = None
    missing: Literal["refuse", "keep"] = "refuse"
    key: str | None = None
    label_key: str | None = None
    columns: tuple[str, ...] | None = None
    label: str | None = None
    separator: str | None = None
    decimal: Literal[".", ","] | None = None
    stream: bool | None = None
    standardize: bool = False
    dtype: Annotated[Literal["float32", "float64"] | None, tyro.conf.arg(prefix_name=False)] = None

    def words(self) -> list[str]:
        """What to type for these data; defaults are left out.

        Example:
            >>> DataOptions(name="mnist", binarize="fixed").words()
            ['--data', 'mnist', '--data.binarize', 'fixed']
        """
        said = ["--data", self.name]
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if value != field.default:
                said += ["--dtype" if field.name == "dtype" else f"--data.{field.name.replace('_', '-')}"]
                if field.default is False:
                    # A flag, without a value.
                    continue
                said += map(str, value) if isinstance(value, tuple) else [str(value)]
        return said

    def load_arguments(self) -> dict[str, Any]:
        """Arguments of `pyro_vae.load`."""
        values = dict(vars(self))
        return {"name_or_path": values.pop("name"), **values}


@dataclass(frozen=True)
class PartsOptions(Parts):
    """The parts of a VAE, where the data may choose the likelihood.

    Attributes:
        likelihood: distribution of x given z; none: bernoulli for zeros and ones, binomial for counts.
    """

    likelihood: subcommands("likelihood") | None = None  # type: ignore[valid-type, assignment]
