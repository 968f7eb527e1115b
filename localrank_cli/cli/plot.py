"""`localrank plot`: parses its options and hands over."""

import re
from pathlib import Path
from typing import Annotated

import typer

from localrank_cli.cli.command import Debug, NoNotes, OneMetric, ShownLayers, Tables, globs
from localrank_cli.cli.plot_kinds import KINDS
from localrank_cli.errors import UsageError

_FORMATS = (".png", ".svg", ".pdf")
_LARGEST = 100.0  # inches; a figure of 100 x 100 has 400 million pixels at 200 dpi


def plot(
    tables: Tables,
    kind: Annotated[
        str,
        typer.Option(
            "--kind",  # explicit, since some versions of typer derive --KIND from the metavar
            metavar="KIND",
            help=f"{'; '.join(f'{name}: {kind.help}' for name, kind in KINDS.items())}.",
        ),
    ] = "ranks",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            readable=False,
            help="A .png, .svg or .pdf file; an existing one is replaced. Default: RANKS.png, or"
            " RANKS.KIND.png, next to the table.",
        ),
    ] = None,
    y: Annotated[
        str, typer.Option("--y", metavar="COLUMN", help="The measure, or any numeric column.")
    ] = "local_rank",
    x: Annotated[
        str, typer.Option("--x", metavar="COLUMN", help="The horizontal axis: any numeric column.")
    ] = "step",
    layers: ShownLayers = None,
    tolerance: Annotated[
        str | None,
        typer.Option(metavar="LABEL", help="Which one, if the table has several: atol=0.01."),
    ] = None,
    input_metric: OneMetric = None,
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="FILE:COLUMN",
            help="Add a panel below with a column of another table, joined by step (and run, if it"
            " has that column); repeatable. For ranks and compare.",
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="For compare: one panel per value. Default: per table, or per run.",
        ),
    ] = None,
    spectra: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", readable=False, help="Singular values kept by analyze --spectra."
        ),
    ] = None,
    run: Annotated[
        str | None, typer.Option(metavar="NAME", help="For tolerance and spectrum: which run.")
    ] = None,
    step: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N", help="For depth, spectrum (repeatable) and tolerance: which steps."
        ),
    ] = None,
    title: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Replaces the title made from the table.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Width and height in inches, such as 6.5x4.")
    ] = None,
    dpi: Annotated[
        float, typer.Option(metavar="N", min=20, max=2400, help="Pixels per inch of a .png.")
    ] = 200,
    style: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A matplotlib style file, or the name of a style."),
    ] = None,
    quiet: NoNotes = False,
    debug: Debug = False,
) -> None:
    """Draw a figure of a table: PNG, SVG or PDF."""
    del debug  # read by the program itself
    target = _target(output, tables[0], kind)
    inches = _inches(size)
    _check(
        kind, step=step, values={"--with": with_, "--by": by, "--spectra": spectra, "--run": run}
    )
    # Imported late, since matplotlib and pandas are slow to import.
    from localrank_cli.cli.run_plot import PlotOptions, run_plot

    options = PlotOptions(
        tables=tuple(tables),
        kind=kind,
        target=target,
        y=y,
        x=x,
        layers=globs(layers),
        tolerance=tolerance,
        input_metric=input_metric,
        metrics=tuple(with_ or ()),
        by=by,
        spectra=spectra,
        run=run,
        steps=tuple(step or ()),
        title=title,
        size=inches,
        dpi=dpi,
        style=style,
    )
    run_plot(options, quiet=quiet)


def _target(output: Path | None, table: Path, kind: str) -> Path:
    if kind not in KINDS:
        raise UsageError(f"--kind {kind}: unknown.", f"Choose one of {', '.join(KINDS)}.")
    if output is None:
        return table.with_suffix(".png" if kind == "ranks" else f".{kind}.png")
    if output.suffix.lower() not in _FORMATS:
        raise UsageError(
            f"--output {output}: the suffix {output.suffix!r} is not a figure format.",
            f"Choose one of {', '.join(_FORMATS)}.",
        )
    return output


def _inches(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)[xX](\d+(?:\.\d+)?)", text.strip())
    if found is None:
        raise UsageError(f"--size {text}: not of the form WxH, such as 6.5x4.")
    width, height = (float(part) for part in found.groups())
    if not (2 <= width <= _LARGEST and 1.5 <= height <= _LARGEST):
        raise UsageError(f"--size {text}: must be from 2x1.5 to {_LARGEST:g}x{_LARGEST:g} inches.")
    return width, height


def _check(kind: str, *, step: list[int] | None, values: dict[str, object]) -> None:
    chosen = KINDS[kind]
    for option, value in (values | {"--step": step}).items():
        if value and option not in chosen.options:
            raise UsageError(f"{option}: has no effect on --kind {kind}.", "Leave it out.")
    if chosen.is_from_spectra and not values["--spectra"]:
        raise UsageError(
            f"--kind {kind}: needs singular values.",
            "Keep them with localrank analyze --spectra FOLDER, and pass that folder to --spectra.",
        )
    if "step" in chosen.takes and len(step or ()) > 1:
        raise UsageError(f"--kind {kind}: shows one step.", "Give --step once.")
