"""Default numbers of points; without torch, since options are read without it."""

DEFAULT_POINTS = 64
DEFAULT_INFORMATION_POINTS = 1000
MOST_AXES = 63  # of a point: torch allows 64, and the axis of the points is one
