"""Fitting the classical baselines and the autoencoders to one data set, and measuring all of them."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inference import Adam, Cosine, Evidence, MeanField, Training, fit_svi, iwae
from inference.counts import require_kind
from inference.noise import derive_seed, resolve_seed, seeded
from pyro_vae.autoencoder import PCA, Autoencoder
from pyro_vae.comparison.records import EXACT, Compared, Comparison
from pyro_vae.data import Dataset, Standardization, say_scales
from pyro_vae.likelihoods import GaussianSharedScale
from pyro_vae.linear import LinearGaussian, as_linear_gaussian
from pyro_vae.networks import MLP, Linear, check_size
from pyro_vae.priors import StandardNormal
from pyro_vae.vae import VAE

__all__ = ["TRAINING", "compare"]

# What the networks are trained with unless the caller says otherwise.
TRAINING = Training(epochs=200, batch_size=50, optimizer=Adam(lr=3e-3), schedule=Cosine(), patience=20)
# A learned scale cannot fall below this share of the data's standard deviation.
FLOOR = 0.05


def compare(
    dataset: Dataset,
    num_latents: int,
    *,
    training: Training = TRAINING,
    hidden: tuple[int, ...] = (128, 128),
    num_data: int | None = None,
    seed: int | None = None,
) -> Comparison:
    """Fit the classical baselines and the autoencoders to one data set, and measure all on its test split.

    PCA and the autoencoder have no density. The others share one likelihood, normal noise with one learned scale
    (factor analysis: one for each data value), so that their log p(x) compare: probabilistic PCA by its closed form,
    factor analysis by EM, the linear VAE and the VAE by SVI with a mean-field encoder. log p(x) is exact for all but
    the VAE, whose is the importance-weighted bound. Every number is in the data's own units. Inside, all models see
    them around the mean of the training data and divided by one number, so that one step size suits all units. Of data
    that were loaded with `standardize=True` they see the standardized values: the noise then has one scale in these
    units, which is another model; its numbers are in the data's own units all the same.

    Args:
        dataset: what to fit. Dynamic binarization is fixed by the data's own seed.
        num_latents: D, below the number of data values.
        training: of the networks; early stopping looks at the validation split.
        hidden: widths of the hidden layers of autoencoder and VAE.
        num_data: test datapoints to measure, the first ones; None: all.
        seed: of initial weights, training and draws.

    Returns:
        Every model's reconstruction error and log p(x), per datapoint.

    Raises:
        ValueError: D is too large, `num_data` is not positive, or the data hold missing values or no variance.
    """
    seed = resolve_seed(seed)
    require_kind("dataset", dataset, Dataset, hint="Pass load(...).")
    size = check_size("compare", "num_latents", num_latents)
    if size >= dataset.num_values:
        raise ValueError(f"num_latents: expected fewer than the {dataset.num_values} data values; got {size}.")
    if num_data is not None:
        check_size("compare", "num_data", num_data)
    train, validation, test = (split.fix() for split in (dataset.train, dataset.validation, dataset.test))
    test = test if num_data is None else test.head(num_data)
    x, x_test = train.tensor(), test.tensor()
    if not bool(x.isfinite().all()) or not bool(x_test.isfinite().all()):
        raise ValueError(
            f"{dataset.name}: expected finite values; got NaN or infinity. PCA and networks take none: drop those "
            "rows, or fit LinearGaussian.fit_em alone."
        )
    say_scales(dataset, counts=True)
    units = _Units.of(x, dataset.standardization)
    if not units.spread > 0:
        raise ValueError(f"{dataset.name}: expected values that vary; got the same row throughout.")
    fits = _Fits(
        units.standardise(x),
        units.standardise(validation.tensor()),
        size,
        units=units,
        training=training,
        hidden=hidden,
        seed=seed,
    )
    models = [
        _measure(fitted, units.standardise(x_test), units, seed=seed)
        for fitted in (
            fits.pca(),
            fits.autoencoder(),
            fits.probabilistic_pca(),
            fits.factor_analysis(),
            fits.vae("linear VAE", hidden=()),
            fits.vae("VAE", hidden=hidden),
        )
    ]
    settings = {"training": training.describe(), "hidden": list(hidden), "floor": FLOOR * units.spread, "seed": seed}
    return Comparison(
        models=models,
        data=dataset.name,
        fingerprint=dataset.fingerprint,
        num_data=len(test),
        num_latents=size,
        settings=settings,
    )


@dataclass(frozen=True)
class _Units:
    """The data's own units, and those that models are fitted in: around the mean, at unit variance on average.

    `columns` are the units of the columns where the data were standardized before, and otherwise ones.
    """

    centre: Tensor
    spread: float
    columns: Tensor
    is_standardized: bool

    @classmethod
    def of(cls, x: Tensor, standardization: Standardization | None) -> _Units:
        columns = torch.ones(x.shape[1], dtype=torch.float64) if standardization is None else standardization.scale
        return cls(
            x.mean(0), float(x.double().var(0, correction=0).mean().sqrt()), columns, standardization is not None
        )

    def standardise(self, x: Tensor) -> Tensor:
        return (x - self.centre) / self.spread

    def restore(self, log_p: Evidence) -> Evidence:
        """The density of x from that of its standardised values."""
        log_scale = len(self.centre) * math.log(self.spread) + float(self.columns.log().sum())
        return dataclasses.replace(log_p, value=log_p.value.double() - log_scale)

    def scale(self, scale: Tensor) -> float:
        """Mean over data values of a noise scale, () or (P,), in the data's own units."""
        return float((scale.detach().double() * self.spread * self.columns).mean())


