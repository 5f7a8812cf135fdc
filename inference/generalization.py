"""Gaps beside gaps: do they grow on held-out data, and are they the encoder's or the model's?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from inference.batches import Data, require_fixed
from inference.counts import require_kind
from inference.gaps import measure_gaps
from inference.noise import derive_seed, resolve_seed
from inference.results import Gaps, Generalization, SimulatedGaps
from inference.simulation import simulate, site_for_any_x

__all__ = ["generalization", "simulated_gaps"]


def generalization(training: Gaps, test: Gaps) -> Generalization:
    r"""How much larger each gap is on held-out data than on the data trained on.

    .. math::
        \text{test gap} = \text{training gap} + \text{generalization}

    The error of the generalization adds those of the two gaps in squares: the datapoints are different ones. Of two
    records measured with one seed the draws are not; the Monte Carlo error is then an over-estimate, mostly.

    Args:
        training: what `measure_gaps` found at datapoints trained on.
        test: what it found at held-out ones, at the same model and guide and with the same settings.

    Returns:
        Both, and their difference; printing it shows one line a gap.

    Raises:
        ValueError: the records are of different families, or were measured with different settings.
    """
    _require_comparable(training, test)
    return Generalization(training=training, test=test)


def simulated_gaps(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Data,
    *,
    num_simulations: int | None = None,
    site: str | None = None,
    seed: int | None = None,
    **options: Any,  # noqa: ANN401
) -> SimulatedGaps:
    """Gaps of the data beside those of data simulated from the model: is the encoder bad, or the model misspecified?

    On data that the model itself draws the model is right, so whatever gap the guide has there is the guide's. What
    differs on real data comes with x that the model would not draw.

    Args:
        model: Pyro model, one that can be simulated (see `simulate`).
        guide: Pyro guide from x to z: `Amortized`, or written by hand.
        data: (N, P) real datapoints, each with a fixed x; held-out ones, unless the guide was not fitted to them.
        num_simulations: datapoints to simulate; by default N.
        site: name of the latent site; read off the guide by default.
        seed: of all draws.
        options: of `measure_gaps`, for both.

    Returns:
        Both records; printing them shows a table and what to read off it.

    Raises:
        ValueError: the guide is `Local`, the model cannot be simulated, `log_evidence` is given, or `measure_gaps`
            refuses the data.

    Example:
        >>> import torch
        >>> from inference import Amortized, MeanField, Search
        >>> from pyro_vae.linear import LinearGaussian
        >>> exact = LinearGaussian(torch.eye(2), torch.zeros(2), 1.0)
        >>> guide = Amortized(MeanField(2), torch.nn.Linear(2, 4))
        >>> quick = {"search": Search(max_rounds=1), "annealing": None}
        >>> both = simulated_gaps(exact.model, guide, torch.ones(5, 2), num_simulations=3, seed=0, **quick)
        >>> len(both.real), len(both.simulated)
        (5, 3)
    """
    seed = resolve_seed(seed)
    num_data = require_fixed(data, purpose="simulated_gaps")
    for name in ("log_evidence", "given"):
        if options.get(name) is not None:
            raise ValueError(f"{name}: expected None, as simulated data have another log p(x). Leave it out.")
    site = site_for_any_x(guide, data, site=site)
    _, x = simulate(
        model,
        data,
        num_data=num_data if num_simulations is None else num_simulations,
        site=site,
        seed=derive_seed(seed, "simulated gaps"),
    )
    options |= {"site": site}
    return SimulatedGaps(
        real=measure_gaps(model, guide, data, seed=seed, **options),
        # Draws of their own, so that the errors are independent.
        simulated=measure_gaps(model, guide, x, seed=derive_seed(seed, "simulated"), **options),
    )


def _require_comparable(training: Gaps, test: Gaps) -> None:
    require_kind("training", training, Gaps)
    require_kind("test", test, Gaps)
    if training.family != test.family:
        raise ValueError(
            f"test: expected gaps of the guide that the training gaps are of, in {training.family}; got "
            f"{test.family}. Measure both with the same model and guide."
        )
    for name in ("num_draws", "num_evidence_draws", "tol", "search", "annealing"):
        one, other = training.settings.get(name), test.settings.get(name)
        if one != other:
            raise ValueError(
                f"test: expected gaps measured with the settings of the training gaps, {name} = {one!r}; got "
                f"{other!r}. What is left of either bound must be the same in both."
            )
