"""The pictures of a run: what each shows is computed here, drawn by `plots`, and saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pyro
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from inference import Amortized, Evidence, Fit, Gaps, Local, Search, refine
from inference.checkpoint import atomic_write
from inference.densities import densities
from inference.isolation import eval_mode
from inference.noise import seeded
from inference.progress import track
from pyro_vae import plots
from pyro_vae.data import Split
from pyro_vae.vae import VAE, posterior_mean

__all__ = ["Picture", "draw_each", "draw_fit", "draw_gaps", "draw_worst", "save"]

# What draws a picture, or finds that there is nothing to draw.
Picture = Callable[[], Axes | None]

NUM_SHOWN = 10
NUM_SAMPLES = 64
MANIFOLD_SIZE = 12
# Pairs of datapoints, and steps from one to the other.
NUM_PAIRS, NUM_STEPS = 5, 9
# Latent dimensions whose traversal is shown, those with the most information, and how far it goes, in quantiles.
NUM_TRAVERSED = 8
REACH = (0.02, 0.98)
# Of a dimension that says nothing about x: the variance of its mean is less than this share of the prior's, the
# threshold of `elbo_surgery`.
INACTIVE, THRESHOLD = "inactive", 0.01
# Draws of the prior and of the aggregate posterior.
NUM_AGGREGATE = 2000
# Grid points of a dimension, where a posterior is drawn and where it is searched for.
POSTERIOR_SIZE, COARSE = 121, 61


def draw_each(folder: Path, pictures: Mapping[str, Picture]) -> dict[str, str]:
    """Draw and save pictures one by one; one that cannot be drawn or saved leaves the others alone.

    Args:
        folder: where they go, as .png.
        pictures: what draws each, by name; None of one where there is nothing to draw.

    Returns:
        The error in words for each file that is not there.
    """
    failed: dict[str, str] = {}
    for name, draw in track(pictures.items(), len(pictures), "pictures", "picture"):
        path, before = folder / f"{name}.png", set(plt.get_fignums())
        try:
            drawn = draw()
            if drawn is not None:
                with atomic_write(path) as temporary:
                    save(drawn, temporary)
        # A model, its data, matplotlib and the disk raise what they like.
        except Exception as error:  # noqa: BLE001
            reason = " ".join(str(error).split()).removesuffix(".")
            failed[f"{folder.name}/{path.name}"] = f"{type(error).__name__}{': ' * bool(reason)}{reason}"
        finally:
            for number in set(plt.get_fignums()) - before:
                plt.close(number)
    return failed


def draw_fit(
    folder: Path,
    fits: Mapping[str, Fit],
    vae: VAE,
    guide: Amortized | Local,
    shown: Split,
    image_shape: tuple[int, ...] | None,
) -> dict[str, str]:
    """ELBO curves, reconstructions and samples; for a 2-D latent also the decoded manifold and the latent scatter.

    Args:
        folder: where the pictures go.
        fits: training records by name.
        vae: the fitted model.
        guide: q(z | x) of `shown`.
        shown: datapoints to show, each with a fixed x.
        image_shape: of a datapoint, where it is an image.

    Returns:
        The error in words for each picture that could not be drawn; the others are there.
    """

    @cache
    def x() -> Tensor:
        return shown.tensor()

    @cache
    def original() -> Tensor:
        return vae.in_data_units(x())

    @cache
    def ink() -> bool:
        return _is_ink(original())

    @cache
    def z() -> Tensor:
        with torch.no_grad(), eval_mode(vae.model, guide):
            return posterior_mean(guide.distribution(x()))

    @torch.no_grad()
    def reconstructions() -> Axes:
        with eval_mode(vae.model, guide):
            mean = vae.decode(z()[:NUM_SHOWN]).mean
        return plots.plot_reconstructions(original()[:NUM_SHOWN], mean, image_shape, ink=ink())

    @torch.no_grad()
    def samples() -> Axes:
        with eval_mode(vae.model, guide):
            means = vae.decode(vae.prior().sample((NUM_SAMPLES,))).mean
        drawn = plots.plot_samples(means, image_shape, ink=ink())
        drawn.set_title("")
        drawn.set_title("means of x at draws of z from the prior", loc="left")
        return drawn

    def interpolations() -> Axes | None:
        ways = _interpolations(vae, z())
        return None if ways is None else plots.plot_interpolations(ways, image_shape, ink=ink())

    def traversals() -> Axes:
        images, names = _traversals(vae, guide, x(), z())
        drawn = plots.plot_traversals(images, image_shape, names=names, ink=ink())
        if any(INACTIVE in name for name in names):
            drawn.set_xlabel(f"{drawn.get_xlabel()}\n{INACTIVE}: the mean of q is nearly the same for every datapoint")
        return drawn

    def manifold() -> Axes:
        grid, images = _manifold(vae)
        return plots.plot_manifold(images, image_shape, grid=grid, ink=ink())

    pictures: dict[str, Picture] = {
        "elbo": lambda: plots.plot_elbo(fits),
        "reconstructions": reconstructions,
        "samples": samples,
        "interpolations": interpolations,
        "traversals": traversals,
        "aggregate": lambda: plots.plot_aggregate(*_both(vae, guide, x())),
    }
    if vae.num_latents == 2:
        pictures |= {
            "posterior": lambda: plots.plot_posterior(*_posterior(vae, guide, x())),
            "manifold": manifold,
            "latent": lambda: plots.plot_latent(z(), shown.labels),
        }
    return draw_each(folder, pictures)


def draw_gaps(folder: Path, gaps: Mapping[str, Gaps]) -> dict[str, str]:
    """Gap bars with error bars, the amortization gaps by datapoint, and how far to trust log p(x).

    Args:
        folder: where the pictures go.
        gaps: records by name.

    Returns:
        The error in words for each picture that could not be drawn; the others are there.
    """

    def tails() -> Axes | None:
        known = {name: found for name, record in gaps.items() if (found := _with_tails(record)) is not None}
        return plots.plot_pareto_k(known) if known else None

    return draw_each(
        folder,
        {
            "gaps": lambda: plots.plot_gaps(gaps),
            "gap_histogram": lambda: plots.plot_gap_histogram(gaps),
            "gap_scatter": lambda: plots.plot_gap_scatter(gaps),
            "pareto_k": tails,
        },
    )


def draw_worst(
    folder: Path, gaps: Gaps, vae: VAE, guide: Amortized, x: Tensor, image_shape: tuple[int, ...]
) -> dict[str, str]:
    """The images with the largest amortization gaps, with what the encoder's q makes of them.

    Args:
        folder: where the picture goes.
        gaps: the record.
        vae: the fitted model.
        guide: its encoder.
        x: (N, P) the datapoints that were measured.
        image_shape: of a datapoint.

    Returns:
        The error in words where it could not be drawn.
    """

    @torch.no_grad()
    def worst() -> Axes:
        with eval_mode(vae.model, guide):
            mean = vae.decode(posterior_mean(guide.distribution(x))).mean
        shown = vae.in_data_units(x)
        return plots.plot_worst(gaps, shown, image_shape, means={"from the encoder": mean}, ink=_is_ink(shown))

    return draw_each(folder, {"worst": worst})


def _with_tails(gaps: Gaps) -> Gaps | Evidence | None:
    """The estimate of log p(x) whose Pareto k is known: a few annealed chains have no tail to fit."""
    records: list[Gaps | Evidence] = [gaps, *gaps.estimates.values()]
    return next((one for one in records if one.pareto_k is not None and not bool(one.pareto_k.isnan().all())), None)


def _is_ink(x: Tensor) -> bool:
    """Mostly blank, as drawings are; a photograph has few of its darkest pixels."""
    seen = x[x.isfinite()]
    return bool(len(seen)) and bool((seen - seen.min() < 0.02 * (seen.max() - seen.min())).double().mean() > 0.2)


@torch.no_grad()
def _interpolations(vae: VAE, z: Tensor) -> Float[Tensor, "R T P"] | None:
    """Straight ways between the means of q of consecutive datapoints; None where there are too few."""
    num_pairs = min(NUM_PAIRS, len(z) // 2)
    if not num_pairs:
        return None
    share = torch.linspace(0, 1, NUM_STEPS).to(z)[:, None]
    ways = torch.stack([torch.lerp(z[2 * pair], z[2 * pair + 1], share) for pair in range(num_pairs)])
    with eval_mode(vae.model):
        return vae.decode(ways).mean


@torch.no_grad()
def _traversals(vae: VAE, guide: Amortized | Local, x: Tensor, z: Tensor) -> tuple[Float[Tensor, "R T P"], list[str]]:
    """One datapoint, each of the dimensions whose mean varies most over datapoints moved through the prior's range.

    Those that are inactive are named so: what does not change along them looks like data.
    """
    # Of one datapoint it is not known, and no dimension is called inactive.
    spread = z.var(0) if len(z) > 1 else torch.full_like(z[0], math.nan)
    order = spread.argsort(descending=True)[:NUM_TRAVERSED].sort().values.tolist()
    with eval_mode(vae.model), seeded(0):
        draws = vae.prior().sample((4096,))
        # Of many dimensions all quantiles at once are more than torch takes.
        ends = draws[:, order].quantile(torch.tensor(REACH).to(draws), dim=0)
        share = torch.linspace(0, 1, NUM_STEPS).to(z)
        ways = z[0].expand(len(order), NUM_STEPS, -1).clone()
        for row, dim in enumerate(order):
            ways[row, :, dim] = torch.lerp(ends[0, row], ends[1, row], share)
        inactive = spread <= THRESHOLD * draws.var(0)
        names = [f"$z_{{{dim + 1}}}$" + inactive[dim].item() * f"\n({INACTIVE})" for dim in order]
        return vae.decode(ways).mean, names


@torch.no_grad()
def _both(vae: VAE, guide: Amortized | Local, x: Tensor) -> tuple[Float[Tensor, "S D"], Float[Tensor, "M D"]]:
    """Draws of the prior, and as many of the mean of q over datapoints."""
    with eval_mode(vae.model, guide), seeded(0):
        q = guide.distribution(x)
        each = -(-NUM_AGGREGATE // len(x))
        return vae.prior().sample((NUM_AGGREGATE,)), q.sample((each,)).flatten(0, 1)


def _posterior(
    vae: VAE, guide: Amortized | Local, x: Tensor
) -> tuple[Float[Tensor, "2 n"], Float[Tensor, "n n"], dict[str, Float[Tensor, "n n"]]]:
    """The log joint of the first datapoint on a grid, values of each dimension, and log q and log q* there.

    The posterior may lie far from q: coarse grids, from the prior's range on, find it, and a finer one is drawn. Of a
    family whose density is known at its own draws alone there is no q to draw.
    """
    one = x[:1]
    guides: dict[str, Amortized | Local] = {}
    if isinstance(guide, Local):
        guides["q*"] = guide.rows(torch.zeros(1, dtype=torch.long, device=x.device))
    elif guide.family.has_log_prob:
        # As long as a picture is worth; `measure_gaps` searches on.
        options: dict[str, Any] = {"search": Search(max_rounds=3), "cold": False, "seed": 0}
        rows = refine(vae.model, guide.family, one, site=guide.site, init=guide, **options).params
        guides = {"q": guide, "q*": Local(guide.family, rows, guide.site)}
    with torch.no_grad(), eval_mode(vae.model, guide), seeded(0), pyro.validation_enabled(is_validate=False):
        prior = vae.prior()
        members = {name: member.distribution(one) for name, member in guides.items() if member.family.has_log_prob}
        draws = [q.sample((512,))[:, 0] for q in members.values()]
        range_of_prior = prior.sample((4096,)).quantile(torch.tensor(REACH).to(x), dim=0)

        # Grids in double precision, else they are not even far from zero; the model takes its own.
        def log_joint_on(grid: Float[Tensor, "2 n"]) -> tuple[Tensor, Tensor]:
            z = torch.cartesian_prod(*grid).to(range_of_prior)
            log_joint = densities(vae.model, one, z.unsqueeze(1), site="z").log_joint[:, 0]
            return z, log_joint.nan_to_num(nan=-math.inf, posinf=math.inf).where(prior.support.check(z), -math.inf)

        grid = _around([range_of_prior, *draws], COARSE)
        for size in (COARSE, COARSE, POSTERIOR_SIZE):
            z, log_joint = log_joint_on(grid)
            # A normal density has enclosed 95 % of the mass 3 nats below its peak. The peak itself is always among
            # them: a number of ten million has no digit for six nats less.
            near = z[log_joint >= log_joint.max() - 6].double()
            margin = 2 * (grid[:, 1] - grid[:, 0]) + 0.5 * (near.amax(0) - near.amin(0))
            grid = _around([near - margin, near + margin, *draws], size)
        z, log_joint = log_joint_on(grid)
        log_q = {name: q.log_prob(z.unsqueeze(1))[:, 0] for name, q in members.items()}
        inside, shape = prior.support.check(z), (POSTERIOR_SIZE, POSTERIOR_SIZE)
        log_q = {name: values.where(inside, -math.inf).reshape(shape) for name, values in log_q.items()}
        return grid, log_joint.reshape(shape), log_q


def _around(points: Sequence[Float[Tensor, "S 2"]], size: int) -> Float[Tensor, "2 n"]:
    """Values of each dimension, evenly spaced from the least to the largest, in double precision."""
    every = torch.cat([some.double() for some in points])
    share = torch.linspace(0, 1, size).to(every)
    return torch.lerp(every.amin(0)[:, None], every.amax(0)[:, None], share)


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
