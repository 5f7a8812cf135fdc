"""The deterministic baselines: principal component analysis and the autoencoder. Neither has a density."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from inference.batches import Data, chunks, fetch, require_data, require_numbers, require_rows
from inference.compiled import worthwhile
from inference.counts import require_kind
from inference.isolation import eval_mode, running
from inference.noise import like, resolve_seed, seeded
from inference.objectives import Gradients, Objective
from inference.training import Training, device_for, optimise
from pyro_vae.networks import check_size

__all__ = ["PCA", "Autoencoder", "AutoencoderFit"]


class PCA(nn.Module):
    r"""Principal component analysis: the affine map to D dimensions and back with the least squared error.

    .. math::
        \mathrm{encode}(x) = U^\top (x - b), \qquad \mathrm{reconstruct}(x) = U U^\top (x - b) + b

    It has no density: `pyro_vae.LinearGaussian` is the probabilistic model of the same subspace.

    Args:
        components: U transposed, (D, P), orthonormal rows.
        mean: b, (P,).

    Raises:
        ValueError: shapes that do not fit.

    References:
        Pearson, On lines and planes of closest fit to systems of points in space, 1901.

    Example:
        >>> x = torch.randn(100, 1) * torch.ones(3)
        >>> pca = PCA.fit(x, 1)
        >>> torch.allclose(pca.reconstruct(x), x)
        True
    """

    components: Tensor
    mean: Tensor

    def __init__(self, components: Float[Tensor, "D P"], mean: Float[Tensor, " P"]) -> None:
        super().__init__()
        for name, value in (("components", components), ("mean", mean)):
            require_kind(name, value, Tensor)
        if components.dim() != 2 or tuple(mean.shape) != tuple(components.shape[1:]):
            raise ValueError(
                f"components, mean: expected shapes (D, P) and (P,); got {tuple(components.shape)} and "
                f"{tuple(mean.shape)}. PCA.fit(x, num_latents) makes both."
            )
        self.register_buffer("components", components.detach().clone())
        self.register_buffer("mean", mean.detach().clone())

    @classmethod
    def fit(cls, x: Float[Tensor, "N P"], num_latents: int) -> Self:
        """The first components of the data, by scikit-learn's `PCA` (the full decomposition, without random numbers).

        Args:
            x: data, (N, P).
            num_latents: D, at most the smaller of N and P.

        Raises:
            ValueError: D is too large, or a value is missing or infinite.
        """
        # Imported here: scikit-learn takes a second.
        from sklearn.decomposition import PCA as _PCA

        size = check_size("PCA", "num_latents", num_latents)
        require_kind("x", x, Tensor, hint="Try torch.as_tensor.")
        require_numbers(x, name="x")
        if x.dim() != 2 or len(x) < 2:
            raise ValueError(f"x: expected shape (N, P) with at least 2 rows; got {tuple(x.shape)}.")
        if not bool(x.isfinite().all()):
            raise ValueError(
                "x: expected finite numbers; got NaN or infinity. LinearGaussian.fit_em takes missing values."
            )
        if size > min(x.shape):
            raise ValueError(
                f"num_latents: expected at most {min(x.shape)}, the smaller of N and P; got {size}. Take fewer."
            )
        if not bool((x != x[0]).any()):
            raise ValueError("x: expected rows that differ; got the same row throughout, which no direction explains.")
        fitted = _PCA(size, svd_solver="full").fit(x.detach().cpu().double().numpy())
        # Of integers the components are no integers.
        return cls(torch.from_numpy(fitted.components_).to(like(x)), torch.from_numpy(fitted.mean_).to(like(x)))

    @property
    def num_latents(self) -> int:
        """D."""
        return len(self.components)

    def encode(self, x: Float[Tensor, "N P"]) -> Float[Tensor, "N D"]:
        """Codes: coordinates in the subspace.

        Args:
            x: data, (N, P).

        Raises:
            ValueError: `x` has another shape.
        """
        _check_rows(x, len(self.mean))
        return (x - self.mean) @ self.components.T

    def decode(self, z: Float[Tensor, "N D"]) -> Float[Tensor, "N P"]:
        """The points of these coordinates.

        Args:
            z: codes, (N, D).
        """
        _check_rows(z, self.num_latents, name="z")
        return z @ self.components + self.mean

    def reconstruct(self, x: Float[Tensor, "N P"]) -> Float[Tensor, "N P"]:
        """The nearest point of the subspace, in the units of x.

        Args:
            x: data, (N, P).

        Raises:
            ValueError: `x` has another shape.
        """
        return self.decode(self.encode(x))

    def extra_repr(self) -> str:
        """Its sizes."""
        num_latents, num_values = self.components.shape
        return f"{num_values}, {num_latents}"


@dataclass(frozen=True, eq=False, kw_only=True)
class AutoencoderFit:
    """How the training of an autoencoder went. The networks are fitted in place.

    Attributes:
        squared_error: (E,) sum over data values of the squared error, one value an epoch, averaged over the epoch's
            minibatches at the parameters each was visited with.
        squared_error_validation: (E,) the same on held-out data at the end of each epoch, or None.
        seconds: wall-clock seconds.
        num_steps: number of optimiser steps.
        stopped_because: one phrase: why the run ended.
        best_epoch: 0-based epoch whose parameters were kept (early stopping), or None: the last ones.
        settings: everything needed to run it again.
    """

    squared_error: Float[Tensor, " E"]
    squared_error_validation: Float[Tensor, " E"] | None
    seconds: float
    num_steps: int
    stopped_because: str
    best_epoch: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line: length, the error of the epoch that was kept, and why it stopped."""
        validation, kept = self.squared_error_validation, -1 if self.best_epoch is None else self.best_epoch
        held_out = "" if validation is None else f", held-out {validation[kept]:.4g}"
        which = "" if self.best_epoch is None else f" at the kept epoch {kept + 1}"
        return (
            f"{len(self.squared_error)} epochs, {self.num_steps} steps, {self.seconds:.1f} s: squared error "
            f"{self.squared_error[kept]:.4g}{held_out} per datapoint{which}; stopped because: {self.stopped_because}"
        )


