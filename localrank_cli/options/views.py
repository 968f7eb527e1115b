"""The options of the commands that show tables, each in one entry, and the kinds of figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Interval

from localrank_cli.errors import UsageError
from localrank_cli.measures.table import MEASURES
from localrank_cli.options import parse
from localrank_cli.options.setting import Setting, options_of
from localrank_cli.options.table import Debug, NoNotes, Overwrite

_FORMATS = (".png", ".svg", ".pdf")
# Options that choose columns or rows of a table of ranks.
_OF_RANKS = {"x", "y", "layers", "tolerance", "input_metric"}


@dataclass(frozen=True)
class FigureKind:
    """One kind of figure.

    Args:
        help: What it shows, for `--kind`.
        draw: Name of the function of `localrank_cli.figures` that draws it; that room is slow to
            import.
        takes: The keywords of that function, of those that options give.
        is_from_spectra: Whether it is drawn from kept singular values; else from tables.
        is_from_budgets: Whether it is drawn from the `budgets.csv` of compress, which has none of
            the columns that other options name.
    """

    help: str
    draw: str
    takes: tuple[str, ...] = ()
    is_from_spectra: bool = False
    is_from_budgets: bool = False

    @property
    def options(self) -> set[str]:
        """The options that have an effect on this kind, of those that not all kinds take."""
        own = {"steps" if name == "step" else name for name in self.takes}
        return own | ({"spectra", "run"} if self.is_from_spectra else set())


KINDS: Mapping[str, FigureKind] = {
    "ranks": FigureKind("a line per layer over the steps", "ranks", ("metrics", "settings")),
    "heatmap": FigureKind("layers by steps, as a share of max_rank", "heatmap"),
    "depth": FigureKind("a line per step over the layers", "depth", ("steps",)),
    "compare": FigureKind("tables or runs side by side", "compare", ("metrics", "by", "settings")),
    "tolerance": FigureKind(
        "rank versus tolerance, from --spectra", "tolerance", ("step",), is_from_spectra=True
    ),
    "spectrum": FigureKind(
        "singular values, from --spectra", "spectrum", ("steps",), is_from_spectra=True
    ),
    "information-plane": FigureKind("from --information and --labels-key", "information_plane"),
    "compression": FigureKind(
        "loss against the share of weights, from budgets.csv of compress",
        "compression",
        is_from_budgets=True,
    ),
}

_Tables = Annotated[
    tuple[Path, ...],
    Setting(
        help="Tables that analyze wrote (.csv, .tsv, .jsonl, .parquet).",
        metavar="RANKS",
        is_argument=True,
        read=parse.paths,
    ),
]
_Table = Annotated[
    Path,
    Setting(
        help="A table that analyze or a monitor wrote (.csv, .tsv, .jsonl, .parquet).",
        metavar="RANKS",
        is_argument=True,
        read=parse.path,
    ),
]
_Layers = Annotated[
    tuple[str, ...],
    Setting(
        help="Layers to include, by name, separated by commas; * also matches dots, and !GLOB"
        " excludes. Repeatable.",
        metavar="GLOB",
        read=parse.globs,
    ),
]
_Measure = Annotated[
    str,
    Setting(
        help=f"The measure ({', '.join(MEASURES)}), or any numeric column.",
        metavar="COLUMN",
        completes=tuple(MEASURES),
        default="local_rank",
    ),
]
_Metric = Annotated[
    str | None, Setting(help="The input metric to show, if the table has several.", metavar="NAME")
]


@dataclass(frozen=True)
class PlotOptions:
    """The options of `localrank plot`."""

    tables: _Tables
    kind: Annotated[
        str,
        Setting(
            help=f"{'; '.join(f'{name}: {kind.help}' for name, kind in KINDS.items())}.",
            metavar="KIND",
            completes=tuple(KINDS),
            default="ranks",
        ),
    ] = "ranks"
    output: Annotated[
        Path | None,
        Setting(
            help="A .png, .svg or .pdf file; an existing one is replaced. Default: RANKS.png, or"
            " RANKS.KIND.png, next to the table.",
            metavar="FILE",
            read=parse.path,
            flags=("--output", "-o"),
        ),
    ] = None
    y: _Measure = "local_rank"
    x: Annotated[
        str,
        Setting(help="The horizontal axis: any numeric column.", metavar="COLUMN", default="step"),
    ] = "step"
    layers: _Layers = ()
    tolerance: Annotated[
        str | None,
        Setting(
            help="The tolerance to draw, if the table has several, such as atol=0.01.",
            metavar="LABEL",
        ),
    ] = None
    input_metric: _Metric = None
    metrics: Annotated[
        tuple[str, ...],
        Setting(
            help="Add a panel below with a column of another table, joined by step (and run, if it"
            " has that column); repeatable. For ranks and compare.",
            metavar="FILE:COLUMN",
            flags=("--with",),
        ),
    ] = ()
    by: Annotated[
        str | None,
        Setting(
            help="For compare: one panel per value. Default: per table, or per run.",
            metavar="COLUMN",
        ),
    ] = None
    spectra: Annotated[
        Path | None,
        Setting(
            help="Singular values kept by analyze --spectra.", metavar="FOLDER", read=parse.path
        ),
    ] = None
    run: Annotated[
        str | None, Setting(help="For tolerance and spectrum: which run.", metavar="NAME")
    ] = None
    steps: Annotated[
        tuple[int, ...],
        Setting(
            help="For depth, spectrum (repeatable) and tolerance: which steps.",
            metavar="N",
            flags=("--step",),
        ),
    ] = ()
    title: Annotated[
        str | None, Setting(help="Title, instead of the one made from the table.", metavar="TEXT")
    ] = None
    size: Annotated[
        tuple[float, float] | None,
        Setting(
            help="Width and height in inches, such as 6.5x4.", metavar="WxH", read=parse.inches
        ),
    ] = None
    dpi: Annotated[
        Annotated[float, Interval(ge=20, le=2400)],
        Setting(help="Pixels per inch of a .png, 20 to 2400.", metavar="N", default=200),
    ] = 200
    style: Annotated[
        str | None,
        Setting(help="A matplotlib style file, or the name of a style.", metavar="FILE"),
    ] = None
    quiet: NoNotes = False
    debug: Debug = False


def figure_target(options: PlotOptions) -> Path:
    """Return the file of a figure.

    Raises:
        UsageError: If its suffix, or the kind of figure, is unknown.
    """
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


def check_figure(options: PlotOptions) -> None:
    """Check options against the kind of figure.

    Raises:
        UsageError: If they do not go together.
    """
    chosen = KINDS[options.kind]
    limited = set().union(*(kind.options for kind in KINDS.values()))
    for option in options_of(PlotOptions):
        without_effect = option.name in limited - chosen.options
        if without_effect and getattr(options, option.name):
            raise UsageError(
                f"{option.flag}: has no effect on --kind {options.kind}.", "Leave it out."
            )
    if chosen.is_from_budgets:
        _check_of_budgets(options)
    if chosen.is_from_spectra and options.spectra is None:
        raise UsageError(
            f"--kind {options.kind}: needs singular values.",
            "Keep them with localrank analyze --spectra FOLDER, and pass that folder to --spectra.",
        )
    if "step" in chosen.takes and len(options.steps) > 1:
        raise UsageError(f"--kind {options.kind}: shows one step.", "Give --step once.")


def _check_of_budgets(options: PlotOptions) -> None:
    default = PlotOptions(options.tables)
    for option in options_of(PlotOptions):
        is_changed = getattr(options, option.name) != getattr(default, option.name)
        if option.name in _OF_RANKS and is_changed:
            raise UsageError(
                f"{option.flag}: has no effect on --kind {options.kind}.", "Leave it out."
            )


@dataclass(frozen=True)
class ReportOptions:
    """The options of `localrank report`."""

    tables: _Tables
    output: Annotated[
        Path | None,
        Setting(
            help="An .html file; an existing one is replaced. Default: RANKS.html, next to the"
            " table.",
            metavar="FILE",
            read=parse.path,
            flags=("--output", "-o"),
        ),
    ] = None
    spectra: Annotated[
        Path | None,
        Setting(
            help="Singular values kept by analyze --spectra: adds a slider for the tolerance.",
            metavar="FOLDER",
            read=parse.path,
        ),
    ] = None
    input_metric: _Metric = None
    title: Annotated[str | None, Setting(help="The page's heading.", metavar="TEXT")] = None
    quiet: NoNotes = False
    debug: Debug = False


@dataclass(frozen=True)
class ShowOptions:
    """The options of `localrank show`."""

    table: _Table
    y: Annotated[
        str,
        Setting(
            help=f"The measure of the chart ({', '.join(MEASURES)}), or any numeric column without"
            " negative values.",
            metavar="COLUMN",
            default="local_rank",
        ),
    ] = "local_rank"
    layers: _Layers = ()
    tolerance: Annotated[
        str | None,
        Setting(help="Show only this tolerance. Default: all tolerances.", metavar="LABEL"),
    ] = None
    chart: Annotated[
        bool | None,
        Setting(help="Draw the chart.", flags=("--chart/--no-chart",), default=True),
    ] = None
    quiet: NoNotes = False
    debug: Debug = False


@dataclass(frozen=True)
class CacheOptions:
    """The options of `localrank cache`."""

    folder: Annotated[
        Path | None,
        Setting(
            help="The folder passed to --cache. Default: localrank in the system's cache folder.",
            metavar="DIR",
            flags=("--cache",),
            read=parse.path,
        ),
    ] = None
    clear: Annotated[bool, Setting(help="Remove the downloads that no running process uses.")] = (
        False
    )
    debug: Debug = False


@dataclass(frozen=True)
class ExportOptions:
    """The options of `localrank export`."""

    table: _Table
    folder: Annotated[
        Path,
        Setting(
            help="Folder to write to; each run gets a subfolder with its event file.",
            metavar="DIR",
            is_argument=True,
            read=parse.path,
        ),
    ]
    to: Annotated[
        Literal["tensorboard"] | None,
        Setting(help="The format: tensorboard.", metavar="FORMAT", default="tensorboard"),
    ] = None
    quiet: NoNotes = False
    debug: Debug = False


@dataclass(frozen=True)
class CompareOptions:
    """The options of `localrank compare`."""

    tables: _Tables
    by: Annotated[
        str | None,
        Setting(
            help="The column whose values are the groups, such as weight_decay. Default: the"
            " tables, or the runs of a single table.",
            metavar="COLUMN",
        ),
    ] = None
    reference: Annotated[
        str | None,
        Setting(
            help="The group that the others are compared with. Default: the first.", metavar="GROUP"
        ),
    ] = None
    pair: Annotated[
        str | None,
        Setting(
            help="The column that pairs the runs of two groups. Default: seed, if there is such a"
            " column; else the names of runs, if they are the same in all groups.",
            metavar="COLUMN",
        ),
    ] = None
    y: _Measure = "local_rank"
    layers: _Layers = ()
    tolerance: Annotated[
        str | None,
        Setting(
            help="The tolerance to compare at, if the table has several, such as atol=0.01.",
            metavar="LABEL",
        ),
    ] = None
    input_metric: _Metric = None
    confidence: Annotated[
        Annotated[float, Interval(ge=0.5, le=0.9999)],
        Setting(help="Confidence of the intervals and of the onset.", metavar="X", default=0.95),
    ] = 0.95
    seed: Annotated[
        Annotated[int, Interval(ge=0)],
        Setting(
            help="Seed of the bootstrap, which is used instead of Student's t with 10 runs or"
            " more.",
            metavar="S",
            default=0,
        ),
    ] = 0
    output: Annotated[
        Path | None,
        Setting(
            help="Write the differences to a .csv, .tsv, .jsonl or .parquet file; - is CSV on"
            " standard output.",
            metavar="FILE",
            read=parse.path,
            flags=("--output", "-o"),
        ),
    ] = None
    onsets: Annotated[
        Path | None,
        Setting(
            help="Write the onset, fall and peak of each layer and group to a file of one of these"
            " formats.",
            metavar="FILE",
            read=parse.path,
        ),
    ] = None
    figure: Annotated[
        Path | None,
        Setting(
            help="Draw the groups with their intervals to a .png, .svg or .pdf file; an existing"
            " one is replaced.",
            metavar="FILE",
            read=parse.path,
        ),
    ] = None
    overwrite: Overwrite = False
    quiet: NoNotes = False
    debug: Debug = False
