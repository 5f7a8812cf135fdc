"""Reports: one self-contained HTML page of a run or of a study."""

from pyro_vae.report.writing import open_folder, write_report

__all__ = ["open_folder", "write_report"]
