"""The data of a compression: points with their labels, in disjoint splits."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from localrank_cli.compress.score import Batch
from localrank_cli.compress.search import Data, halves, split
from localrank_cli.errors import DataError, SettingsError
from localrank_cli.options.resolve import Settings
from localrank_cli.points.source import DataSource, load_points
from localrank_cli.run.plan import Plan, SeriesPlan
from localrank_cli.run.samples import read_labels

_MOST = 64  # points that pass through the network at once
_BATCH_BYTES = 2**28  # of their intermediate results, by which there are fewer
_NORMED = 8  # points at least, of which BatchNorm estimates its statistics
_DRAWN = 1024  # points of a distribution

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Rows:
    """Points, and their labels where there are any, as they are stored."""

    points: Any  # a tensor, or rows of a file
    labels: Tensor | None
    scale: float | None
    device: torch.device
    dtype: torch.dtype
    size: int  # points in a batch
    facts: Mapping[str, object]  # of the data, with a hash

    @classmethod
    def of(cls, plan: Plan, series: SeriesPlan, settings: Settings) -> "Rows":
        """Return the points that settings name."""
        count = _DRAWN if settings.source.is_drawn else None
        points, facts = load_points(replace(settings.source, keep=True, count=count))
        everything = points.tensor if points.everything is None else points.everything
        keyed = bool(settings.sampling.labels_key)
        labels = read_labels(settings, points, plan.memory) if keyed else None
        scale = None if points.everything is None else points.scale
        size = batch_size(series)
        return cls(everything, labels, scale, plan.device, settings.dtype, size, facts)

    def batches(self, indices: Tensor) -> Iterator[Batch]:
        """Yield the points of sorted indices, ready for the network."""
        for part in indices.split(self.size):
            yield self._batch(part)

    def digests(self, indices: Tensor) -> Iterator[bytes]:
        """Yield a hash of each point of sorted indices."""
        for part in indices.split(self.size):
            points, _ = self._batch(part)
            for point in points.cpu().numpy():
                yield hashlib.blake2b(point.tobytes(), digest_size=16).digest()

    def _batch(self, indices: Tensor) -> Batch:
        rows: Tensor = self.points[indices]
        if self.scale is not None:
            rows = rows.to(torch.float64) * self.scale
        rows = rows.to(self.dtype if rows.is_floating_point() else torch.int64)
        return rows.to(self.device), None if self.labels is None else self.labels[indices]


def batch_size(series: SeriesPlan) -> int:
    """Return how many points pass through a network at once.

    It depends on the network alone, not on the memory that happens to be free: labels are drawn
    batch by batch, and the same command gives the same weights everywhere.
    """
    fitting = _BATCH_BYTES // activation_bytes(series)
    least = _NORMED if any("BatchNorm" in type(m).__name__ for m in series.model.modules()) else 1
    return max(least, min(_MOST, fitting))


def activation_bytes(series: SeriesPlan) -> int:
    """Return the bytes of all intermediate results for one point."""
    entries = max(one.survey.activations for one in series.examination.views)
    return max(entries, 1) * series.settings.dtype.itemsize


def is_same(first: DataSource, second: DataSource) -> bool:
    """Return whether two sources give the same points."""
    one, other = first.path, second.path
    if one is None or other is None or not (one.exists() and other.exists()):
        return first.text == second.text
    return one.samefile(other)


@dataclass(frozen=True)
class Sliced:
    """The splits of the data.

    Args:
        data: The points that the calibration split is drawn from.
        held_out: The points that the selection and reporting splits are drawn from.
        parts: The name of each split and its indices, sorted.
    """

    data: Rows
    held_out: Rows
    parts: dict[str, Tensor]

    @classmethod
    def of(cls, plan: Plan, series: SeriesPlan, eval_data: str | None) -> "Sliced":
        """Return the splits of `--data`, or of `--data` and `--eval-data`.

        Raises:
            SettingsError: If both are the same.
            DataError: If the held-out data cannot be read, or there are too few.
        """
        settings = series.settings
        data, seed = Rows.of(plan, series, settings), settings.source.seed
        if eval_data is None:
            found = split(int(data.points.shape[0]), seed)
            calibrate, pick, report = found.calibrate, found.pick, found.report
            held_out = data
        else:
            source = replace(settings.source, text=eval_data)
            if is_same(source, settings.source):
                raise SettingsError(
                    f"--eval-data {eval_data}: is the same as --data, and calibration data"
                    " cannot be held out.",
                    "Leave out --eval-data, and --data is split into disjoint parts.",
                )
            try:
                held_out = Rows.of(plan, series, replace(settings, source=source))
            except DataError as error:
                advice = error.advice.replace("--data.", "--eval-data.")
                raise DataError(f"--eval-data: {error.what}", advice) from error
            calibrate = torch.arange(int(data.points.shape[0]))
            pick, report = halves(int(held_out.points.shape[0]), seed)
        return cls(data, held_out, {"calibrate": calibrate, "pick": pick, "report": report})

    def repeated(self) -> int:
        """Return how many of the held-out points calibrate too, as equal rows."""
        seen = set(self.data.digests(self.parts["calibrate"]))
        held_out = (self.held_out.digests(self.parts[name]) for name in ("pick", "report"))
        return sum(digest in seen for digests in held_out for digest in digests)

    @property
    def sizes(self) -> dict[str, int]:
        """The number of points of each split."""
        return {name: len(part) for name, part in self.parts.items()}

    def n_batches(self, name: str) -> int:
        """Return the number of batches of a split."""
        return -(-len(self.parts[name]) // self.data.size)

    def watched(self, done: Callable[[str], None]) -> Data:
        """Return the batches of each split; `done` is called with its name after each of them."""

        def reported(items: Iterable[_Item], name: str) -> Iterator[_Item]:
            """Yield batches; report each when the next one is asked for."""
            for item in items:
                yield item
                done(name)

        rows, held_out, parts = self.data, self.held_out, self.parts
        return Data(
            lambda: reported((x for x, _ in rows.batches(parts["calibrate"])), "calibrate"),
            lambda: reported(held_out.batches(parts["pick"]), "pick"),
            lambda: reported(held_out.batches(parts["report"]), "report"),
        )
