"""pythae's `BaseTrainer` on its `VAE`: its loop, its loader, its records; timed between its epochs."""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from typing import Any

import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch import Tensor

from timing.methods.networks import layers, read
from timing.protocol import Cell, EpochClock, Pipe


def versions() -> dict[str, str]:
    """Of what is used."""
    return {"torch": torch.__version__, "pythae": version("pythae")}


class Encoder(BaseEncoder):
    """To mean and log variance."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        BaseEncoder.__init__(self)
        *seen, num_latents = widths
        self.layers = layers(*seen, 2 * num_latents)

    def forward(self, x: Tensor) -> ModelOutput:
        """Both, by pythae's names."""
        mean, log_var = self.layers(x).chunk(2, -1)
        return ModelOutput(embedding=mean, log_covariance=log_var)


class Decoder(BaseDecoder):
    """To pixels in [0, 1]."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        BaseDecoder.__init__(self)
        *seen, num_latents = widths
        self.layers = layers(num_latents, *reversed(seen))

    def forward(self, z: Tensor) -> ModelOutput:
        """The reconstruction, by pythae's name."""
        return ModelOutput(reconstruction=torch.sigmoid(self.layers(z)))


class Ended(Exception):
    """Ends a training run of which no further block is wanted."""


class Blocks(TrainingCallback):
    """Blocks after each epoch until the next is asked for."""

    def __init__(self, clock: EpochClock) -> None:
        self.clock = clock

    def on_log(self, training_config: Any, logs: dict[str, Any], **kwargs: Any) -> None:  # noqa: ARG002
        """Called once an epoch, with its mean loss."""
        if not self.clock(float(logs["train_epoch_loss"])):
            raise Ended


def run(cell: Cell, pipe: Pipe) -> None:
    """Serve timing blocks."""
    x = read(cell).cpu()
    model = VAE(
        VAEConfig(input_dim=(cell.widths[0],), latent_dim=cell.widths[-1], reconstruction_loss="bce"),
        encoder=Encoder(cell.widths),
        decoder=Decoder(cell.widths),
    )
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=10**6,
            learning_rate=cell.lr,
            per_device_train_batch_size=cell.batch,
            no_cuda=cell.device == "cpu",
        )
        trainer = BaseTrainer(
            model,
            train_dataset=BaseDataset(x, torch.zeros(len(x))),
            training_config=config,
            callbacks=[Blocks(EpochClock(cell, pipe))],
        )
        try:
            trainer.train(log_output_dir=folder)
        except Ended:
            return
