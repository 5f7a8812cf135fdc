"""What went wrong: is a guide calibrated?"""

from inference.diagnostics.calibration import sbc

__all__ = ["sbc"]
