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
    family = _family(vae)
    if not family.is_fitted:
        # A flow whose weights were never trained says nothing: Monte Carlo EM does without one.
        family = _rich(family, x, device_of(vae.model))
    refined = refine(vae.model, family, x, seed=seed)
    return Local(family, refined.params.to(device_of(vae.model))), refined


def proposal(vae: VAE, x: Tensor, *, seed: int) -> Local:
    """Rows of a richer family, close to the posterior of each x: what importance sampling draws from.

    Args:
        vae: the model; the search starts at its encoder, where it has one.
        x: (N, P) rows.
        seed: of the search.
    """
    guide, device = vae.guide, device_of(vae.model)
    if guide is None:
        rich = _rich(_family(vae), x, device)
        return Local(rich, refine(vae.model, rich, x, tol=PROPOSAL_TOL, seed=seed).params.to(device))
    with frozen(vae.model, guide), seeded(seed):
        with torch.no_grad():
            site, first = guide_distribution(guide, x[:1].to(device))
        rich = proposal_family(first).to(device)

        def work(index: Tensor, rows: Tensor) -> dict[str, Tensor]:
            with torch.no_grad():
                _, q = guide_distribution(guide, rows, site=site)
                require_sound(vae.model, guide, q, rows, site=site)
            return {"rows": proposal_rows(vae.model, rows, index, q, rich, site=site, search=Search(), seed=seed)}

        found = over_chunks(work, vae.model, x, Search().num_particles, "proposals", device=device)
    return Local(rich, found["rows"].to(device), site)


def _family(vae: VAE) -> Family:
    if vae.family is None:
        raise ValueError("family: expected a VAE with a variational family, or an encoder; got neither. Pass family=.")
    return vae.family.to(device_of(vae.model))


def _rich(family: Family, x: Tensor, device: torch.device) -> Family:
    """The family of proposals near members of this one."""
    with torch.no_grad():
        member = family(family.initial_params(1, like=like(x[:1].to(device))))
    return proposal_family(member).to(device)
