"""How many points are drawn by default; without torch, since the help names these numbers too."""

DEFAULT_POINTS = 64
DEFAULT_INFORMATION_POINTS = 1000
