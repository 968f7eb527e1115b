"""`localrank plot`: parses, and hands over."""

import re
from pathlib import Path
from typing import Annotated

import typer

from localrank_cli.cli.command import Debug, NoNotes, OneMetric, ShownLayers, Tables, globs
from localrank_cli.errors import UsageError

KINDS = ("ranks", "heatmap", "depth", "tolerance", "spectrum", "compare", "information-plane")
_FORMATS = (".png", ".svg", ".pdf")
_LARGEST = 100.0  # inches


def plot(
    tables: Tables,
    kind: Annotated[
        str,
        typer.Option(
            "--kind",  # which some versions of typer would take for --KIND
            metavar="KIND",
            help="ranks: a line per layer over the steps; heatmap: layer by step, share of the"
            " largest rank; depth: a line per step over the layers; compare: tables or runs side"
            " by side; tolerance, spectrum: from --spectra; information-plane: from --information"
            " and --labels-key.",
        ),
    ] = "ranks",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            readable=False,
            help="A .png, .svg or .pdf file; one that is there is replaced. Default: RANKS.png,"
            " or RANKS.KIND.png, beside the table.",
        ),
    ] = None,
    y: Annotated[
        str, typer.Option("--y", metavar="COLUMN", help="The measure, or any column of numbers.")
    ] = "local_rank",
    x: Annotated[
        str, typer.Option("--x", metavar="COLUMN", help="The horizontal axis: a column of numbers.")
    ] = "step",
    layers: ShownLayers = None,
    tolerance: Annotated[
        str | None,
        typer.Option(metavar="LABEL", help="Which one, where the table has several: atol=0.01."),
    ] = None,
    input_metric: OneMetric = None,
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="FILE:COLUMN",
            help="A panel below with a column of another table, joined by step (and run, where it"
            " has that column); repeat. For ranks and compare.",
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="For compare: a panel for each value. Default: for each table, or each run.",
        ),
    ] = None,
    spectra: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", readable=False, help="Singular values that analyze --spectra kept."
        ),
    ] = None,
    run: Annotated[
        str | None, typer.Option(metavar="NAME", help="For tolerance and spectrum: which run.")
    ] = None,
    step: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="For depth, spectrum (repeat) and tolerance: which steps."),
    ] = None,
    title: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Instead of the one made from the table.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Width and height in inches, such as 6.5x4.")
    ] = None,
    dpi: Annotated[
        float, typer.Option(metavar="N", min=20, max=2400, help="Pixels per inch of a .png.")
    ] = 200,
    style: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A matplotlib style file, or a style that it knows."),
    ] = None,
    quiet: NoNotes = False,
    debug: Debug = False,
) -> None:
    """Draw a picture of a table: PNG, SVG or PDF."""
    del debug  # seen by the program itself
    target = _target(output, tables[0], kind)
    inches = _inches(size)
    _check(kind, step=step, given={"--with": with_, "--by": by, "--spectra": spectra, "--run": run})
    # matplotlib and pandas are imported only now.
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
        raise UsageError(f"--kind {kind}: not known.", f"Known are {', '.join(KINDS)}.")
    if output is None:
        return table.with_suffix(".png" if kind == "ranks" else f".{kind}.png")
    if output.suffix.lower() not in _FORMATS:
        raise UsageError(
            f"--output {output}: the suffix {output.suffix!r} names no format of pictures.",
            f"Known are {', '.join(_FORMATS)}.",
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
        raise UsageError(
            f"--size {text}: must be from 2x1.5 to {_LARGEST:g}x{_LARGEST:g} inches.",
        )
    return width, height


def _check(kind: str, *, step: list[int] | None, given: dict[str, object]) -> None:
    from_spectra = kind in {"tolerance", "spectrum"}
    serves = {
        "--with": kind in {"ranks", "compare"},
        "--by": kind == "compare",
        "--spectra": from_spectra,
        "--run": from_spectra,
        "--step": from_spectra or kind == "depth",
    }
    for option, value in (given | {"--step": step}).items():
        if value and not serves[option]:
            raise UsageError(f"{option}: has no meaning for --kind {kind}.", "Leave it out.")
    if from_spectra and not given["--spectra"]:
        raise UsageError(
            f"--kind {kind}: needs the singular values.",
            "Keep them with localrank analyze --spectra FOLDER, and name it with --spectra.",
        )
    if kind == "tolerance" and len(step or ()) > 1:
        raise UsageError("--kind tolerance: shows one step.", "Give --step once.")
