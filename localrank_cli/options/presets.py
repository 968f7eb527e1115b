"""`--preset`: the rules of published work under one name. docs/local_rank.md has the sources."""

from dataclasses import replace
from typing import TypeVar

from localrank_cli.options.folder import FolderSettings
from localrank_cli.options.parse import Preset
from localrank_cli.options.table import AnalyzeOptions

# max(n) eps(float32) is matrix_rank's own tolerance on the float32 Gram matrix of a 3 x 16 x 16
# patch, whose eigenvalues are squares: (768 * 2^-23)^(1/2) on sigma, relative to sigma_1.
_GRAM_RTOL = (3 * 16 * 16 * 2.0**-23) ** 0.5

_Given = TypeVar("_Given", AnalyzeOptions, FolderSettings)


def with_preset(options: AnalyzeOptions) -> AnalyzeOptions:
    """Fills in what a preset says, where no flag says otherwise.

    Args:
        options: As given.

    Returns:
        The options, which still name the preset.
    """
    return options if options.preset is None else _filled(options, options.preset)


def own_with_preset(own: FolderSettings) -> FolderSettings:
    """Fills in what the preset of a series' own settings says, where they do not say otherwise.

    Args:
        own: The series' file.

    Returns:
        The settings.
    """
    return own if own.preset is None else _filled(own, own.preset)


def _filled(given: _Given, kind: Preset) -> _Given:
    tolerances = {
        Preset.patel2024: {"atol": (0.01,)},
        Preset.feng2022: {"rtol": (_GRAM_RTOL,)},
        Preset.numpy: {"rtol": (None,)},
    }[kind]
    if not given.atol and not given.rtol:
        given = replace(given, **tolerances)  # type: ignore[arg-type]  # of several types
    if kind is Preset.patel2024:
        hidden = given.hidden or not given.layers
        points = 128 if given.points is None else given.points
        given = replace(given, points=points, hidden=hidden)
    if kind is Preset.feng2022:
        patch = "center:16" if given.input_slice is None else given.input_slice
        # Their matrix_rank sees the patch alone.
        given = replace(given, input_slice=patch, sigma_1=given.sigma_1 or "slice")
    return given
