"""The rules of published work behind `--preset`. docs/local_rank.md has the sources."""

from collections.abc import Mapping
from typing import Any

from localrank_cli.options.parse import Preset

# max(n) eps(float32) is matrix_rank's own tolerance on the float32 Gram matrix of a 3 x 16 x 16
# patch, whose eigenvalues are squares: (768 * 2^-23)^(1/2) on sigma, relative to sigma_1.
_GRAM_RTOL = (3 * 16 * 16 * 2.0**-23) ** 0.5

# `hidden` leaves out the last layer; there is no option for it.
_PRESETS: Mapping[Preset, Mapping[str, Any]] = {
    Preset.patel2024: {"atol": (0.01,), "points": 128, "hidden": True},
    # matrix_rank is called on the patch alone there.
    Preset.feng2022: {"rtol": (_GRAM_RTOL,), "input_slice": "center:16", "sigma_1": "slice"},
    Preset.numpy: {"rtol": (None,)},
}


def preset_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the preset among some options, by name; none without a preset.

    Layers among the same options override the preset's choice, so that they may include the last.
    """
    preset = options.get("preset")
    values = dict(_PRESETS[preset]) if preset is not None else {}
    if options.get("layers"):
        values.pop("hidden", None)
    return values
