"""The names that `--preset` knows; `presets` has what they say."""

from enum import StrEnum

from localrank_cli.errors import UsageError


class Preset(StrEnum):
    """Rules of published work."""

    patel2024 = "patel2024"
    feng2022 = "feng2022"
    numpy = "numpy"


def parse_preset(text: str) -> Preset:
    """Reads a preset's name.

    Args:
        text: The name.

    Returns:
        The preset.

    Raises:
        UsageError: If there is none of that name.
    """
    try:
        return Preset(text)
    except ValueError:
        raise UsageError(
            f"--preset {text}: not known.", f"Known are {', '.join(Preset)}."
        ) from None
