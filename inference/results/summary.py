"""A mean over datapoints and its two standard errors, and how they are printed."""

from __future__ import annotations

import math
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

__all__ = ["HEADER", "difference", "fixed", "one_line", "summarise", "table_row"]

HEADER = f"{'nats per datapoint':<28}{'mean':>12}{'se':>10}{'mc_se':>10}"


def summarise(value: Float[Tensor, " N"], se: Float[Tensor, " N"]) -> dict[str, float]:
    r"""A mean over datapoints with its two standard errors.

    .. math::
        \mathrm{se} = \mathrm{sd}_n(v_n) / \sqrt N, \qquad \mathrm{mc\_se} = \sqrt{\textstyle\sum_n \mathrm{se}_n^2} / N

    `se` is what another sample of datapoints would change (it contains the Monte Carlo noise), `mc_se` what another
    seed would.

    Args:
        value: (N,) one value a datapoint.
        se: (N,) its Monte Carlo standard error, in the same unit.

    Returns:
        `{"mean", "se", "mc_se"}`; NaN where they are not defined.

    Example:
        >>> import torch
        >>> summarise(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]))
        {'mean': 2.0, 'se': 1.0, 'mc_se': 0.0}
    """
    num_data = value.numel()
    if not num_data:
        return {"mean": math.nan, "se": math.nan, "mc_se": math.nan}
    spread = float(value.double().std(correction=1)) / math.sqrt(num_data) if num_data > 1 else math.nan
    return {
        "mean": float(value.double().mean()),
        "se": spread,
        "mc_se": float(se.double().square().sum().sqrt()) / num_data,
    }


def difference(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """One summarised mean less another's, over other datapoints, and its two errors: the two are independent.

    Example:
        >>> difference({"mean": 3.0, "se": 0.3, "mc_se": 0.0}, {"mean": 1.0, "se": 0.4, "mc_se": 0.0})
        {'mean': 2.0, 'se': 0.5, 'mc_se': 0.0}
    """
    return {
        "mean": one["mean"] - other["mean"],
        "se": math.hypot(one["se"], other["se"]),
        "mc_se": math.hypot(one["mc_se"], other["mc_se"]),
    }


def fixed(value: float, width: int, digits: int) -> str:
    """A number set to the right of its column, with a blank before it whatever its size.

    One that is too long loses digits behind the point, and then takes a power of ten.

    Args:
        value: the number.
        width: characters of the column, the blank included.
        digits: digits behind the point, where there is room for them.

    Example:
        >>> fixed(-4.5, 12, 4), fixed(-8295092.6871, 12, 4), fixed(16162901110.3026, 10, 4)
        ('     -4.5000', ' -8295092.69', ' 1.616e+10')
    """
    forms = (f"{value:.{kept}{kind}}" for kind, most in (("f", digits), ("e", 4)) for kept in range(most, -1, -1))
    return f"{next((text for text in forms if len(text) < width), f' {value:.0e}'):>{width}}"


def table_row(label: str, mean: float, se: float, mc_se: float) -> str:
    """A line under `HEADER`."""
    return f"{label:<28}{fixed(mean, 12, 4)}{fixed(se, 10, 4)}{fixed(mc_se, 10, 4)}"


def one_line(record: object, **shown: object) -> str:
    """What a record is, for a prompt or a debugger: its class, and what is shown of it.

    Example:
        >>> one_line(object(), N=3)
        'object(N=3)'
    """
    return f"{type(record).__name__}({', '.join(f'{name}={value}' for name, value in shown.items())})"
