"""The design of the study of inference suboptimality: variants of one model, and how much of everything."""

from __future__ import annotations

import dataclasses
from typing import Any

from inference import (
    Adam,
    Annealing,
    Cosine,
    CouplingFlow,
    Family,
    MeanField,
    Search,
    Staircase,
    Training,
)
from pyro_vae import MLP, VAE, Dataset
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.priors import StandardNormal

DATASETS = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}
SPLITS = ("train", "test")
NUM_LATENTS = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One model and guide.

    Attributes:
        flow: whether q is a coupling flow; else it is mean-field.
        encoder: widths of its hidden layers.
        decoder: widths of its hidden layers.
        decoder_of: variant whose fitted decoder this one has; only the encoder is then trained.
        both_families: whether q* is searched for in both families, and not in the guide's alone.
    """

    flow: bool = False
    encoder: tuple[int, ...] = (200, 200)
    decoder: tuple[int, ...] = (200, 200)
    decoder_of: str | None = None
    both_families: bool = False


FIRST = "mean-field guide"
VARIANTS = {
    FIRST: Variant(both_families=True),
    "flow guide": Variant(flow=True, both_families=True),
    "wider encoder": Variant(encoder=(500, 500)),
    "deeper decoder": Variant(decoder=(200, 200, 200, 200)),
    "linear decoder": Variant(decoder=()),
    "fixed decoder, mean-field guide": Variant(decoder_of=FIRST),
    "fixed decoder, flow guide": Variant(flow=True, decoder_of=FIRST),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """How much of everything.

    Attributes:
        training: of each fit.
        num_train: training images, the first ones, that models are fitted to.
        num_images: first images of the training and of the test split that are measured.
        hidden: width of the flows' networks; each flow has two layers.
        tol: of the searches, nats.
        num_draws: behind each L.
        num_evidence_draws: behind IWAE.
        annealing: of AIS.
        search: for q*.
    """

    training: Training
    num_train: int
    num_images: int
    hidden: tuple[int, ...]
    tol: float
    num_draws: int
    num_evidence_draws: int
    annealing: Annealing
    search: Search

    def describe(self) -> dict[str, Any]:
        """The settings as plain values."""
        values = dataclasses.asdict(dataclasses.replace(self, training=None))  # type: ignore[arg-type]
        return {**values, "training": self.training.describe(), "annealing": self.annealing.describe()}


PRESETS = {
    "quick": Preset(
        training=Training(epochs=6, batch_size=200, optimizer=Adam(lr=3e-3, eps=1e-4), schedule=Cosine()),
        num_train=50_000,
        num_images=40,
        hidden=(8,),
        tol=0.1,
        num_draws=200,
        num_evidence_draws=1000,
        annealing=Annealing(num_temperatures=50, num_chains=8, num_pilot_chains=4),
        search=Search(num_particles=2, max_rounds=5, num_judge_draws=128, num_select_draws=128),
    ),
    "paper": Preset(
        training=Training(epochs=3280, batch_size=100, optimizer=Adam(lr=1e-3, eps=1e-4), schedule=Staircase()),
        num_train=50_000,
        num_images=1000,
        hidden=(100,),
        tol=0.01,
        num_draws=1000,
        num_evidence_draws=5000,
        annealing=Annealing(num_temperatures=10_000, num_chains=100),
        search=Search(max_rounds=9),
    ),
}


def dry(preset: Preset) -> Preset:
    """The same design at a tiny size."""
    return dataclasses.replace(
        preset,
        training=dataclasses.replace(preset.training, epochs=1),
        num_train=200,
        num_images=2,
        tol=1.0,
        num_draws=16,
        num_evidence_draws=50,
        annealing=dataclasses.replace(preset.annealing, num_temperatures=4, num_chains=2, num_pilot_chains=2),
        search=Search(num_particles=2, first_round=4, max_rounds=1, num_judge_draws=64, num_select_draws=8),
    )


def flow(preset: Preset, *, shared: bool) -> Family:
    """The flow of a guide, or that of a datapoint by itself."""
    return CouplingFlow(NUM_LATENTS, num_layers=2, hidden=preset.hidden, shared=shared)


def build(variant: Variant, preset: Preset, data: Dataset) -> VAE:
    """A model and its guide, with weights from torch's global generator."""
    family = flow(preset, shared=True) if variant.flow else MeanField(NUM_LATENTS)
    return VAE(
        prior=StandardNormal(NUM_LATENTS),
        likelihood=Bernoulli(),
        decoder=MLP(NUM_LATENTS, *variant.decoder, data.num_values),
        family=family,
        encoder=MLP(data.num_values, *variant.encoder, family.num_params),
    )


def further(variant: Variant, preset: Preset) -> dict[str, Family]:
    """Families beside the guide's own in which q* is searched for, by their column."""
    if not variant.both_families:
        return {}
    own_weights = {"elbo_flow": flow(preset, shared=False)}
    return {"elbo_mean_field": MeanField(NUM_LATENTS), **own_weights} if variant.flow else own_weights
