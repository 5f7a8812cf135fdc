"""Values of new rows that were not observed, given those that were."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyro
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import Distribution

from inference import Defensive
from inference.chunked import over_chunks
from inference.counts import require_count
from inference.densities import guide_distribution
from inference.evidence import proposal_draws
from inference.isolation import device_of, frozen
from inference.memory import draws_for
from inference.noise import BLOCK, derive_seed, measured, resolve_seed, seeded
from inference.progress import track
from inference.scoring import guide_of, require_draws, require_readable
from inference.weights import ess, pareto_k
from pyro_vae.data.preprocessing import NewRows
from pyro_vae.new_data.proposals import proposal
from pyro_vae.new_data.records import Imputed
from pyro_vae.new_data.writing import require_room
from pyro_vae.vae import VAE

__all__ = ["impute"]


def impute(
    vae: VAE, rows: NewRows, *, num_draws: int | None = None, num_importance_draws: int = 5000, seed: int = 0
) -> Imputed:
    r"""Fill in the values that were not observed, given those that were.

    .. math::
        p(x_m \mid x_o) = \int p(x_m \mid z, x_o) \, p(z \mid x_o) \, dz
        \approx \sum_s \bar w_s \, p(x_m \mid z_s, x_o), \qquad
        \bar w_s \propto \frac{p(x_o, z_s)}{r(z_s)}, \quad z_s \sim r

    by self-normalised importance sampling from the proposal r that log p(x) is estimated with: a search for each row,
    started at the encoder where there is one, then widened and mixed with the prior.

    Args:
        vae: the fitted model; its likelihood leaves out missing values (mask=True).
        rows: as `Preprocessing.read` returns them.
        num_draws: draws of the missing values that are kept for each row; None: none.
        num_importance_draws: importance draws of z for each row.
        seed: of all draws.

    Raises:
        ValueError: the likelihood takes no missing values, or a number is out of range.

    References:
        Mattei & Frellsen (2019), MIWAE: deep generative modelling and imputation of incomplete data sets.

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
        >>> x = torch.ones(3, 5)
        >>> x[1, 2] = torch.nan
        >>> rows = Preprocessing(num_values=5).read(x, dtype=dtype, allow_missing=True)
        >>> impute(vae, rows, num_importance_draws=100).missing.sum()
        tensor(1)
    """
    seed = resolve_seed(seed)
    if not vae.likelihood.mask:
        raise ValueError(
            f"impute: expected a likelihood that leaves out missing values; got {vae.likelihood!r}. Fit with mask=True "
            "(--likelihood.mask; with --data.missing keep where the fit's data have such values, too)."
        )
    if num_draws is not None:
        require_count("num_draws", num_draws)
        require_room(len(rows) * num_draws * rows.x.shape[1], "draws of all rows")
    require_draws(num_importance_draws, least=50, name="num_importance_draws")
    missing = rows.x.isnan()
    incomplete = torch.nonzero(missing.any(1)).flatten()
    columns: dict[str, Tensor] = {}
    if len(incomplete):
        x = rows.x[incomplete]
        with frozen(vae.model), torch.no_grad():
            # Here, where a row still has its number in the file.
            for few in incomplete.split(4096):
                require_readable(vae.model, rows.x[few].to(device_of(vae.model)), few)
        local = proposal(vae, x, seed=seed)

        def work(index: Tensor, x: Tensor) -> dict[str, Tensor]:
            parts = []
            blocks = torch.arange(len(index)).split(BLOCK)
            for within in track(blocks, len(blocks), "imputation", "block"):
                part = guide_of(local, index[within], num_data=len(incomplete))
                _, q = guide_distribution(part, x[within])
                block = int(index[within[0]]) // BLOCK
                parts.append(_block(vae, x[within], block, q, local.site, num_draws, num_importance_draws, seed=seed))
            return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

        with frozen(vae.model, local), seeded(seed), torch.no_grad():
            columns = over_chunks(
                work, vae.model, x, max(64, num_draws or 0), "imputation", device=device_of(vae.model, local)
            )
    return _assembled(rows, missing, incomplete, columns, num_draws, num_importance_draws, seed)


def _block(
    vae: VAE,
    x: Float[Tensor, "B P"],
    block: int,
    q: Distribution,
    site: str,
    num_draws: int | None,
    num_importance_draws: int,
    *,
    seed: int,
) -> dict[str, Tensor]:
    """Posterior moments of the values of one block of rows, with their errors, and draws."""
    drawn = list(
        proposal_draws(vae.model, x, block, q, Defensive(), site=site, num_draws=num_importance_draws, seed=seed)
    )
    z, log_w = torch.cat([few_z for few_z, _ in drawn]), torch.cat([few_w for _, few_w in drawn])
    weight = log_w.softmax(0).unsqueeze(-1)  # (S, B, 1)

    def given() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        # Computed anew for each pass: all draws at once may not fit into memory.
        parts = zip(z.split(draws_for(x)), weight.split(draws_for(x)), strict=True)
        for number, (few_z, few_w) in enumerate(parts):
            yield few_w, *_given(vae, few_z, x, seed=derive_seed(seed, "values", block, number))

    mean = torch.zeros_like(x, dtype=torch.float64)
    for few_w, loc, _ in given():
        mean = mean + (few_w * loc).sum(0)
    variance, error, once, twice = (torch.zeros_like(mean) for _ in range(4))
    for few_w, loc, own in given():
        square = own + (loc - mean).square()
        variance = variance + (few_w * square).sum(0)
        error = error + (few_w * (loc - mean)).square().sum(0)
        once = once + (few_w.square() * square).sum(0)
        twice = twice + (few_w * square).square().sum(0)
    # Of self-normalised means, by the delta method.
    spread = (twice - 2 * variance * once + variance.square() * weight.square().sum(0)).clamp_min(0.0).sqrt()
    sd = variance.sqrt()
    sd_se = torch.where(sd > 0, spread / (2 * sd), 0.0)
    found = {"mean": mean, "sd": sd, "mean_se": error.sqrt(), "sd_se": sd_se}
    found |= {"ess": ess(log_w), "pareto_k": pareto_k(log_w)}
    if num_draws is not None:
        with measured(derive_seed(seed, "resample", block)):
            # For a full block, so that a row's draws do not depend on what follows it.
            uniform = torch.rand(BLOCK, num_draws, dtype=torch.float64)[: len(x)].to(x.device)
        chosen = torch.searchsorted(weight.squeeze(-1).T.cumsum(1).contiguous(), uniform).clamp_max(len(z) - 1)
        picked = z.gather(0, chosen.T.unsqueeze(-1).expand(-1, -1, z.shape[-1]))
        values = [
            _drawn(vae, few_z, x, seed=derive_seed(seed, "drawn", block, number))
            for number, few_z in enumerate(picked.split(draws_for(x)))
        ]
        found["draws"] = torch.cat(values).movedim(0, 1)
    return found


def _given(vae: VAE, z: Float[Tensor, "S B D"], x: Float[Tensor, "B P"], *, seed: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each value given z and what was observed; a draw and 0 where they have no closed form."""
    with pyro.validation_enabled(is_validate=False):
        p = _conditional(vae, z, x)
        try:
            return p.mean.double(), p.variance.double()
        except NotImplementedError:
            value = _drawn(vae, z, x, seed=seed)
            return value, torch.zeros_like(value)


