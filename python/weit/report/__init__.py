"""What a comparison found: table and verdicts as text, learning curves as PNG, all of it in one HTML file."""

from weit.report.html import write_report
from weit.report.text import LABELS, table, verdicts

__all__ = ["LABELS", "table", "verdicts", "write_report"]
