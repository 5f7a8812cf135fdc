"""Reports: one self-contained HTML page of a run or of a study."""

from pyro_vae.report.forest import plot_differences
from pyro_vae.report.writing import open_folder, write_report

__all__ = ["open_folder", "plot_differences", "write_report"]
