"""The approximate posterior of each new row, from the encoder or by a search."""

from __future__ import annotations

import torch
from torch import Tensor

from inference import Local, Refined, Search, refine
from inference.chunked import over_chunks
from inference.densities import guide_distribution
from inference.evidence import proposal_family, proposal_rows
from inference.evidence.importance import PROPOSAL_TOL
from inference.families import Family
from inference.isolation import device_of, frozen
from inference.noise import like, seeded
from inference.scoring import require_sound
from pyro_vae.vae import VAE

__all__ = ["proposal", "searched"]


def searched(vae: VAE, x: Tensor, *, seed: int) -> tuple[Local, Refined]:
    """The best member of the model's family for each row, where there is no encoder.

    Args:
        vae: a model without an encoder.
        x: (N, P) rows.
        seed: of the search.

    Raises:
        ValueError: the model has no family.
    """
    family = vae.family
    if family is None:
        raise ValueError("family: expected a VAE with a variational family, or an encoder; got neither. Pass family=.")
    if not family.is_fitted:
        # A flow whose weights were never trained says nothing: Monte Carlo EM does without one.
        family = proposal_family(_member(family, x))
    refined = refine(vae.model, family, x, seed=seed)
    return Local(family, refined.params), refined


def proposal(vae: VAE, x: Tensor, *, seed: int) -> Local:
    """Rows of a richer family, close to the posterior of each x: what importance sampling draws from.

    Args:
        vae: the model; the search starts at its encoder, where it has one.
        x: (N, P) rows.
        seed: of the search.
    """
    guide = vae.guide
    if guide is None:
        family = vae.family
        if family is None:
            raise ValueError("family: expected a VAE with a variational family, or an encoder; got neither.")
        rich = proposal_family(_member(family, x))
        return Local(rich, refine(vae.model, rich, x, tol=PROPOSAL_TOL, seed=seed).params)
    with frozen(vae.model, guide), seeded(seed):
        with torch.no_grad():
            site, first = guide_distribution(guide, x[:1])
        rich = proposal_family(first).to(x.device)

        def work(index: Tensor, rows: Tensor) -> dict[str, Tensor]:
            with torch.no_grad():
                _, q = guide_distribution(guide, rows, site=site)
                require_sound(vae.model, guide, q, rows, site=site)
            return {"rows": proposal_rows(vae.model, rows, index, q, rich, site=site, search=Search(), seed=seed)}

        found = over_chunks(work, vae.model, x, Search().num_particles, "proposals", device=device_of(vae.model, guide))
    return Local(rich, found["rows"], site)


def _member(family: Family, x: Tensor) -> torch.distributions.Distribution:
    with torch.no_grad():
        return family(family.initial_params(1, like=like(x)))
