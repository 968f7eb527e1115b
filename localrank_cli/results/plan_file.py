"""The plan file: the list of checkpoints that is shared by all parts of a divided run."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from localrank_cli.errors import SettingsError, UnreadableError, one_line
from localrank_cli.files import read_regular
from localrank_cli.validation import loads

FORMAT = 1
_KEY = "localrank_plan"
_MOST_BYTES = 2**28  # a million checkpoints
RESUBMIT = "Submit again; finished checkpoints are kept."


class ListedCheckpoint(NamedTuple):
    """A checkpoint as it was when the plan was made."""

    name: str  # relative to the series
    step: int | None  # None: it could not be read
    size: int | None  # bytes of all its files; None: they could not be read
    mtime_ns: int | None
    is_done: bool = False  # finished before the work was divided
    pin: str = ""  # the versions of its files, if they are on another machine


@dataclass(frozen=True)
class ListedSeries:
    """One series as it was when the plan was made."""

    run: str
    folder: str  # absolute
    settings: Mapping[str, Any]  # all that decides the numbers, as in the manifest
    checkpoints: tuple[ListedCheckpoint, ...]


@dataclass(frozen=True)
class PlanFile:
    """The content of a plan file, which every part of a divided run reads."""

    series: tuple[ListedSeries, ...]
    shards: int
    n_units: int
    words: tuple[str, ...]  # the command line of analyze, without the options of a single part
    output: str  # absolute
    folder: str  # the working directory
    interpreter: str

    def is_same_work(self, other: "PlanFile") -> bool:
        """Return whether both plans divide the same checkpoints alike under the same settings."""
        return (self.series, self.shards, self.words) == (other.series, other.shards, other.words)

    @property
    def n_checkpoints(self) -> int:
        """The number of checkpoints in the plan."""
        return sum(len(one.checkpoints) for one in self.series)

    @property
    def done(self) -> set[tuple[str, str]]:
        """Run and name of each checkpoint that was finished before the work was divided."""
        return {
            (one.run, each.name) for one in self.series for each in one.checkpoints if each.is_done
        }

    def of_run(self, run: str) -> ListedSeries:
        """Return the series of a name.

        Raises:
            SettingsError: If the plan has none of that name.
        """
        for one in self.series:
            if one.run == run:
                return one
        raise SettingsError(
            f"the plan file lists no series {run!r}.", "Give the checkpoints that it was made for."
        )

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file, as JSON can hold it."""
        return {_KEY: FORMAT} | asdict(self)


def read_plan_file(path: Path) -> PlanFile:
    """Read a plan file.

    Raises:
        UnreadableError: If it cannot be read, or is not a plan file.
    """
    if path.exists() and not path.is_file():  # opening a pipe would wait for its other end
        raise _unsound(path, "is not a regular file")
    try:
        text = read_regular(path, _MOST_BYTES).decode("utf-8")
        found: Any = loads(text, non_finite=True)
    except OSError as error:
        raise UnreadableError(
            f"{path}: cannot be read ({error.strerror}).", "Name the plan file of localrank submit."
        ) from error
    except ValueError as error:
        raise _unsound(path, f"is not a readable plan file ({one_line(error)})") from error
    if not isinstance(found, dict) or found.get(_KEY) != FORMAT:
        raise _unsound(path, "is not a plan file of this version of localrank")
    from localrank_cli.results.schema import PlanContent, check

    try:
        check(PlanContent, found)
    except ValueError as error:
        raise _unsound(path, one_line(error)) from error
    series = tuple(
        ListedSeries(
            one["run"],
            one["folder"],
            one["settings"],
            tuple(ListedCheckpoint(*each) for each in one["checkpoints"]),
        )
        for one in found["series"]
    )
    return PlanFile(
        series=series,
        shards=found["shards"],
        n_units=found["n_units"],
        words=tuple(found["words"]),
        output=found["output"],
        folder=found["folder"],
        interpreter=found["interpreter"],
    )


def _unsound(path: Path, what: str) -> UnreadableError:
    return UnreadableError(f"{path}: {what}.", RESUBMIT)
