"""`localrank plot`: check options against the kind of figure."""

from pathlib import Path

import typer

from localrank_cli.cli.command import with_options
from localrank_cli.errors import UsageError
from localrank_cli.options.setting import options_of
from localrank_cli.options.views import KINDS, PlotOptions

_FORMATS = (".png", ".svg", ".pdf")


@with_options(PlotOptions, example="localrank plot ranks.csv --kind heatmap -o ranks.png")
def plot(_context: typer.Context, options: PlotOptions) -> None:
    """Draw a figure of a table: PNG, SVG or PDF."""
    target = _target(options)
    _check(options)
    # Imported late, since matplotlib and pandas are slow to import.
    from localrank_cli.cli.run_plot import run_plot

    run_plot(options, target)


def _target(options: PlotOptions) -> Path:
    output, kind = options.output, options.kind
    if kind not in KINDS:
        raise UsageError(f"--kind {kind}: unknown.", f"Choose one of {', '.join(KINDS)}.")
    if output is None:
        return options.tables[0].with_suffix(".png" if kind == "ranks" else f".{kind}.png")
    if output.suffix.lower() not in _FORMATS:
        raise UsageError(
            f"--output {output}: the suffix {output.suffix!r} is not a figure format.",
            f"Choose one of {', '.join(_FORMATS)}.",
        )
    return output


def _check(options: PlotOptions) -> None:
    chosen = KINDS[options.kind]
    limited = set().union(*(kind.options for kind in KINDS.values()))
    for option in options_of(PlotOptions):
        without_effect = option.name in limited - chosen.options
        if without_effect and getattr(options, option.name):
            raise UsageError(
                f"{option.flag}: has no effect on --kind {options.kind}.", "Leave it out."
            )
    if chosen.is_from_spectra and options.spectra is None:
        raise UsageError(
            f"--kind {options.kind}: needs singular values.",
            "Keep them with localrank analyze --spectra FOLDER, and pass that folder to --spectra.",
        )
    if "step" in chosen.takes and len(options.steps) > 1:
        raise UsageError(f"--kind {options.kind}: shows one step.", "Give --step once.")
