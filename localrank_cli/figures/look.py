"""The look of figures: fonts and lines, colours by depth, reproducible files."""

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import style as mpl_style
from matplotlib.colors import Colormap, ListedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from localrank_cli.drawing import own_style
from localrank_cli.errors import SettingsError, UsageError, one_line

_BASE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    # Names come from users' files, and a $ in them is a literal $.
    "text.parse_math": False,
    "pdf.fonttype": 42,
    "svg.hashsalt": "localrank",
}
Colour = tuple[float, float, float, float]
GREY = "#6b6b6b"
MISSING = "#dddddd"
# As different as possible for neighbours. After the last, they repeat at another colour.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MOST_NAMES = 14  # lines of text beside axes of the default height
_MOST_MARKED = 40  # points of a line; more markers would hide it
_BETWEEN_MARKERS = 0.12  # of the diagonal of the axes


@dataclass(frozen=True)
class Look:
    """The user's settings for any figure.

    Args:
        title: Replaces the one made of run, measure, tolerance and points.
        size: Width and height in inches.
        model: A description of the network, for the line at the foot.
    """

    title: str | None = None
    size: tuple[float, float] | None = None
    model: str = ""


@contextmanager
def styled(style: str | None = None) -> Iterator[None]:
    """Make and save figures in localrank's style, updated by a style file or a known style.

    Settings of the user (`matplotlibrc`, `rcParams`) have no effect within it.
    """
    with own_style({**_BASE, **_style(style)}):
        yield


def _style(style: str | None) -> dict[str, Any]:
    if style is None:
        return {}
    if style in mpl_style.library:
        known: Any = mpl_style.library[style]
        return dict(known)
    path = Path(style)
    if not path.is_file():
        raise UsageError(
            f"--style {style}: neither a file nor a style that matplotlib knows.",
            "Name a .mplstyle file.",
        )
    try:
        found: Any = mpl.rc_params_from_file(path, fail_on_error=True, use_default_template=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"--style {style}: matplotlib cannot read it ({one_line(error)})."
        ) from error
    # A file that is only saved needs no backend.
    return {key: value for key, value in found.items() if not key.startswith("backend")}


def new_figure(look: Look, width: float, height: float) -> Figure:
    """Create a figure without a window, of `look.size` or the given size in inches."""
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06)
    return Figure(figsize=look.size or (width, height), layout=layout)


def saved(figure: Figure, suffix: str, dpi: float = 200) -> bytes:
    """Return the content of a .png, .svg or .pdf file, identical for identical figures."""
    stream = io.BytesIO()
    when = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {"Software": None}}
    metadata: Any = when[suffix]
    figure.savefig(stream, format=suffix[1:], dpi=dpi, metadata=metadata)
    return stream.getvalue()


def depth_colours(count: int) -> list[Colour]:
    """Return RGBA colours, light to dark, that can be told apart in grey and by the colour-blind.

    They are viridis without its lightest end, which is too faint on white.
    """
    scale = mpl.colormaps["viridis"]
    places = np.linspace(0.82, 0.0, count) if count > 1 else np.array([0.25])
    return [to_rgba(scale(place)) for place in places]


@dataclass(frozen=True)
class Pen:
    """How a line is drawn: in a colour for its depth, with a marker that its neighbours lack.

    Lines that lie on each other, or are printed in grey, are told apart by the marker.
    """

    colour: Colour
    marker: str
    phase: float

    def of_line(self, points: int) -> dict[str, Any]:
        """Return keywords for `Axes.plot` of a line of so many points.

        Every point is marked, or a few places along a line of many points.
        """
        few = points <= _MOST_MARKED
        every = None if few else (self.phase * _BETWEEN_MARKERS, _BETWEEN_MARKERS)
        marker = self.marker or ("o" if few else "")
        return {"color": self.colour, "marker": marker, "markevery": every}


def depth_pens(names: Sequence[str]) -> dict[str, Pen]:
    """Return the pen of each line, in order of depth; more than can be named have no marker."""
    colours = depth_colours(len(names))
    markers = MARKERS if len(names) <= MOST_NAMES else ("",)
    return {
        name: Pen(colour, markers[index % len(markers)], index / len(names))
        for index, (name, colour) in enumerate(zip(names, colours, strict=True))
    }


def depth_map(count: int) -> Colormap:
    """Return the same colours as a colour map."""
    return ListedColormap(depth_colours(count))


def head(figure: Figure, look: Look, title: str, facts: Sequence[str]) -> None:
    """Write the title, and below the figure in grey the model and the non-empty facts."""
    width = float(figure.get_figwidth())
    text = title if look.title is None else look.title
    if text:
        figure.suptitle(
            _wrapped(text, width, 11), x=0.012, ha="left", fontsize=10.5, fontweight="bold"
        )
    foot = " \N{MIDDLE DOT} ".join(fact for fact in (look.model, *facts) if fact)
    if foot:
        figure.supxlabel(_wrapped(foot, width, 7.5), x=0.012, ha="left", fontsize=7.5, color=GREY)


def _wrapped(text: str, width: float, size: float) -> str:
    # A letter is a little over half as wide as the font size in common fonts.
    return "\n".join(textwrap.wrap(text, max(20, int(width * 72 / (0.58 * size)))))
