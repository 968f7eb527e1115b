"""Draw a figure of tables, from the options of `plot`."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from localrank_cli.drawing import import_matplotlib
from localrank_cli.errors import SettingsError, UsageError
from localrank_cli.options.decisive import what_differs
from localrank_cli.options.views import KINDS, FigureKind, PlotOptions
from localrank_cli.results.choose import of_one
from localrank_cli.results.manifest import model_of, read_manifest
from localrank_cli.results.read import (
    read_budgets,
    read_metrics,
    read_table,
    read_tables,
    split_spec,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from localrank_cli.figures import Look

Drawn = tuple["Figure", tuple[str, ...]]


def draw(options: PlotOptions) -> Drawn:
    """Draw a figure, and return it with notes on it.

    Raises:
        SettingsError: If matplotlib is not installed.
    """
    specs = [split_spec(text) for text in options.metrics]
    figures = load_figures()
    with figures.styled(options.style):
        return _draw(options, specs)


def content_of(figure: "Figure", target: Path, options: PlotOptions) -> bytes:
    """Return the content of a file of a figure."""
    figures = load_figures()
    with figures.styled(options.style):
        content: bytes = figures.saved(figure, target.suffix.lower(), options.dpi)
        return content


def load_figures() -> ModuleType:
    """Return the room of figures.

    Raises:
        SettingsError: If matplotlib is not installed.
    """
    try:
        import_matplotlib()
        from localrank_cli import figures
    except ImportError as error:
        raise SettingsError(
            f"figures need matplotlib, which cannot be imported ({error}).",
            "Run: pip install 'localrank[plot]'",
        ) from error
    return figures


def _draw(options: PlotOptions, specs: list[tuple[Path, str]]) -> Drawn:
    from localrank_cli import figures

    if KINDS[options.kind].is_from_budgets:
        return _from_budgets(options, figures.Look(options.title, options.size))
    manifests = [read_manifest(table) for table in options.tables]
    models = {model_of(manifest) for manifest in manifests}
    look = figures.Look(options.title, options.size, models.pop() if len(models) == 1 else "")
    choice = figures.Choice(
        options.y, options.x, options.layers, options.tolerance, options.input_metric
    )
    if options.spectra is not None:
        return _from_spectra(options, look)
    frame = read_tables(options.tables)
    metrics = [figures.Metric(read_metrics(path, column), column) for path, column in specs]
    kind = KINDS[options.kind]
    settings = _settings_of_runs(frame, manifests)
    keywords = _keywords(options) | {"metrics": metrics, "settings": settings}
    drawn: Drawn = _function(kind)(
        frame, choice, look, **{name: keywords[name] for name in kind.takes}
    )
    return drawn


def _settings_of_runs(
    frame: "pd.DataFrame", manifests: Sequence[dict[str, Any] | None]
) -> dict[str, dict[str, object]]:
    """Return the settings in which runs differ, by the names that the runs have in a table."""
    names = list(dict.fromkeys(frame["table"])) if "table" in frame.columns else [""]
    found: dict[str, dict[str, object]] = {}
    for name, manifest in zip(names, manifests, strict=True):
        rows = frame[frame["table"] == name] if name else frame
        there = set(rows["run"])
        for series in (manifest or {}).get("series") or ():
            run = str(series.get("run"))
            found[f"{name}: {run}" if f"{name}: {run}" in there else run] = what_differs(series)
    return found


def _keywords(options: PlotOptions) -> dict[str, Any]:
    """Return the keywords of drawing functions that options give."""
    first = options.steps[0] if options.steps else None
    return {"by": options.by, "steps": options.steps, "step": first}


def _function(kind: FigureKind) -> Any:
    from localrank_cli import figures

    return getattr(figures, kind.draw)


def _from_spectra(options: PlotOptions, look: "Look") -> Drawn:
    from localrank_cli import figures

    assert options.spectra is not None
    if len(options.tables) > 1:
        raise UsageError(f"--kind {options.kind}: takes a single table.", "Give one.")
    spectra = figures.SpectraFile(options.spectra)
    frame = read_table(options.tables[0])
    if options.tolerance is not None:
        frame = of_one(frame, "tolerance", options.tolerance, "--tolerance")
    marks = tuple(
        (name, float(value))
        for name in ("atol", "rtol")
        if name in frame.columns
        for value in sorted(set(frame[name].dropna()))
        if value > 0
    )
    kind, keywords = KINDS[options.kind], _keywords(options)
    figure = _function(kind)(
        spectra,
        options.run,
        options.layers,
        look=look,
        marks=marks,
        **{name: keywords[name] for name in kind.takes},
    )
    return figure, ()


def _from_budgets(options: PlotOptions, look: "Look") -> Drawn:
    if len(options.tables) > 1:
        raise UsageError(f"--kind {options.kind}: takes a single table.", "Give one.")
    drawn: Drawn = _function(KINDS[options.kind])(read_budgets(options.tables[0]), look)
    return drawn
