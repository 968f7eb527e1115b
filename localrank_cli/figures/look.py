"""How pictures look: fonts and lines, colours by depth, files that come out the same twice."""

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
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure

from localrank_cli.errors import SettingsError, UsageError, one_line

FORMATS = (".png", ".svg", ".pdf")
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
    "lines.markersize": 3.2,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    # Names come from users' files, and a $ in them is a $.
    "text.parse_math": False,
    "pdf.fonttype": 42,
    "svg.hashsalt": "localrank",
}
GREY = "#6b6b6b"
MISSING = "#dddddd"


@dataclass(frozen=True)
class Look:
    """What the user may set of any picture.

    Args:
        title: Instead of the one that tells run, measure, tolerance and points.
        size: Width and height in inches.
        model: What the network is, for the line under the title.
    """

    title: str | None = None
    size: tuple[float, float] | None = None
    model: str = ""


@contextmanager
def styled(style: str | None = None) -> Iterator[None]:
    """Within, figures are made and saved in the style of this project, or of the user's file.

    Args:
        style: A matplotlib style file, or the name of a style that matplotlib knows.

    Yields:
        Nothing.
    """
    settings: Any = {**_BASE, **_style(style)}
    with mpl.rc_context(settings):
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
    # A backend has no say in a file that is only written.
    return {key: value for key, value in found.items() if not key.startswith("backend")}


def new_figure(look: Look, width: float, height: float) -> Figure:
    """An empty figure that belongs to no window.

    Args:
        look: May set another size.
        width: In inches.
        height: In inches.

    Returns:
        The figure, laid out so that nothing overlaps.
    """
    figure = Figure(figsize=look.size or (width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)  # type: ignore[union-attr, call-arg]  # constrained: just set
    return figure


def saved(figure: Figure, suffix: str, dpi: float = 200) -> bytes:
    """A figure as a file's content, the same bytes each time.

    Args:
        figure: Any.
        suffix: One of `FORMATS`.
        dpi: Of pixels; vector formats use it for their rasterised parts.

    Returns:
        PNG, SVG or PDF.
    """
    stream = io.BytesIO()
    when = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {"Software": None}}
    metadata: Any = when[suffix]
    figure.savefig(stream, format=suffix[1:], dpi=dpi, metadata=metadata)
    return stream.getvalue()


def depth_colours(count: int) -> list[tuple[float, float, float, float]]:
    """Colours from light to dark, told apart in grey and by the colour-blind.

    Args:
        count: How many.

    Returns:
        RGBA of each; of viridis without its lightest end, which is too faint on white.
    """
    scale = mpl.colormaps["viridis"]
    places = np.linspace(0.82, 0.0, count) if count > 1 else np.array([0.25])
    return [tuple(float(part) for part in scale(place)) for place in places]  # type: ignore[misc]  # four of them


def depth_map(count: int) -> Colormap:
    """The same colours as a colour map.

    Args:
        count: How many.

    Returns:
        A map of so many colours.
    """
    return ListedColormap(depth_colours(count))


def head(figure: Figure, look: Look, title: str, facts: Sequence[str]) -> None:
    """Writes the title, and at the foot in grey what else a reader must know.

    Args:
        figure: Any.
        look: May set another title and name the model.
        title: What is shown.
        facts: Facts, empty ones left out.
    """
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
    # A letter of the usual fonts is a little over half as wide as the font is high.
    return "\n".join(textwrap.wrap(text, max(20, int(width * 72 / (0.58 * size)))))
