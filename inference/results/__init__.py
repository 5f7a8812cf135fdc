"""Frozen records: what an engine or a measurement returns. No state, no computation beyond summaries."""

from inference.results.bidirectional import Bidirectional, Side
from inference.results.calibration import Calibration
from inference.results.evidence import Evidence
from inference.results.fit import Fit, Refined
from inference.results.gaps import Gaps
from inference.results.generalization import Generalization, SimulatedGaps
from inference.results.note import Note
from inference.results.posterior import PosteriorDraws
from inference.results.summary import summarise
from inference.results.surgery import Surgery

__all__ = [
    "Bidirectional",
    "Calibration",
    "Evidence",
    "Fit",
    "Gaps",
    "Generalization",
    "Note",
    "PosteriorDraws",
    "Refined",
    "Side",
    "SimulatedGaps",
    "Surgery",
    "summarise",
]
