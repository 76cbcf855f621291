"""One record of a latency run, rendered as text, JSON and a self-contained HTML page."""

from edgekit.report.html import render_html
from edgekit.report.record import LatencyRecord, from_json, to_json
from edgekit.report.statistics import ceiling
from edgekit.report.text import ceiling_line, render_text

__all__ = [
    "LatencyRecord",
    "ceiling",
    "ceiling_line",
    "from_json",
    "render_html",
    "render_text",
    "to_json",
]
