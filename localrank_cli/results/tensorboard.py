"""Write a table as the event files of TensorBoard."""

import tempfile
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from localrank_cli.errors import OutputError, SettingsError
from localrank_cli.results.tags import tags
from localrank_cli.results.write import cannot_write

_EVENTS = "events.out.tfevents."


def write_events(frame: pd.DataFrame, folder: Path) -> list[Path]:
    """Write the values of each run into a folder of its name, and return those folders.

    `frame` is a table without rows that failed. A folder gets its file when that is whole.

    Raises:
        OutputError: If a folder already holds event files, or cannot be written.
        SettingsError: If TensorBoard is not installed.
    """
    places = {str(run): folder / _inside(str(run)) for run in frame["run"].unique()}
    for place in places.values():
        if place.is_dir() and any(one.name.startswith(_EVENTS) for one in place.iterdir()):
            raise OutputError(
                f"{place}: already holds event files, to which TensorBoard would add these.",
                "Name another folder, or remove them.",
            )
    writer = _writer()
    try:
        for run, place in places.items():
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=place, prefix=".localrank-") as made:
                _write(frame[frame["run"] == run], writer(log_dir=made))
                for file in Path(made).iterdir():
                    file.replace(place / file.name)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return list(places.values())


def _write(frame: pd.DataFrame, writer: Any) -> None:
    try:
        for step, rows in frame.groupby("step"):
            cells: list[Any] = rows.to_dict("records")
            for name, value in tags((str(row["layer"]), row) for row in cells).items():
                writer.add_scalar(name, value, int(step))  # type: ignore[arg-type]  # a column of numbers
    finally:
        writer.close()


def _inside(run: str) -> Path:
    """Return the name of a run as a path that leads into a folder."""
    parts = [part for part in run.split("/") if part not in {"", ".", ".."}]
    return Path(*parts) if parts else Path("run")


def _writer() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own dependencies
            from torch.utils import tensorboard
    except ImportError as error:
        raise SettingsError(
            f"--to tensorboard needs TensorBoard, which cannot be imported ({error}).",
            "Run: pip install 'localrank[tensorboard]'",
        ) from error
    return vars(tensorboard)["SummaryWriter"]
