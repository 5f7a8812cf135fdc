"""The posterior approximation q(z | x) of each new row."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from inference import Amortized, Local
from inference.chunked import over_chunks
from inference.counts import require_count
from inference.densities import guide_distribution
from inference.families import from_noise, noise_size
from inference.isolation import device_of, frozen
from inference.noise import antithetic, like, normal_noise, resolve_seed, seeded
from inference.scoring import guide_of, require_draws, require_sound
from pyro_vae.data.preprocessing import NewRows
from pyro_vae.new_data.proposals import searched
from pyro_vae.new_data.records import Encoded
from pyro_vae.new_data.writing import require_room
from pyro_vae.vae import VAE

__all__ = ["encode"]


def encode(
    vae: VAE, rows: NewRows, *, num_draws: int | None = None, num_moment_draws: int = 2048, seed: int = 0
) -> Encoded:
    """Mean and standard deviation of q(z | x) of each row, and draws of it where they are asked for.

    Where the model has no encoder, q is the best member of its family, found by a search for each row.

    Args:
        vae: the fitted model.
        rows: as `Preprocessing.read` returns them.
        num_draws: draws of q that are kept for each row; None: none.
        num_moment_draws: draws, in antithetic pairs, behind mean and standard deviation where q has neither in closed
            form, as a flow.
        seed: of the draws and of the search.

    Raises:
        ValueError: a number is out of range, or the rows do not fit the model.

    Example:
        >>> from inference import MeanField
        >>> from pyro_vae.data import Preprocessing
        >>> from pyro_vae.likelihoods import GaussianSharedScale
        >>> from pyro_vae.networks import Linear
        >>> from pyro_vae.priors import StandardNormal
        >>> vae = VAE(
        ...     prior=StandardNormal(2),
        ...     likelihood=GaussianSharedScale(mask=True),
        ...     decoder=Linear(2, 5),
        ...     family=MeanField(2),
        ...     encoder=Linear(5, 4),
        ... )
        >>> dtype = next(vae.parameters()).dtype
        >>> rows = Preprocessing(num_values=5).read(torch.ones(3, 5), dtype=dtype)
        >>> encode(vae, rows).mean.shape
        torch.Size([3, 2])
    """
    seed = resolve_seed(seed)
    if num_draws is not None:
        require_count("num_draws", num_draws)
        require_room(len(rows) * num_draws * vae.num_latents, "draws of all rows")
    require_draws(num_moment_draws, least=4, name="num_moment_draws")
    x, guide, refined = rows.x, vae.guide, None
    own: Amortized | Local
    if guide is None:
        own, refined = searched(vae, x, seed=seed)
        method = f"q is the best member of {own.family!r} found for each row: the run has no encoder"
    else:
        own, method = guide, f"q of the encoder, in {guide.family!r}"

    def work(index: Tensor, x: Tensor) -> dict[str, Tensor]:
        here = guide_of(own, index, num_data=len(rows))
        site, q = guide_distribution(here, x)
        require_sound(vae.model, here, q, x, site=site)
        known = _moments(q)
        found = {"is_exact": torch.full((len(x),), known is not None)}
        if known is None:
            noise = normal_noise(seed, "moments", index, (num_moment_draws // 2, noise_size(q)), like=like(x))
            z = torch.cat([from_noise(q, part)[0].double() for part in antithetic(noise).split(256)])
            known = z.mean(0), z.std(0)
        found |= {"mean": known[0], "sd": known[1]}
        if num_draws is not None:
            noise = normal_noise(seed, "draws", index, (num_draws, noise_size(q)), like=like(x))
            found["draws"] = from_noise(q, noise)[0].movedim(0, 1)
        return found

    with frozen(vae.model, own), seeded(seed), torch.no_grad():
        columns = over_chunks(work, vae.model, x, max(64, num_draws or 0), "encoding", device=device_of(vae.model, own))
    if not bool(columns.pop("is_exact").all()):
        method += f"; its moments are those of {num_moment_draws} draws"
    return Encoded(
        mean=columns["mean"],
        sd=columns["sd"],
        draws=columns.get("draws"),
        elbo=None if refined is None else refined.elbo,
        converged=None if refined is None else refined.converged,
        where=rows.where,
        id_name=rows.id_name,
        ids=rows.ids,
        method=method,
        remarks=rows.notes,
        settings={"num_draws": num_draws, "num_moment_draws": num_moment_draws, "seed": seed},
    )


def _moments(q: Distribution) -> tuple[Tensor, Tensor] | None:
    """Mean and standard deviation, where they have a closed form."""
    try:
        return q.mean, q.stddev
    except NotImplementedError:
        return None
