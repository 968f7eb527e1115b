"""`--preset`: the rules of published work under one name. docs/local_rank.md has the sources."""

from collections.abc import Mapping
from typing import Any

from localrank_cli.options.parse import Preset

# max(n) eps(float32) is matrix_rank's own tolerance on the float32 Gram matrix of a 3 x 16 x 16
# patch, whose eigenvalues are squares: (768 * 2^-23)^(1/2) on sigma, relative to sigma_1.
_GRAM_RTOL = (3 * 16 * 16 * 2.0**-23) ** 0.5

# `hidden` leaves out the last layer; it is not an option of its own.
_PRESETS: Mapping[Preset, Mapping[str, Any]] = {
    Preset.patel2024: {"atol": (0.01,), "points": 128, "hidden": True},
    # Their matrix_rank sees the patch alone.
    Preset.feng2022: {"rtol": (_GRAM_RTOL,), "input_slice": "center:16", "sigma_1": "slice"},
    Preset.numpy: {"rtol": (None,)},
}


def preset_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the preset among some options says, by name; empty where there is none.

    Args:
        given: The options with which the preset was named; layers that are named beside it are
            meant as they are, the last one included.
    """
    preset = given.get("preset")
    found = dict(_PRESETS[preset]) if preset is not None else {}
    if given.get("layers"):
        found.pop("hidden", None)
    return found
