"""How the gaps change over training: a callback that measures them on the same few datapoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inference.batches import Data, require_fixed
from inference.gaps import measure_gaps
from inference.noise import derive_seed, resolve_seed
from inference.results import Gaps
from inference.search import Search
from inference.training import LoopState

__all__ = ["GapTracker", "Tracked"]

# A trend over epochs, on the same datapoints and draws, needs less than a number to be reported.
_QUICK: dict[str, Any] = {
    "num_draws": 200,
    "num_evidence_draws": 500,
    "annealing": None,
    "tol": 0.05,
    "search": Search(max_rounds=3, num_judge_draws=256, num_select_draws=128),
}


class Tracked(NamedTuple):
    """The gaps after an epoch.

    Attributes:
        epoch: epochs finished.
        gaps: of the datapoints that are tracked.
        held_out: of the held-out ones, or None.
    """

    epoch: int
    gaps: Gaps
    held_out: Gaps | None


class GapTracker:
    """A callback of `Training` that measures the gaps on the same datapoints every few epochs.

    Every measurement makes the same draws, so that epochs compare; it runs on a frozen model, and training goes on as
    if nothing had been measured, bit for bit. What it measures are the current parameters, not the best so far.

    Args:
        model: the Pyro model that is trained.
        guide: the Pyro guide that is trained.
        data: (N, P) a few training datapoints, each with a fixed x.
        held_out: (N', P) a few held-out ones, measured too where given.
        every: epochs between measurements.
        seed: of all draws.
        options: of `measure_gaps`, in place of quick ones (200 draws, 500 behind log p(x), no annealing, at most 3
            rounds of search, tol = 0.05).

    Attributes:
        history: the measurements, in order.

    Raises:
        ValueError: `every` is not a positive integer, or data draw x anew at each access.

    Example:
        >>> from inference import Amortized, MeanField, Search, Training, fit_svi
        >>> from pyro_vae.linear import LinearGaussian
        >>> model = LinearGaussian(torch.eye(2), torch.zeros(2), 1.0)
        >>> guide = Amortized(MeanField(2), torch.nn.Linear(2, 4))
        >>> x = torch.randn(64, 2)
        >>> tracker = GapTracker(model.model, guide, x[:3], every=2, search=Search(max_rounds=1))
        >>> fit = fit_svi(model.model, guide, x, training=Training(epochs=4, callbacks=[tracker]), seed=0)
        >>> tracker.table()["epoch"]
        tensor([2, 4])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        data: Data,
        *,
        held_out: Data | None = None,
        every: int = 10,
        seed: int | None = 0,
        **options: Any,  # noqa: ANN401
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every: expected a positive number of epochs; got {every!r}.")
        require_fixed(data, purpose="GapTracker")
        if held_out is not None:
            require_fixed(held_out, name="held_out", purpose="GapTracker")
        self.model, self.guide = model, guide
        self.data, self.held_out = data, held_out
        self.every = every
        self.seed = resolve_seed(seed)
        self.options = _QUICK | options
        self.history: list[Tracked] = []

    def __call__(self, state: LoopState) -> None:
        """Measure, where it is time."""
        if state.epoch % self.every == 0:
            self.measure(state.epoch)

    def measure(self, epoch: int) -> Tracked:
        """Measure now, and keep the result under this number of epochs: 0, for example, before training."""
        gaps = measure_gaps(self.model, self.guide, self.data, seed=self.seed, **self.options)
        held_out = None
        if self.held_out is not None:
            seed = derive_seed(self.seed, "held out")
            held_out = measure_gaps(self.model, self.guide, self.held_out, seed=seed, **self.options)
        self.history.append(Tracked(epoch, gaps, held_out))
        return self.history[-1]

    def table(self) -> dict[str, Tensor]:
        """One array a column, one entry a measurement, to be plotted.

        Returns:
            "epoch"; then for each term its mean, and its errors under "<term>_se" and "<term>_mc_se", in nats per
            datapoint; with held-out data the same under "held_out_<term>".
        """
        columns = {"epoch": torch.tensor([entry.epoch for entry in self.history], dtype=torch.long)}
        for prefix, records in (
            ("", [entry.gaps for entry in self.history]),
            ("held_out_", [entry.held_out for entry in self.history if entry.held_out is not None]),
        ):
            summaries = [record.summary() for record in records]
            if not summaries:
                continue
            for term in Gaps.TERMS:
                for statistic, suffix in (("mean", ""), ("se", "_se"), ("mc_se", "_mc_se")):
                    values = [summary[term][statistic] for summary in summaries]
                    columns[f"{prefix}{term}{suffix}"] = torch.tensor(values, dtype=torch.float64)
        return columns
