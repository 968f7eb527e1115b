"""`localrank plot`: check options against the kind of figure."""

import typer

from localrank_cli.cli.command import with_options
from localrank_cli.options.views import PlotOptions, check_figure, figure_target


@with_options(PlotOptions, example="localrank plot ranks.csv --kind heatmap -o ranks.png")
def plot(_context: typer.Context, options: PlotOptions) -> None:
    """Draw a figure from a table: PNG, SVG or PDF."""
    target = figure_target(options)
    check_figure(options)
    # Imported late, since matplotlib and pandas are slow to import.
    from localrank_cli.cli.run_plot import run_plot

    run_plot(options, target)
