"""How an engine trains: the settings record, the optimisers and schedules it can name, and the one loop."""

from inference.training.blame import blame_site, require_valid
from inference.training.loop import optimise
from inference.training.minibatches import require_one_shard
from inference.training.settings import LoopState, Training, device_for
from inference.training.steps import SGD, Adam, Constant, Cosine, RobbinsMonro, Staircase

__all__ = [
    "SGD",
    "Adam",
    "Constant",
    "Cosine",
    "LoopState",
    "RobbinsMonro",
    "Staircase",
    "Training",
    "blame_site",
    "device_for",
    "optimise",
    "require_one_shard",
    "require_valid",
]
