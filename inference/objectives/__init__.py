"""What a training step optimises.

A step calls one small module (`steps`), for an encoder or for rows. What it minimises is a loss: minus a bound on
log p(x) for every datapoint by itself, and an estimator of its gradient, one small object each. One concept a file:
what a loss is (`loss`), the ELBO's gradient estimators (`elbo`), bounds made of several draws (`importance`), and
wake-sleep (`wake_sleep`). What a step hands to the loop is made in `gradients`.
"""

from inference.objectives.elbo import AnalyticKL, PathwiseELBO, ScoreFunctionELBO, StickingTheLanding
from inference.objectives.gradients import Gradients, Step
from inference.objectives.importance import IWAE, DReG, Renyi
from inference.objectives.loss import Joint, Loss
from inference.objectives.steps import AmortizedELBO, AmortizedLoss, LocalLoss, Objective
from inference.objectives.wake_sleep import WakeSleep

__all__ = [
    "IWAE",
    "AmortizedELBO",
    "AmortizedLoss",
    "AnalyticKL",
    "DReG",
    "Gradients",
    "Joint",
    "LocalLoss",
    "Loss",
    "Objective",
    "PathwiseELBO",
    "Renyi",
    "ScoreFunctionELBO",
    "Step",
    "StickingTheLanding",
    "WakeSleep",
]
