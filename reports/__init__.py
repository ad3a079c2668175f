"""What people look at: tables, charts, one HTML file, Markdown, CSV, JSON.  ``build_report`` writes one of them."""

from reports.build import build_report, render
from reports.dataset import Dataset, ReportError, load_dataset
from reports.verdict import judge

__all__ = ["Dataset", "ReportError", "build_report", "judge", "load_dataset", "render"]
