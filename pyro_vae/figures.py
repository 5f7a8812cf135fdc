"""The pictures of a run: what each shows is computed here, drawn by `plots`, and saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from inference import Amortized, Fit, Gaps, Local
from inference.isolation import eval_mode
from inference.noise import seeded
from pyro_vae import plots
from pyro_vae.data import Split
from pyro_vae.vae import VAE, posterior_mean

__all__ = ["draw_fit", "draw_gaps", "save"]

NUM_SHOWN = 10
NUM_SAMPLES = 64
MANIFOLD_SIZE = 12


def draw_fit(
    folder: Path,
    fits: Mapping[str, Fit],
    vae: VAE,
    guide: Amortized | Local,
    shown: Split,
    image_shape: tuple[int, ...] | None,
) -> None:
    """ELBO curves, reconstructions and samples; for a 2-D latent also the decoded manifold and the latent scatter.

    Args:
        folder: where the pictures go.
        fits: training records by name.
        vae: the fitted model.
        guide: q(z | x) of `shown`.
        shown: datapoints to show, each with a fixed x.
        image_shape: of a datapoint, where it is an image.
    """
    x = shown.tensor()
    with torch.no_grad(), eval_mode(vae.model, guide):
        z = posterior_mean(guide.distribution(x))
        mean = vae.decode(z).mean
        samples = vae.decode(vae.prior().sample((NUM_SAMPLES,))).mean
    save(plots.plot_elbo(fits), folder / "elbo.png")
    # Mostly blank, as drawings are; a photograph has few of its darkest pixels.
    seen = x[~x.isnan()]
    ink = bool((seen - seen.min() < 0.02 * (seen.max() - seen.min())).double().mean() > 0.2)
    pair = (x[:NUM_SHOWN], mean[:NUM_SHOWN])
    save(plots.plot_reconstructions(*pair, image_shape, ink=ink), folder / "reconstructions.png")
    drawn = plots.plot_samples(samples, image_shape, ink=ink)
    drawn.set_title("")
    drawn.set_title("means of x at draws of z from the prior", loc="left")
    save(drawn, folder / "samples.png")
    if z.shape[1] == 2:
        grid, images = _manifold(vae)
        save(plots.plot_manifold(images, image_shape, grid=grid, ink=ink), folder / "manifold.png")
        save(plots.plot_latent(z, shown.labels), folder / "latent.png")


def draw_gaps(folder: Path, gaps: Mapping[str, Gaps]) -> None:
    """Gap bars with error bars, and the histogram of per-datapoint amortization gaps.

    Args:
        folder: where the pictures go.
        gaps: records by name.
    """
    save(plots.plot_gaps(gaps), folder / "gaps.png")
    save(plots.plot_gap_histogram(gaps), folder / "gap_histogram.png")


@torch.no_grad()
def _manifold(vae: VAE) -> tuple[Float[Tensor, " n"], Float[Tensor, "n n P"]]:
    """Mean of x on a grid: the quantiles of the prior, of both latent dimensions together."""
    with eval_mode(vae.model), seeded(0):
        draws = vae.prior().sample((2**16,)).flatten()
        grid = draws.quantile(torch.linspace(0.02, 0.98, MANIFOLD_SIZE).to(draws))
        x = vae.decode(torch.cartesian_prod(grid, grid)).mean
    return grid.cpu(), x.unflatten(0, (MANIFOLD_SIZE, MANIFOLD_SIZE))


def save(ax: Axes, path: Path) -> None:
    """Write the picture that `ax` belongs to, and close it.

    Args:
        ax: what a function of `plots` returned.
        path: the file.
    """
    figure = ax.get_figure(root=True)
    if figure is not None:
        # A legend may be wider than few bars.
        figure.savefig(path, bbox_inches="tight")
        plt.close(figure)
