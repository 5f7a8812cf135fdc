"""Variational EM: what a sweep over all datapoints costs, minibatch by minibatch, the table of rows in place."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from studies.common import say

from inference import Training, fit_em
from timing.images import images
from timing.methods.fit_svi import build
from timing.sizes import Sizes

# The first epoch compiles, and starts the rows.
EPOCHS = 3


def sweeps(name: str, sizes: Sizes, cache: Path, *, device: str = "cpu") -> dict[str, Any]:
    """Microseconds a datapoint and sweep, E-step and M-step, by the number of E-steps a visit; warm rows."""
    data = images(name, cache)
    x = torch.cat([data["train"], data["test"]])[: sizes.num_sweep].float().to(device)
    found: dict[str, Any] = {"num_data": len(x), "batch": 128}
    for num_steps in (1, 5):
        torch.manual_seed(0)
        vae = build((x.shape[1], *sizes.hidden, sizes.num_latents)).to(device)
        ends: list[float] = []
        training = Training(
            epochs=EPOCHS,
            local_steps=num_steps,
            compile=sizes.compile,
            callbacks=[lambda state, ends=ends: ends.append(time.perf_counter())],  # noqa: ARG005
        )
        fit_em(vae.model, vae.family, x, training=training, seed=0)  # type: ignore[arg-type]
        seconds = min(end - begin for begin, end in zip(ends, ends[1:], strict=False))
        found[f"{num_steps} steps"] = {"seconds_a_sweep": seconds, "us_a_datapoint": 1e6 * seconds / len(x)}
        say(
            f"fit_em, {num_steps} E-steps a visit: {seconds:.1f} s a sweep, {1e6 * seconds / len(x):.0f} us a datapoint"
        )
    return found
