"""Any distribution, module or function of the user's as a prior."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.distribution import Distribution as PyroDistribution
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.distributions.constraints import Constraint

__all__ = ["as_prior"]


def as_prior(prior: nn.Module | Distribution | Callable[[], Distribution]) -> nn.Module:
    """The prior as a module whose call returns a Pyro distribution with batch shape () and event shape (D,).

    Args:
        prior: one of

            * a module whose call returns such a distribution: returned as it is, and trained where it has parameters;
              it may say what the decoder reads of z, by a method `features(z)` from (*B, D) to (*B, F) and an
              attribute `num_features`, F;
            * a distribution, of Pyro or of torch: its tensors become buffers (kept in the state dict), so that it
              follows `.to()` and `.double()`; modules inside it (Pyro's flows) are trained with the rest;
            * any other callable that returns one: called each time; its tensors stay where the callable makes them.

    Raises:
        ValueError: what is returned is not a continuous distribution over (D,) vectors, or has tensors that would
            silently not be trained; or a module has one of `features` and `num_features` without the other.

    Example:
        >>> import pyro.distributions as dist
        >>> as_prior(dist.Laplace(torch.zeros(3), 1.0).to_event(1))().event_shape
        torch.Size([3])
    """
    if isinstance(prior, Distribution | PyroDistribution):
        module: nn.Module = _Fixed(prior)
    elif isinstance(prior, nn.Module):
        module = prior
    elif callable(prior) and not isinstance(prior, type):
        module = _Called(prior)
    else:
        hint = " Call the class: pass an object of it." if isinstance(prior, type) else ""
        raise ValueError(
            "prior: expected a distribution with event shape (D,), or a module or function returning one; got "
            f"{prior!r}.{hint}"
        )
    _check(module())
    _check_features(module)
    return module


def _check(p: object) -> None:
    if not isinstance(p, PyroDistribution):
        pyro_class = getattr(dist, type(p).__name__, None) if isinstance(p, Distribution) else None
        hint = f"Return pyro.distributions.{type(p).__name__}" if pyro_class else "Return one from pyro.distributions"
        raise ValueError(
            f"prior: expected a call to return a Pyro distribution; got {type(p).__module__}.{type(p).__name__}. "
            f"{hint}."
        )
    batch_shape, event_shape = tuple(p.batch_shape), tuple(p.event_shape)  # type: ignore[attr-defined]
    if len(event_shape) == 1 and batch_shape == () and event_shape[0] > 0:
        _check_support(p)
        return
    if event_shape == () and len(batch_shape) == 1:
        hint = "Declare the latent dimension: prior.to_event(1)."
    elif event_shape == () and batch_shape == ():
        hint = "Make it a vector: prior.expand([D]).to_event(1)."
    else:
        hint = "It must be one distribution over one vector: flatten it or drop its batch dimensions."
    if event_shape == (0,):
        hint = "Give z at least one dimension."
    raise ValueError(
        f"prior: expected batch shape () and event shape (D,); got batch shape {batch_shape} and event shape "
        f"{event_shape}. {hint}"
    )


def _check_support(p: Any) -> None:
    try:
        discrete = p.support.is_discrete
    except NotImplementedError as error:
        raise ValueError(
            f"prior: expected a distribution that says where z lives; {type(p).__name__} has no support. Declare it in "
            "the class: support = constraints.real_vector."
        ) from error
    if discrete:
        raise ValueError(
            f"prior: expected a continuous distribution; got {p}, which is discrete. Sum discrete variables out: a "
            "mixture's choice of component, for example, as GaussianMixture does."
        )


def _check_features(prior: nn.Module) -> None:
    has_features, num_features = hasattr(prior, "features"), getattr(prior, "num_features", None)
    if has_features != (num_features is not None):
        has, lacks = ("features", "num_features") if has_features else ("num_features", "features")
        raise ValueError(
            f"prior: expected features(z), which the decoder reads, and num_features, its size, together or not at "
            f"all; {type(prior).__name__} has {has} alone. Add {lacks}, or rename {has} if it means something else."
        )
    if has_features and (not isinstance(num_features, int) or num_features < 1 or not callable(prior.features)):
        raise ValueError(
            f"prior: expected a method features(z) and a positive integer num_features; {type(prior).__name__} has "
            f"num_features = {num_features!r}. Rename them if they mean something else."
        )


class _Called(nn.Module):
    """A user's function as a module."""

    def __init__(self, function: Callable[[], Distribution]) -> None:
        super().__init__()
        self.function = function

    def forward(self) -> Distribution:
        return self.function()

    def __repr__(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))


