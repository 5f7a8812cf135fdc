"""Exact expectation maximisation for a linear decoder with Gaussian noise, with and without missing values."""

from __future__ import annotations

from collections.abc import Callable
from math import log, pi
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from inference.batches import require_numbers
from inference.counts import is_number, require_kind
from inference.progress import track
from pyro_vae.networks import check_size

__all__ = [
    "Noise",
    "Params",
    "check_data",
    "check_em",
    "complete_step",
    "maximise",
    "missing_step",
    "moments",
    "start",
]

Noise = Literal["isotropic", "diagonal"]
# Rows whose second moments are held at once.
_CHUNK = 4096


class Params(NamedTuple):
    """W (P, D), b (P,) and the noise variances s^2 (P,), all equal where the noise is isotropic."""

    weight: Float[Tensor, "P D"]
    bias: Float[Tensor, " P"]
    noise: Float[Tensor, " P"]


# Parameters in; the mean evidence at them (nats per datapoint), and the parameters that maximise the expected joint.
Step = Callable[[Params], tuple[float, Params]]


def start(x: Float[Tensor, "N P"], num_latents: int, *, noise: Noise, floor: float, seed: int) -> Params:
    """Where EM begins: half of each observed variance is noise, the other half comes from random weights.

    Args:
        x: data, NaN where not observed.
        num_latents: D.
        noise: one noise variance, or one a data value.
        floor: least noise scale.
        seed: of the weights.
    """
    observed = ~x.isnan()
    count = observed.sum(0)
    bias = x.nan_to_num().sum(0) / count
    variance = torch.where(observed, x - bias, 0.0).square().sum(0) / count
    half = 0.5 * (variance.mean().expand_as(variance) if noise == "isotropic" else variance)
    directions = torch.randn(len(bias), num_latents, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weight = directions.to(x) * (0.5 * variance / num_latents).sqrt().unsqueeze(-1)
    return Params(weight, bias, half.clamp(min=floor**2))


def maximise(step: Step, params: Params, *, tol: float, max_steps: int) -> tuple[Params, list[float], bool]:
    """Repeat a step until it raises the evidence by less than `tol`.

    Args:
        step: one E-step and M-step.
        params: where to begin.
        tol: nats per datapoint.
        max_steps: stop after so many M-steps.

    Returns:
        The parameters, the mean evidence at the start and after each step, and whether the last gain was below `tol`.
    """
    evidence, after = step(params)
    trace = [evidence]
    for _ in track(range(max_steps), max_steps, "EM", "step"):
        params = after
        evidence, after = step(params)
        trace.append(evidence)
        if trace[-1] - trace[-2] < tol:
            return params, trace, True
    return params, trace, False


def complete_step(covariance: Float[Tensor, "P P"], bias: Float[Tensor, " P"], *, noise: Noise, floor: float) -> Step:
    r"""The step for data without missing values, from the sample covariance C alone.

    .. math::
        G = \Lambda^{-1} W^\top S^{-2}, \quad
        W' = C G^\top (\Lambda^{-1} + G C G^\top)^{-1}, \quad
        s'^2 = \mathrm{diag}(C - W' G C)

    and the mean of that diagonal where the noise is isotropic. b is the sample mean throughout.

    Args:
        covariance: C, divided by N.
        bias: the sample mean.
        noise: one noise variance, or one a data value.
        floor: least noise scale.
    """
    variance = covariance.diagonal()

    def step(params: Params) -> tuple[float, Params]:
        scaled = params.weight / params.noise.unsqueeze(-1)
        tril = torch.linalg.cholesky(torch.eye(scaled.shape[1]).to(scaled) + params.weight.T @ scaled)
        gain = torch.cholesky_solve(scaled.T, tril)
        cross = covariance @ gain.T
        quadratic = (variance / params.noise).sum() - (scaled * cross).sum()
        log_det = 2 * tril.diagonal().log().sum() + params.noise.log().sum()
        evidence = -0.5 * float(quadratic + log_det + len(bias) * log(2 * pi))
        weight = torch.linalg.solve(torch.cholesky_inverse(tril) + gain @ cross, cross, left=False)
        left = variance - (weight * cross).sum(-1)
        left = left.mean().expand_as(left) if noise == "isotropic" else left
        return evidence, Params(weight, bias, left.clamp(min=floor**2))

    return step


def missing_step(x: Float[Tensor, "N P"], *, noise: Noise, floor: float) -> Step:
    r"""The step for data in which NaN is not observed: every row has the posterior given what it shows.

    With o the observed values of a row, and z~ = (z, 1),

    .. math::
        \Lambda_n = I + W_o^\top S_o^{-2} W_o, \qquad
        (w_p, b_p)' = \Big( \sum_{n: p \in o_n} E[\tilde z_n \tilde z_n^\top] \Big)^{-1}
        \sum_{n: p \in o_n} x_{np} E[\tilde z_n]

    and the noise is the mean of what is left over the observed entries.

    Args:
        x: data, with at least one observed entry in every column.
        noise: one noise variance, or one a data value.
        floor: least noise scale.
    """
    observed = ~x.isnan()
    count = observed.sum(0)
    # Around the observed means, so that the sums of squares do not cancel.
    shift = x.nan_to_num().sum(0) / count
    centred = torch.where(observed, x - shift, 0.0)
    mask = observed.to(centred)
    squares = centred.square().sum(0)

    def step(params: Params) -> tuple[float, Params]:
        num_values, num_latents = params.weight.shape
        bias = params.bias - shift
        scaled = params.weight / params.noise.unsqueeze(-1)
        outer = (params.weight.unsqueeze(-1) * scaled.unsqueeze(-2)).flatten(1)
        log_noise = params.noise.log() + log(2 * pi)
        total = 0.0
        second_moments = mask.new_zeros(num_values, (num_latents + 1) ** 2)
        cross = mask.new_zeros(num_values, num_latents + 1)
        for rows, shown in zip(centred.split(_CHUNK), mask.split(_CHUNK), strict=True):
            precision = torch.eye(num_latents).to(mask) + (shown @ outer).unflatten(-1, (num_latents, num_latents))
            tril = torch.linalg.cholesky(precision)
            residual = (rows - bias) * shown
            mean = torch.cholesky_solve((residual @ scaled).unsqueeze(-1), tril).squeeze(-1)
            left = (residual - (mean @ params.weight.T) * shown).square() / params.noise
            log_det = 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum() + (shown @ log_noise).sum()
            total -= 0.5 * float(left.sum() + mean.square().sum() + log_det)
            extended = torch.cat([mean, torch.ones_like(mean[:, :1])], -1)
            second = extended.unsqueeze(-1) * extended.unsqueeze(-2)
            second[:, :-1, :-1] += torch.cholesky_inverse(tril)
            second_moments += shown.T @ second.flatten(1)
            cross += rows.T @ extended
        solved = torch.linalg.solve(second_moments.unflatten(-1, (num_latents + 1,) * 2), cross.unsqueeze(-1))
        solved = solved.squeeze(-1)
        left_over = squares - (solved * cross).sum(-1)
        variance = (left_over.sum() / count.sum()).expand_as(squares) if noise == "isotropic" else left_over / count
        after = Params(solved[:, :-1], solved[:, -1] + shift, variance.clamp(min=floor**2))
        return total / len(x), after

    return step


def check_em(owner: str, noise: str, floor: float, tol: float, max_steps: int) -> None:
    """Refuse options that are out of range."""
    if noise not in get_args(Noise):
        raise ValueError(f"noise: expected one of {', '.join(get_args(Noise))}; got {noise!r}.")
    for name, value in (("floor", floor), ("tol", tol)):
        if not (is_number(value) and value > 0):
            raise ValueError(f"{name}: expected a positive number; got {value!r}.")
    check_size(owner, "max_steps", max_steps)


def check_data(x: Tensor, num_latents: int, *, missing: bool = False) -> tuple[Tensor, int]:
    """The data in double precision, and the checked latent size."""
    size = check_size("LinearGaussian", "num_latents", num_latents)
    require_kind("x", x, Tensor, hint="Try torch.as_tensor.")
    require_numbers(x, name="x")
    if x.dim() != 2 or len(x) < 2:
        raise ValueError(f"x: expected shape (N, P) with at least 2 rows; got {tuple(x.shape)}.")
    if missing and bool(x.isinf().any()):
        raise ValueError(
            "x: expected finite numbers, or NaN where not observed; got infinity. Drop or fill those rows."
        )
    if not missing and not bool(x.isfinite().all()):
        raise ValueError(
            "x: expected finite numbers; got NaN or infinity. Use fit_em, which takes NaN as not observed, or drop "
            "those rows."
        )
    if size >= x.shape[1]:
        raise ValueError(f"num_latents: expected fewer than the {x.shape[1]} data values; got {size}.")
    return x.detach().double(), size


def moments(x: Tensor, num_latents: int) -> tuple[Tensor, Tensor, int]:
    """Sample covariance (P, P) and mean (P,) in double precision, and the checked latent size."""
    rows, size = check_data(x, num_latents)
    bias = rows.mean(0)
    centred = rows - bias
    return centred.T @ centred / len(rows), bias, size
