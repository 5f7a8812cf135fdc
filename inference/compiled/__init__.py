"""The compiled form of densities, objectives and forces: the same numbers in fewer seconds."""

from inference.compiled.function import Compile, Compiled, inductor, one_core, undisturbed, worthwhile
from inference.compiled.precision import Precision, reduced, require_precision
from inference.compiled.tracing import NotTraceable, tracing

__all__ = [
    "Compile",
    "Compiled",
    "NotTraceable",
    "Precision",
    "inductor",
    "one_core",
    "reduced",
    "require_precision",
    "tracing",
    "undisturbed",
    "worthwhile",
]
