"""Where tensors are: devices by name, and copies to them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["resolve_device", "send"]


def resolve_device(name: str) -> torch.device:
    """The device of this name.

    Args:
        name: "cpu", "cuda", "cuda:1", ..., or "auto": the GPU where there is one, this process's where there are
            several processes, else the CPU.

    Raises:
        ValueError: this machine has no such device.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.empty(0, device=name).device
    # Torch says the same in several types.
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"device: expected one that this machine has, such as 'cpu'; got {name!r} ({reason}). Leave it out to stay "
            "where the model is."
        ) from error
    if device.type == "meta":
        raise ValueError("device: expected one that holds values, such as 'cpu'; got 'meta', which holds none.")
    return device


def send(values: Tensor, device: torch.device) -> Tensor:
    """The same values on a device. Nobody waits for a copy to a GPU, which goes on with what it was asked for before.

    Args:
        values: on any device.
        device: where they go.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        # From memory that the system may move, the copy would wait for all work before it.
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