def _conditional(vae: VAE, z: Float[Tensor, "S B D"], x: Float[Tensor, "B P"]) -> Any:  # noqa: ANN401
    # Of x as the model takes it, whatever unit `decode` speaks in.
    return vae.likelihood.conditional(vae.likelihood(vae.decoder_output(z)), x)


def _drawn(vae: VAE, z: Float[Tensor, "S B D"], x: Float[Tensor, "B P"], *, seed: int) -> Float[Tensor, "S B P"]:
    num_rows = len(x)
    with pyro.validation_enabled(is_validate=False), measured(seed):
        # Of a full block: a row's draws do not depend on what follows it.
        rows = torch.arange(BLOCK).clamp_max(num_rows - 1).to(x.device)
        p: Any = _conditional(vae, z[:, rows], x[rows])
        return p.sample()[:, :num_rows].double()


def _assembled(
    rows: NewRows,
    missing: Bool[Tensor, "N P"],
    incomplete: Tensor,
    columns: dict[str, Tensor],
    num_draws: int | None,
    num_importance_draws: int,
    seed: int,
) -> Imputed:
    """The rows with their missing values filled, in the units of the file."""
    observed = torch.from_numpy(np.column_stack([values.astype(np.float64) for values in rows.columns.values()]))
    filled = observed.clone()
    sd, x_se, sd_se = (torch.zeros_like(filled) for _ in range(3))
    effective, tail = (torch.full((len(rows),), torch.nan, dtype=torch.float64) for _ in range(2))
    draws = None if num_draws is None else observed.unsqueeze(1).repeat(1, num_draws, 1)
    if columns:
        here = missing[incomplete]
        unit = rows.scale.abs()
        filled[incomplete] = torch.where(here, rows.in_file_units(columns["mean"]), observed[incomplete])
        for target, name in ((sd, "sd"), (x_se, "mean_se"), (sd_se, "sd_se")):
            target[incomplete] = torch.where(here, columns[name] * unit, 0.0)
        effective[incomplete], tail[incomplete] = columns["ess"], columns["pareto_k"]
        if draws is not None:
            drawn = rows.in_file_units(columns["draws"])
            draws[incomplete] = torch.where(here.unsqueeze(1), drawn, draws[incomplete])
    return Imputed(
        names=tuple(rows.columns),
        x=filled,
        sd=sd,
        x_se=x_se,
        sd_se=sd_se,
        missing=missing,
        draws=draws,
        ess=effective,
        pareto_k=tail,
        originals=rows.columns,
        shape=rows.shape,
        where=rows.where,
        id_name=rows.id_name,
        ids=rows.ids,
        method=f"Self-normalised importance sampling, {num_importance_draws} draws a row from a widened q",
        remarks=rows.notes,
        settings={"num_draws": num_draws, "num_importance_draws": num_importance_draws, "seed": seed},
    )
