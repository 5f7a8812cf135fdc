"""Optimisation of a table of parameters, one row a datapoint."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["RowAdam"]


class RowAdam:
    r"""Adam whose state belongs to rows: a row that is not visited does not move and does not age.

    Dense Adam on a table moves the rows outside the minibatch through stale momentum; here each row has its own moments
    and its own step count.

    Args:
        num_rows: N.
        num_params: K.
        betas: decay rates of the two moments.
        eps: added to the denominator.
        like: tensor whose dtype and device the state takes.

    References:
        Kingma & Ba (2015), Adam: a method for stochastic optimization.

    Example:
        >>> table = torch.zeros(5, 2)
        >>> optimizer = RowAdam(5, 2, like=table)
        >>> index = torch.tensor([1, 3])
        >>> optimizer.step(table[index], torch.ones(2, 2), index, lr=0.1)
        tensor([[-0.1000, -0.1000],
                [-0.1000, -0.1000]])
    """

    def __init__(
        self,
        num_rows: int,
        num_params: int,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        like: Tensor,
    ) -> None:
        self.betas = betas
        self.eps = eps
        self.first = like.new_zeros(num_rows, num_params)
        self.second = like.new_zeros(num_rows, num_params)
        self.count = like.new_zeros(num_rows, 1)

    def step(
        self,
        rows: Float[Tensor, "B K"],
        grad: Float[Tensor, "B K"],
        index: Int[Tensor, " B"],
        *,
        lr: float | Float[Tensor, "B 1"],
    ) -> Float[Tensor, "B K"]:
        """The rows after one step down the gradient.

        Args:
            rows: (B, K) the visited rows.
            grad: (B, K) gradient of the loss at them.
            index: (B,) their positions in the table.
            lr: step size, one for all or one a row.
        """
        beta1, beta2 = self.betas
        first = torch.lerp(grad, self.first[index], beta1)
        second = torch.lerp(grad.square(), self.second[index], beta2)
        count = self.count[index] + 1
        self.first[index], self.second[index], self.count[index] = first, second, count
        direction = (first / (1 - beta1**count)) / ((second / (1 - beta2**count)).sqrt() + self.eps)
        return rows - lr * direction

    def forget(self, index: Int[Tensor, " B"]) -> None:
        """Start these rows' state afresh."""
        self.first[index] = 0
        self.second[index] = 0
        self.count[index] = 0
