"""Images and the model that is fitted to them, made once and kept in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from studies.common import kept
from torch import Tensor

from inference import fit_svi
from pyro_vae import VAE, load
from timing.methods.fit_svi import build, settings
from timing.protocol import Cell
from timing.sizes import Sizes


def images(name: str, cache: Path) -> dict[str, Any]:
    """Statically binarized images: "train" and "test" as bytes (N, P), and the data set's fingerprint."""

    def read() -> dict[str, Any]:
        data = load(name, binarize="fixed")
        parts = {part: getattr(data, part).tensor().to(torch.uint8) for part in ("train", "test")}
        return {**parts, "fingerprint": data.fingerprint}

    return kept(cache / f"images-{name}.pt", read)


def training_file(name: str, cache: Path) -> Path:
    """The training images as a .npy file, which every worker can read."""
    file = cache / f"train-{name}.npy"
    if not file.exists():
        part = file.with_suffix(".part.npy")
        np.save(part, images(name, cache)["train"].numpy())
        part.replace(file)
    return file


def slices(file: Path, num_values: int) -> Path:
    """The middle values of every image, for nets that are too small for a whole one."""
    own = file.with_name(f"{file.stem}-{num_values}.npy")
    if not own.exists():
        rows = np.load(file, mmap_mode="r")
        first = (rows.shape[1] - num_values) // 2
        np.save(own, np.ascontiguousarray(rows[:20000, first : first + num_values]))
    return own


def trained(name: str, sizes: Sizes, cache: Path) -> VAE:
    """The model of the E-step race and of annealing, fitted once with a fixed seed, frozen and in eval mode."""
    x: Tensor = images(name, cache)["train"][: sizes.num_train].float()
    widths = (x.shape[1], *sizes.hidden, sizes.num_latents)
    vae = build(widths)

    def fit() -> dict[str, Tensor]:
        torch.manual_seed(0)
        fresh = build(widths)
        training = settings(Cell(data="", widths=widths, batch=128, steps=0), epochs=sizes.epochs)
        fit_svi(fresh.model, fresh.guide, x, training=training, seed=0)  # type: ignore[arg-type]
        return fresh.state_dict()

    vae.load_state_dict(kept(cache / f"vae-{name}-{'-'.join(map(str, widths))}-{sizes.epochs}.pt", fit))
    return vae.requires_grad_(requires_grad=False).eval()