class Autoencoder(nn.Module):
    r"""Two networks trained to hand x on through D numbers, by squared error.

    .. math::
        \min \frac1N \sum_n \| x_n - \mathrm{decoder}(\mathrm{encoder}(x_n)) \|^2

    With linear networks the best it can do is principal component analysis (Baldi & Hornik 1989). It has no prior and
    no likelihood, so it cannot generate and has no log p(x).

    Args:
        encoder: module from (B, P) to (B, D).
        decoder: module from (B, D) to (B, P).

    Raises:
        ValueError: the networks announce sizes that do not fit together.

    References:
        Baldi & Hornik, Neural networks and principal component analysis, 1989.

    Example:
        >>> from pyro_vae.networks import MLP
        >>> autoencoder = Autoencoder(MLP(5, 16, 2), MLP(2, 16, 5))
        >>> fit = autoencoder.fit(torch.randn(64, 5), training=Training(epochs=2), seed=0)
        >>> autoencoder.encode(torch.randn(3, 5)).shape
        torch.Size([3, 2])
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        require_kind("encoder", encoder, nn.Module)
        require_kind("decoder", decoder, nn.Module)
        inner = getattr(encoder, "num_outputs", None), getattr(decoder, "num_inputs", None)
        outer = getattr(encoder, "num_inputs", None), getattr(decoder, "num_outputs", None)
        for (left, right), what in ((inner, "codes"), (outer, "data values")):
            if None not in (left, right) and left != right:
                raise ValueError(
                    f"decoder: expected the encoder's number of {what}, {left}; got {right}. Give both the same."
                )
        self.encoder = encoder
        self.decoder = decoder

    def fit(
        self,
        data: Data,
        *,
        training: Training = Training(),  # noqa: B008 (frozen)
        validation: Data | None = None,
        seed: int | None = None,
    ) -> AutoencoderFit:
        """Train both networks in place, by the loop that trains everything here.

        Of the settings, `warm_up` weights a KL term that is not there; `tol_elbo` is in units of the squared error.

        Args:
            data: (N, P) training data.
            training: settings.
            validation: held-out data, measured at the end of each epoch and used by `Training.patience`.
            seed: of shuffling; one seed fixes the run bit for bit on one machine.

        Returns:
            The squared error over training, and why the run ended.

        Raises:
            ValueError: the networks do not return data, or there is nothing to train.
            FloatingPointError: a value became NaN or infinite.
        """
        seed = resolve_seed(seed)
        require_data(data)
        if validation is not None:
            require_data(validation, name="validation")
        leaves = {name: leaf for name, leaf in self.named_parameters() if leaf.requires_grad}
        if not leaves:
            raise ValueError("encoder, decoder: expected parameters to train; found none.")
        device = device_for(training, self)
        objective = _SquaredError(self)

        def values(x: Tensor) -> tuple[Tensor, Tensor]:
            loss = objective(x)
            return loss, -loss

        gradients = Gradients(
            objective,
            values,
            leaves.values(),
            self,
            compile=worthwhile(training.compile, training.num_steps(len(data))),
            precision=training.precision,
        )

        @torch.no_grad()
        def held_out(rows: Data) -> float:
            total = 0.0
            with eval_mode(self):
                for begin, end in chunks(len(rows), 1024):
                    x = fetch(rows, torch.arange(begin, end), device=device)
                    total += float(objective(x)) * len(x)
            return -total / len(rows)

        with seeded(seed):
            fit = optimise(
                objective,
                lambda x, index, lr_factor: gradients(x),  # noqa: ARG005
                leaves,
                data,
                training,
                keep=[self],
                device=device,
                held_out=None if validation is None else lambda: held_out(validation),
                blame=lambda x: None,  # noqa: ARG005
                label="autoencoder",
                seed=seed,
            )
        return AutoencoderFit(
            squared_error=-fit.elbo,  # type: ignore[operator]
            squared_error_validation=None if fit.elbo_validation is None else -fit.elbo_validation,
            seconds=fit.seconds,
            num_steps=fit.num_steps,
            stopped_because=fit.stopped_because.replace("ELBO", "squared error")
            .replace("gained", "fell by")
            .replace(" nats", ""),
            best_epoch=fit.best_epoch,
            settings={**fit.settings, "engine": "squared error", "seed": seed},
        )

    def encode(self, x: Float[Tensor, "N P"]) -> Float[Tensor, "N D"]:
        """Codes, with gradients and in the module's present mode (train or eval).

        Args:
            x: data, (N, P).
        """
        require_rows(x)
        with running(self.encoder, x, name="x"):
            return self.encoder(x)

    def decode(self, z: Float[Tensor, "N D"]) -> Float[Tensor, "N P"]:
        """What these codes stand for.

        Args:
            z: codes, (N, D).
        """
        require_rows(z, name="z")
        with running(self.decoder, z, name="z"):
            return self.decoder(z)

    def reconstruct(self, x: Float[Tensor, "N P"]) -> Float[Tensor, "N P"]:
        """The decoder at the codes of x. Without gradients, in `eval()` mode.

        Args:
            x: data, (N, P).

        Returns:
            Reconstructions, (N, P), in the units of x.
        """
        with eval_mode(self), torch.no_grad():
            return self.decode(self.encode(x))

    def __repr__(self) -> str:
        """Both networks."""
        return f"Autoencoder(\n  encoder: {self.encoder!r}\n  decoder: {self.decoder!r}\n)"


class _SquaredError(Objective):
    """The squared error of the reconstructions, summed over data values and averaged over datapoints."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, x: Float[Tensor, "B P"]) -> Float[Tensor, ""]:
        mean = self.autoencoder.decode(self.autoencoder.encode(x))
        if mean.shape != x.shape:
            raise ValueError(
                f"decoder: expected reconstructions of shape {tuple(x.shape)}, that of x; got {tuple(mean.shape)}. End "
                f"the decoder in {x.shape[-1]} outputs."
            )
        return (x - mean).square().sum(-1).mean()


def _check_rows(x: Tensor, num_values: int, *, name: str = "x") -> None:
    require_kind(name, x, Tensor, hint="Try torch.as_tensor.")
    require_numbers(x, name=name)
    if x.dim() != 2 or x.shape[1] != num_values:
        raise ValueError(f"{name}: expected shape (N, {num_values}), one row a datapoint; got {tuple(x.shape)}.")
