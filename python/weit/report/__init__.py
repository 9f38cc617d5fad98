"""What a comparison found: table and verdicts as text, learning curves as PNG, all of it in one HTML file; what a run
recorded, as curves.
"""

from weit.report.curves import plot_run
from weit.report.html import write_report
from weit.report.text import LABELS, table, verdicts

__all__ = ["LABELS", "plot_run", "table", "verdicts", "write_report"]
