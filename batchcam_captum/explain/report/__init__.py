"""A store as one HTML file that opens offline."""

from .page import write_report

__all__ = ["write_report"]
