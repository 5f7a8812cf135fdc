"""How the gaps, and the terms of the ELBO, change over training: callbacks that measure the same datapoints."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inference.batches import Data, chunks, fetch, require_fixed
from inference.counts import require_count
from inference.densities import densities, guide_distribution
from inference.gaps import measure_gaps
from inference.guides import Local
from inference.isolation import device_of, eval_mode, frozen, private_store
from inference.noise import derive_seed, resolve_seed, seeded
from inference.processes import alone
from inference.results import Evidence, Gaps
from inference.scoring import require_sound
from inference.search import Search
from inference.training import LoopState, Training

__all__ = ["GapTracker", "TermTracker", "Tracked"]

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
        TypeError: `measure_gaps` has no such option.
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
        require_count("every", every)
        require_fixed(data, purpose="GapTracker")
        if held_out is not None:
            require_fixed(held_out, name="held_out", purpose="GapTracker")
        # Now, and not in the middle of a run.
        inspect.signature(measure_gaps).bind(model, guide, data, seed=seed, **options)
        self.model, self.guide = model, guide
        self.data, self.held_out = data, held_out
        self.every = every
        self.seed = resolve_seed(seed)
        self.options = _QUICK | options
        self.history: list[Tracked] = []

    def check(self, training: Training, *, held_out: bool) -> None:  # noqa: ARG002
        """Measure one datapoint before the first step: what cannot be measured is refused while nothing has moved."""
        if self.every > training.epochs:
            return
        device = device_of(self.model, self.guide)
        for data in (self.data, self.held_out):
            if data is not None:
                # A guide with rows for these data takes no others.
                few = data if isinstance(self.guide, Local) else fetch(data, torch.arange(1), device=device)
                with alone():
                    measure_gaps(self.model, self.guide, few, seed=self.seed, **self.options)

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

    def state_dict(self) -> dict[str, Any]:
        """The measurements as tensors and plain values."""
        return {
            "history": [(epoch, asdict(gaps), held_out and asdict(held_out)) for epoch, gaps, held_out in self.history]
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to them."""
        self.history = [
            Tracked(epoch, _from_plain(gaps), held_out and _from_plain(held_out))
            for epoch, gaps, held_out in state["history"]
        ]

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


def _from_plain(content: Mapping[str, Any]) -> Gaps:
    return Gaps(**{**content, "estimates": {name: Evidence(**one) for name, one in content["estimates"].items()}})


class TermTracker:
    r"""A callback of `Training` that measures the two terms of the ELBO on the same datapoints after each epoch.

    .. math::
        L = E_q[\log p(x \mid z)] - E_q[\log q(z) - \log p(z)]

    Both terms are averages over the same draws of q, so that they add up to the ELBO. Every measurement makes the same
    draws, and training goes on as if nothing had been measured.

    Args:
        model: the Pyro model that is trained.
        guide: the Pyro guide that is trained.
        data: (N, P) datapoints by name, such as `{"training": x[:500], "held-out": validation}`, each with a fixed x.
        every: epochs between measurements.
        num_draws: S, draws of q a datapoint.
        seed: of all draws.

    Attributes:
        epochs: epochs finished at each measurement.
        reconstruction: by name of the data, the first term at each measurement, nats per datapoint.
        kl: by name, the second.

    Raises:
        ValueError: a count is not a positive integer, or data draw x anew at each access.

    Example:
        >>> from inference import Amortized, MeanField, Training, fit_svi
        >>> from pyro_vae.linear import LinearGaussian
        >>> model = LinearGaussian(torch.eye(2), torch.zeros(2), 1.0)
        >>> guide = Amortized(MeanField(2), torch.nn.Linear(2, 4))
        >>> x = torch.randn(64, 2)
        >>> tracker = TermTracker(model.model, guide, {"training": x})
        >>> fit = fit_svi(model.model, guide, x, training=Training(epochs=2, callbacks=[tracker]), seed=0)
        >>> tracker.epochs, len(tracker.kl["training"])
        ([1, 2], 2)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        data: Mapping[str, Data],
        *,
        every: int = 1,
        num_draws: int = 4,
        seed: int | None = 0,
    ) -> None:
        require_count("every", every)
        require_count("num_draws", num_draws)
        if not isinstance(data, Mapping):
            raise TypeError(f'data: expected datapoints by name, such as {{"training": x}}; got {type(data).__name__}.')
        for name, rows in data.items():
            require_fixed(rows, name=f"data[{name!r}]", purpose="TermTracker")
        self.model, self.guide, self.data = model, guide, dict(data)
        self.every, self.num_draws = every, num_draws
        self.seed = resolve_seed(seed)
        self.epochs: list[int] = []
        self.reconstruction: dict[str, list[float]] = {name: [] for name in data}
        self.kl: dict[str, list[float]] = {name: [] for name in data}

    def check(self, training: Training, *, held_out: bool) -> None:  # noqa: ARG002
        """Measure a few datapoints before the first step: what cannot be is refused while nothing has moved."""
        if self.every > training.epochs:
            return
        device = device_of(self.model, self.guide)
        with frozen(self.model, self.guide), torch.no_grad():
            for rows in self.data.values():
                x = fetch(rows, torch.arange(min(len(rows), 8)), device=device)
                site, q = guide_distribution(self.guide, x)
                require_sound(self.model, self.guide, q, x, site=site)
                self._terms(x, device)

    def __call__(self, state: LoopState) -> None:
        """Measure, where it is time."""
        if state.epoch % self.every:
            return
        found = {}
        with torch.no_grad(), private_store(self.model, self.guide), eval_mode(self.model, self.guide):
            for name, rows in self.data.items():
                with seeded(derive_seed(self.seed, name)):
                    found[name] = self._terms(rows, next(iter(state.leaves.values())).device)
        # All or none of them, should one raise.
        self.epochs.append(state.epoch)
        for name, (reconstruction, kl) in found.items():
            self.reconstruction[name].append(reconstruction)
            self.kl[name].append(kl)

    def state_dict(self) -> dict[str, Any]:
        """The measurements."""
        return {"epochs": self.epochs, "reconstruction": self.reconstruction, "kl": self.kl}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to them."""
        self.epochs, self.reconstruction, self.kl = state["epochs"], state["reconstruction"], state["kl"]

    def rows(self) -> dict[int, dict[str, float]]:
        """The measurements by epoch: "reconstruction (name)" and "kl (name)" for each name of the data."""
        found: dict[int, dict[str, float]] = {epoch: {} for epoch in self.epochs}
        for term, columns in (("reconstruction", self.reconstruction), ("kl", self.kl)):
            for name, values in columns.items():
                for epoch, value in zip(self.epochs, values, strict=True):
                    found[epoch][f"{term} ({name})"] = value
        return found

    def _terms(self, data: Data, device: torch.device) -> tuple[float, float]:
        totals = torch.zeros(2, dtype=torch.float64)
        for start, stop in chunks(len(data), 1024):
            x = fetch(data, torch.arange(start, stop), device=device)
            site, q = guide_distribution(self.guide, x)
            z = q.sample((self.num_draws,))
            found = densities(self.model, x, z, site=site)
            kl = q.log_prob(z) - found.log_prior
            totals += torch.stack([term.double().mean(0).sum().cpu() for term in (found.log_likelihood, kl)])
        reconstruction, kl = (totals / len(data)).tolist()
        return reconstruction, kl