@dataclass(frozen=True)
class _Fitted:
    name: str
    model: PCA | Autoencoder | LinearGaussian | VAE
    seconds: float
    how: str
    exact: LinearGaussian | None = None
    # In the data's own units.
    scale: float | None = None
    mark: str | None = None


class _Fits:
    """One method a model; all see the same training data."""

    def __init__(
        self,
        x: Tensor,
        validation: Tensor,
        num_latents: int,
        *,
        units: _Units,
        training: Training,
        hidden: tuple[int, ...],
        seed: int,
    ) -> None:
        self.x = x
        self.validation = validation
        self.units = units
        self.num_latents = num_latents
        self.training = training
        self.hidden = hidden
        self.seed = seed
        self.num_values = self.x.shape[1]

    def pca(self) -> _Fitted:
        began = time.perf_counter()
        model = PCA.fit(self.x.double(), self.num_latents)
        return _Fitted("PCA", model, time.perf_counter() - began, "singular value decomposition")

    def autoencoder(self) -> _Fitted:
        with seeded(derive_seed(self.seed, "autoencoder")):
            model = Autoencoder(
                self._encoder(self.num_latents, hidden=self.hidden), self._decoder(self.num_latents, hidden=self.hidden)
            )
        fit = model.fit(self.x, training=self.training, validation=self.validation, seed=self.seed)
        return _Fitted("autoencoder", model, fit.seconds, fit.stopped_because)

    def probabilistic_pca(self) -> _Fitted:
        began = time.perf_counter()
        model = LinearGaussian.fit(self.x.double(), self.num_latents)
        return _Fitted(
            "pPCA",
            model,
            time.perf_counter() - began,
            "maximum likelihood in closed form",
            model,
            self.units.scale(model.scale),
        )

    def factor_analysis(self) -> _Fitted:
        model, fit = LinearGaussian.fit_em(
            self.x.double(), self.num_latents, noise="diagonal", floor=FLOOR, tol=1e-6, seed=self.seed
        )
        on_floor, floor = fit.settings["num_on_floor"], FLOOR * self.units.spread
        in_units = " standard deviations of the column" if self.units.is_standardized else ""
        mark = (
            f"a noise scale for each of the {self.num_values} data values, where the others share one; {on_floor} of "
            f"them sit on the floor of {floor:.3g}{in_units}, which log p(x) depends on."
        )
        return _Fitted("FA", model, fit.seconds, fit.stopped_because, model, self.units.scale(model.scale), mark)

    def vae(self, name: str, *, hidden: tuple[int, ...]) -> _Fitted:
        family = MeanField(self.num_latents)
        likelihood = GaussianSharedScale(init_scale=1.0, floor=FLOOR).to(self.x)
        with seeded(derive_seed(self.seed, name)):
            vae = VAE(
                prior=StandardNormal(self.num_latents),
                likelihood=likelihood,
                decoder=self._decoder(self.num_latents, hidden=hidden),
                family=family,
                encoder=self._encoder(family.num_params, hidden=hidden),
            )
        fit = fit_svi(
            vae.model,
            vae.guide,  # type: ignore[arg-type]  # it has an encoder
            self.x,
            training=self.training,
            validation=self.validation,
            seed=self.seed,
        )
        exact = None if hidden else as_linear_gaussian(vae).double()
        return _Fitted(name, vae.eval(), fit.seconds, fit.stopped_because, exact, self.units.scale(likelihood.scale))

    def _encoder(self, num_outputs: int, *, hidden: tuple[int, ...]) -> nn.Module:
        return _network(self.num_values, num_outputs, hidden=hidden).to(self.x)

    def _decoder(self, num_inputs: int, *, hidden: tuple[int, ...]) -> nn.Module:
        return _network(num_inputs, self.num_values, hidden=hidden).to(self.x)


def _network(num_inputs: int, num_outputs: int, *, hidden: tuple[int, ...]) -> nn.Module:
    return MLP(num_inputs, *hidden, num_outputs) if hidden else Linear(num_inputs, num_outputs)


def _measure(fitted: _Fitted, x: Tensor, units: _Units, *, seed: int) -> Compared:
    model = fitted.model
    # Closed forms come in double precision.
    x = x.double() if isinstance(model, PCA | LinearGaussian) else x
    bound = iwae(model.model, model.guide, x, seed=seed) if isinstance(model, VAE) and model.guide is not None else None
    log_p = bound
    with torch.no_grad():
        if fitted.exact is not None:
            value = fitted.exact.log_evidence(x.double())
            log_p = Evidence(value=value, se=torch.zeros_like(value), method=EXACT)
        error = (x - model.reconstruct(x)).double() * units.spread * units.columns
    return Compared(
        name=fitted.name,
        squared_error=error.square().mean(-1),
        log_p=None if log_p is None else units.restore(log_p),
        log_p_iwae=None if bound is None else units.restore(bound),
        scale=fitted.scale,
        seconds=fitted.seconds,
        how=fitted.how,
        mark=fitted.mark,
    )
