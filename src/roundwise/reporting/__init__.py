"""The report for people: one HTML page that opens anywhere, offline, and says everything about a run."""

from roundwise.reporting.page import html_report

__all__ = ["html_report"]