class _Fixed(nn.Module):
    """A distribution whose tensors are this module's buffers.

    torch's distributions have no `.to()`. So their tensors are found by walking through the object, and at every call
    the object is copied with the buffers in the tensors' places.
    """

    def __init__(self, distribution: Distribution | PyroDistribution) -> None:
        super().__init__()
        tensors: list[Tensor] = []
        modules: list[nn.Module] = []
        self._distribution = _rebuilt(distribution, tensors=_recorder(tensors), modules=modules)
        if any(tensor.requires_grad for tensor in tensors):
            raise ValueError(
                "prior: expected a fixed distribution; got one with tensors that require gradients, which would not be "
                "trained. "
                "Pass a module that owns the parameters and returns the distribution when called."
            )
        self._num_tensors = len(tensors)
        for i, tensor in enumerate(tensors):
            # A copy: expanded tensors share memory, which a state dict cannot be loaded into.
            self.register_buffer(f"tensor_{i}", tensor.detach().clone(memory_format=torch.contiguous_format))
        self.inner = nn.ModuleList(modules)

    def forward(self) -> Distribution:
        for module in self.inner.modules():
            # A flow remembers the pair it saw last, and would answer with it after its weights have changed.
            if hasattr(module, "_cached_x_y"):
                vars(module)["_cached_x_y"] = (None, None)
        buffers = iter([getattr(self, f"tensor_{i}") for i in range(self._num_tensors)])
        return _rebuilt(self._distribution, tensors=lambda _: next(buffers), modules=[])

    def __repr__(self) -> str:
        return f"Fixed({self._distribution})"


def _recorder(tensors: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def record(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor.detach()

    return record


def _rebuilt(
    value: Any, *, tensors: Callable[[Tensor], Tensor], modules: list[nn.Module], memo: dict | None = None
) -> Any:
    """A copy of a distribution with every tensor replaced, in a fixed order, and torch's classes by Pyro's."""
    memo = {} if memo is None else memo
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, Tensor):
        memo[id(value)] = tensors(value)
    elif isinstance(value, nn.Module):
        modules.append(value)
        memo[id(value)] = value
    elif isinstance(value, Distribution | PyroDistribution | Transform | Constraint):
        copied: Any = object.__new__(_pyro_class(type(value)))
        # Before the walk goes on: a transform and its inverse refer to each other.
        memo[id(value)] = copied
        for key, item in _state(value):
            copied.__dict__[key] = _rebuilt(item, tensors=tensors, modules=modules, memo=memo)
    elif type(value) in (list, tuple):
        memo[id(value)] = type(value)(_rebuilt(item, tensors=tensors, modules=modules, memo=memo) for item in value)
    elif type(value) is dict:
        memo[id(value)] = {
            key: _rebuilt(item, tensors=tensors, modules=modules, memo=memo) for key, item in value.items()
        }
    else:
        return value
    return memo[id(value)]


def _state(value: object) -> Iterator[tuple[str, Any]]:
    for key, item in vars(value).items():
        # The pair that a transform saw last belongs to the caller's computation.
        yield key, (None, None) if key == "_cached_x_y" else item


def _pyro_class(cls: type) -> type:
    if not issubclass(cls, Distribution) or issubclass(cls, PyroDistribution):
        return cls
    pyro_class = getattr(dist, cls.__name__, None)
    if isinstance(pyro_class, type) and issubclass(pyro_class, cls):
        return pyro_class
    raise ValueError(
        f"prior: expected a distribution that Pyro can sample; got {cls.__module__}.{cls.__name__}. Derive it from "
        "TorchDistribution."
    )
