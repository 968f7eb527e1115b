"""The positions whose Jacobians are measured, drawn once for every checkpoint."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from localrank_cli.errors import LayerError, UsageError
from localrank_cli.layers.axes import Axes

ALL = "all"
EACH, SAME, LAST_EACH = "each", "same", "last-each"
FIRST, LAST, LAST_ALL = "first", "last", "last-all"
_COUNTED = (EACH, SAME, LAST_EACH)
KINDS = (ALL, EACH, SAME, FIRST, LAST, LAST_ALL, LAST_EACH)
DEFAULT_POSITIONS = 16
# Kinds whose Jacobians have the features of one position of the varied tensor as columns.
_ONE_TO_ONE = (SAME, FIRST, LAST)


@dataclass(frozen=True)
class Positions:
    """What `--positions` says."""

    kind: str = ALL
    count: int | None = None  # positions of each point; None: all up to 16, else 16

    @classmethod
    def parse(cls, text: str) -> "Positions":
        """Return the positions that a text such as `same:4` denotes.

        Raises:
            UsageError: If it denotes none.
        """
        kind, colon, number = text.strip().partition(":")
        known = ", ".join(f"{one}[:N]" if one in _COUNTED else one for one in KINDS)
        if kind not in KINDS or (colon and kind not in _COUNTED):
            raise UsageError(f"--positions {text}: unknown.", f"Choose one of {known}.")
        if colon and not (number.isdecimal() and number.isascii() and 0 < int(number) < 2**31):
            raise UsageError(
                f"--positions {text}: expected a number of positions, at least 1, after the colon.",
                f"Write {kind}:4, say.",
            )
        return cls(kind, int(number) if colon else None)

    def __str__(self) -> str:
        return self.kind if self.count is None else f"{self.kind}:{self.count}"

    @property
    def is_all(self) -> bool:
        """Whether the whole output is differentiated with respect to the whole varied tensor."""
        return self.kind == ALL

    @property
    def needs_equal_grids(self) -> bool:
        """Whether a position of the output needs its counterpart in the varied tensor."""
        return self.kind in _ONE_TO_ONE

    @property
    def takes_whole_source(self) -> bool:
        """Whether every entry of the varied tensor is varied."""
        return self.kind in (ALL, EACH, LAST_ALL)

    @property
    def draws_from_source(self) -> bool:
        """Whether positions of the varied tensor are drawn, and not those of the output."""
        return self.kind == LAST_EACH

    def n_parts(self, grid_size: int) -> int:
        """Return how many Jacobians each point has, on a grid of some size."""
        if self.kind not in _COUNTED:
            return 1
        wanted = DEFAULT_POSITIONS if self.count is None else self.count
        return min(wanted, grid_size)

    def note(self, grids: Sequence[tuple[int, ...]]) -> str:
        """Return what a user must know of the positions of some grids; empty: nothing."""
        if self.kind not in _COUNTED:
            return ""
        sizes = sorted({_size(grid) for grid in grids})
        if self.count is None:
            if sizes and sizes[-1] > DEFAULT_POSITIONS:
                return (
                    f"--positions {self}: {DEFAULT_POSITIONS} positions of each point are drawn,"
                    f" out of up to {sizes[-1]}; {self.kind}:N draws N"
                )
            return ""
        fewer = [size for size in sizes if size < self.count]
        if fewer:
            listed = ", ".join(map(str, fewer))
            return f"--positions {self}: layers with {listed} positions use all of them"
        return ""

    def check(self, grids: Sequence[tuple[int, ...]]) -> None:
        """Check that some grid has as many positions as are asked for.

        Raises:
            LayerError: If none has.
        """
        largest = max((_size(grid) for grid in grids), default=0)
        if self.count is not None and self.count > largest:
            raise LayerError(
                f"--positions {self}: no chosen layer has more than {largest}"
                f" position{'s' if largest != 1 else ''}.",
                f"Ask for at most {self.kind}:{largest}, or leave the number out.",
            )

    def of_points(self, grid: tuple[int, ...], seed: int, indices: Sequence[int]) -> Tensor:
        """Return the positions at points with some indices: (points, parts), int64, CPU, ascending.

        They depend on the seed, the grid and the point's index alone: the same at every step, for
        layers with the same grid, and however the points are divided.
        """
        size = _size(grid)
        if self.kind == FIRST:
            return torch.zeros(len(indices), 1, dtype=torch.int64, device="cpu")
        if self.kind in (LAST, LAST_ALL):
            return torch.full((len(indices), 1), size - 1, dtype=torch.int64, device="cpu")
        count = self.n_parts(size)
        if count == size:
            return torch.arange(size, device="cpu").expand(len(indices), -1)
        return torch.stack([_drawn(size, count, seed, grid, index) for index in indices])


def _size(grid: tuple[int, ...]) -> int:
    size = 1
    for length in grid:
        size *= length
    return size


def _drawn(size: int, count: int, seed: int, grid: tuple[int, ...], index: int) -> Tensor:
    digest = hashlib.sha256(repr((seed, grid, index)).encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randperm(size, generator=generator, device="cpu")[:count].sort().values


@dataclass(frozen=True)
class Parts:
    """The Jacobians of one call at some points: entries of its output by entries of the source."""

    rows: Tensor  # (points, parts, r), or (points, 1, r): the same for all parts
    columns: Tensor | None  # (points, parts, c); None: every entry of the varied tensor
    n_parts: int
    # (points, parts), the position of both where each has its counterpart; None otherwise.
    places: Tensor | None = None
    source_places: Tensor | None = None  # (points, parts), the position of the columns, if of one

    def __getitem__(self, points: slice) -> "Parts":
        columns = None if self.columns is None else self.columns[points]
        places = None if self.places is None else self.places[points]
        source_places = None if self.source_places is None else self.source_places[points]
        return Parts(self.rows[points], columns, self.n_parts, places, source_places)

    def some(self, low: int, high: int) -> "Parts":
        """Return some of the parts of each point."""
        rows = self.rows[:, low:high] if self.rows.shape[1] > 1 else self.rows
        columns = None if self.columns is None else self.columns[:, low:high]
        places = None if self.places is None else self.places[:, low:high]
        of_source = None if self.source_places is None else self.source_places[:, low:high]
        return Parts(rows, columns, high - low, places, of_source)

    @property
    def n_rows(self) -> int:
        """Rows of each Jacobian."""
        return self.rows.shape[2]


def make_parts(
    positions: Positions, output: Axes, source: Axes, seed: int, indices: Sequence[int]
) -> Parts:
    """Return the Jacobians of one call at the points with some indices.

    The axes must have a batch axis; for `same`, `first` and `last` the grids must be equal.
    """
    end = torch.full((len(indices), 1), output.n_positions - 1, dtype=torch.int64, device="cpu")
    if positions.draws_from_source:
        drawn = positions.of_points(source.grid, seed, indices)
        return Parts(
            output.entries(end), source.entries(drawn), drawn.shape[1], source_places=drawn
        )
    drawn = positions.of_points(output.grid, seed, indices)
    columns = None if positions.takes_whole_source else source.entries(drawn)
    places = drawn if positions.needs_equal_grids else None
    return Parts(output.entries(drawn), columns, drawn.shape[1], places, places)
