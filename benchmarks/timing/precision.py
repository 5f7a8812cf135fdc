"""What bf16 products do to what is learnt: the held-out ELBO of the same fits in both precisions, paired by seed."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from studies.common import say

from inference import elbo, fit_svi
from timing.images import images
from timing.methods.fit_svi import build, settings
from timing.protocol import Cell
from timing.sizes import Sizes


def effect(name: str, sizes: Sizes, cache: Path, *, device: str = "cpu") -> dict[str, Any]:
    """Mean ELBO of held-out images after fits that differ in precision alone; all are scored in float32.

    Returns:
        `elbo` by precision, a number a seed, and of the differences bf16 - float32 the mean and its standard error over
        seeds.
    """
    data = images(name, cache)
    x = data["train"][: sizes.num_train].float().to(device)
    held_out = data["test"][: sizes.num_images].float().to(device)
    widths = (x.shape[1], *sizes.hidden, sizes.num_latents)
    found: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for seed in range(sizes.precision_seeds):
        for precision, values in found.items():
            torch.manual_seed(seed)
            vae = build(widths).to(device)
            cell = Cell(
                data="", widths=widths, batch=128, steps=0, options={"compile": sizes.compile, "precision": precision}
            )
            training = settings(cell, epochs=sizes.epochs)
            fit_svi(vae.model, vae.guide, x, training=training, seed=seed)  # type: ignore[arg-type]
            values.append(elbo(vae.model, vae.guide, held_out, num_draws=100, seed=0).value.mean().item())  # type: ignore[arg-type]
    differences = [one - other for one, other in zip(found["bfloat16"], found["float32"], strict=True)]
    summary = {"mean": mean(differences), "se": stdev(differences) / len(differences) ** 0.5}
    say(f"held-out ELBO, bf16 - float32: {summary['mean']:+.2f} ({summary['se']:.2f} over {len(differences)} seeds)")
    return {"elbo": found, "difference": summary, "num_images": len(held_out), "epochs": sizes.epochs}
