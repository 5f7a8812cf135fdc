"""What went wrong: is a guide calibrated, and what is its KL term spent on?"""

from inference.diagnostics.calibration import sbc
from inference.diagnostics.surgery import elbo_surgery

__all__ = ["elbo_surgery", "sbc"]
