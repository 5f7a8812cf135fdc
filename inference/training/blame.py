"""Which site or parameter is to blame where a value became NaN or infinite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from inference.isolation import eval_mode
from inference.noise import own_random_state

__all__ = ["blame_leaf", "blame_site", "require_valid"]


def blame_leaf(leaves: Mapping[str, Tensor]) -> str | None:
    """Which parameter is not finite, or None."""
    for name, leaf in leaves.items():
        if not bool(leaf.isfinite().all()):
            return f"parameter '{name}'"
    return None


def blame_site(model: Callable[..., Any], guide: Callable[..., Any], x: Tensor) -> str | None:
    """Which site of this minibatch is the first whose value or log density is not finite."""
    with torch.no_grad(), pyro.validation_enabled(is_validate=False):
        guide_trace = poutine.trace(guide).get_trace(x)
        culprit = _blame_trace(guide_trace)
        return culprit or _blame_trace(poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x))


@torch.no_grad()
def require_valid(model: Callable[..., Any], x: Tensor) -> None:
    """Let Pyro refuse data outside a support, where its validation is on: compiled code does not look.

    Raises:
        ValueError: Pyro's, of the distribution that refuses.
    """
    if dist.is_validation_enabled():
        with eval_mode(model), own_random_state():
            poutine.trace(model).get_trace(x).compute_log_prob(lambda name, site: site["is_observed"])  # noqa: ARG005


def _blame_trace(trace: Any) -> str | None:  # noqa: ANN401 (Pyro's)
    for name, site in trace.nodes.items():
        if site["type"] == "sample":
            if not bool(site["value"].isfinite().all()):
                return f"the value of site '{name}'"
            if not bool(site["fn"].log_prob(site["value"]).isfinite().all()):
                return f"the log density of site '{name}'"
    return None
