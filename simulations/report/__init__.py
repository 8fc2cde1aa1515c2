"""One self-contained report of a run, and its figures for publication."""

from echofed.simulations.report.page import write_report, write_report_of_file
from echofed.simulations.report.plots import write_figures

__all__ = ["write_figures", "write_report", "write_report_of_file"]
