"""Figures from tables: functions that take a DataFrame and return a matplotlib Figure.

Requires the extra `plot`. Figures belong to no window and leave matplotlib's global state alone.
"""

from localrank_cli.figures.choose import Choice
from localrank_cli.figures.compression import compression
from localrank_cli.figures.depth import depth
from localrank_cli.figures.differences import differences
from localrank_cli.figures.heatmap import heatmap
from localrank_cli.figures.lines import Metric, compare, ranks
from localrank_cli.figures.look import Look, saved, styled
from localrank_cli.figures.plane import information_plane
from localrank_cli.figures.spectra import spectrum, tolerance
from localrank_cli.results.kept import SpectraFile

__all__ = [
    "Choice", "Look", "Metric", "SpectraFile", "compare", "compression", "depth", "differences",
    "heatmap", "information_plane", "ranks", "saved", "spectrum",
    "styled", "tolerance",
]  # fmt: skip
