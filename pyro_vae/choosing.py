"""The likelihood that data call for, and whether data and a likelihood go together."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from torch import Tensor
from torch.distributions.constraints import Constraint

from inference.supports import is_unconstrained
from pyro_vae.data import Dataset, Split, say_scales
from pyro_vae.likelihoods import Likelihood
from pyro_vae.parts import Parts, catalog, options, to_config

__all__ = ["choose_likelihood", "in_file_numbers", "require_support", "say_units"]


def choose_likelihood(parts: Parts, dataset: Dataset) -> Parts:
    """The parts with a likelihood: their own, else Bernoulli for zeros and ones and binomial for counts.

    Where values are missing, the likelihood chosen here leaves them out.

    Args:
        parts: a design, perhaps without a likelihood.
        dataset: what it shall fit.

    Raises:
        ValueError: the data call for none of the two: the choice is the user's.
    """
    if dataset.standardization is not None:
        _require_real(parts)
    if parts.likelihood is not None:
        return parts
    low, high = dataset.min_value, dataset.max_value
    if low < 0 or not all(
        bool(((x == x.round()) | x.isnan()).all())
        for split in (dataset.train, dataset.validation, dataset.test)
        for x in _blocks(split.fix())
    ):
        if dataset.is_gray:
            low, high = round(low * dataset.divisor), round(high * dataset.divisor)
            raise ValueError(
                f"likelihood: {dataset.name!r} holds 8-bit integers, from {low} to {high}: expected a choice. "
                f"{_keep_counts(dataset)} Gray levels: binarize them (--data.binarize fixed), or choose "
                "likelihood:discretized-logistic or, as real numbers, likelihood:gaussian-shared-scale."
            )
        raise ValueError(
            f"likelihood: {dataset.name!r} holds values between whole numbers, from {low:g} to {high:g}: "
            "expected a choice. Binarize gray values (--data.binarize fixed), or take them as real numbers "
            "(likelihood:gaussian-shared-scale)."
        )
    name = "bernoulli" if high <= 1 else "binomial"
    return dataclasses.replace(parts, likelihood=options("likelihood", name, mask=dataset.has_missing))


def _require_real(parts: Parts) -> None:
    """Refuse a likelihood of standardized data that is none of real numbers, before anything is made of them."""
    if parts.likelihood is None or not _is_real(parts):
        came = "none" if parts.likelihood is None else f"likelihood:{to_config(parts.likelihood)['part']}"
        raise ValueError(
            f"likelihood: expected one of real numbers, since standardized values are real numbers; got {came}. Choose "
            "one (likelihood:gaussian-output-scale, a noise scale for each column), or leave standardize "
            "(--data.standardize) out."
        )


def _is_real(parts: Parts) -> bool:
    support = None if parts.likelihood is None else getattr(parts.likelihood._part, "support", None)
    return isinstance(support, Constraint) and is_unconstrained(support)


def say_units(dataset: Dataset, *designs: Parts) -> None:
    """Log whole numbers whose scales are far apart, or far from 1, where a likelihood is one of real numbers.

    Of data with other values `load` has spoken.

    Args:
        dataset: the data that are going to be fitted.
        designs: designs that are fitted to them.
    """
    if any(map(_is_real, designs)) and dataset.standardization is None:
        say_scales(dataset, counts=True)


def require_support(likelihood: Likelihood, dataset: Dataset) -> None:
    """Refuse data outside the support; the classes that the advice names are named as a command line does, too.

    Args:
        likelihood: the likelihood.
        dataset: the data; every row of every split is looked at.

    Raises:
        ValueError: a value is outside the support.
    """
    try:
        for split in (dataset.train, dataset.validation, dataset.test):
            for x in _blocks(split.fix()):
                likelihood.check(x)
    except ValueError as error:
        # What the advice says is of the numbers that the likelihood saw, which are not those of a file of 8 bits.
        text = in_file_numbers(str(error), dataset)
        advice = text.removeprefix(repr(likelihood))
        named = [name for name, part in catalog("likelihood").items() if re.search(rf"\b{part.__name__}\b", advice)]
        words = ", ".join(f"likelihood:{name}" for name in named)
        raise ValueError(f"{text}{f' On the command line: {words}.' if named else ''}") from error


def in_file_numbers(text: str, dataset: Dataset) -> str:
    """An error on a value of x, with the number that the file holds and the way to keep counts.

    Args:
        text: the error; one that names no value of x stays as it is.
        dataset: the data; what is no 8-bit data has the file's own numbers already.
    """
    if not dataset.is_gray:
        return text

    def shown(match: re.Match[str]) -> str:
        return f"{match[0]} (the 8-bit {float(match[1]) * dataset.divisor:.0f}, divided by {dataset.divisor:g})"

    told, found = re.subn(r"(?:\] = |largest value is )([0-9.e+-]*[0-9])", shown, text, count=1)
    return f"{told} {_keep_counts(dataset)}" if found else text


def _keep_counts(dataset: Dataset) -> str:
    """Why counts in 8-bit integers are not what is fitted, and what to do."""
    return (
        f"8-bit integers are taken for gray levels and divided by {dataset.divisor:g}: if they are counts, save a "
        'wider integer type, x.astype("int64").'
    )


def _blocks(split: Split) -> Iterator[Tensor]:
    """All rows, a few thousand at a time: a split may be larger than memory."""
    for start in range(0, len(split), 4096):
        yield split[start : start + 4096]
