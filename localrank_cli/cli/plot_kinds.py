"""The figures of `localrank plot`, each in one entry."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class FigureKind:
    """One kind of figure.

    Args:
        help: What it shows, for `--kind`.
        draw: Name of the function of `localrank_cli.figures` that draws it; that room is slow to
            import.
        takes: The keywords that the function takes of those that options give (`OPTIONS`).
        is_from_spectra: Whether it is drawn from kept singular values; else from tables.
    """

    help: str
    draw: str
    takes: tuple[str, ...] = ()
    is_from_spectra: bool = False

    @property
    def options(self) -> set[str]:
        """The options that have an effect on this kind, of those that not all kinds take."""
        own = {OPTIONS[name] for name in self.takes}
        return own | ({"--spectra", "--run"} if self.is_from_spectra else set())


# By the keyword of the drawing function: the option of plot that gives it.
OPTIONS = {"metrics": "--with", "by": "--by", "steps": "--step", "step": "--step"}

KINDS: Mapping[str, FigureKind] = {
    "ranks": FigureKind("a line per layer over the steps", "ranks", ("metrics",)),
    "heatmap": FigureKind("layer by step, share of the largest rank", "heatmap"),
    "depth": FigureKind("a line per step over the layers", "depth", ("steps",)),
    "compare": FigureKind("tables or runs side by side", "compare", ("metrics", "by")),
    "tolerance": FigureKind(
        "rank over the tolerance, from --spectra",
        "tolerance",
        ("step",),
        is_from_spectra=True,
    ),
    "spectrum": FigureKind(
        "singular values, from --spectra",
        "spectrum",
        ("steps",),
        is_from_spectra=True,
    ),
    "information-plane": FigureKind("from --information and --labels-key", "information_plane"),
}
