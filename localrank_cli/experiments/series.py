"""A training run as a series of checkpoints with its own settings."""

import csv
import json
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from localrank_cli import threads
from localrank_cli.errors import OutputError
from localrank_cli.experiments.training import Recipe, Task, figures, training
from localrank_cli.live.monitor import Monitor

LIVE = "live.csv"  # the table of the Monitor
_SETTINGS = "localrank.toml"


@dataclass(frozen=True)
class SeriesText:
    """The content of a series besides its checkpoints."""

    toml: str
    data_file: str
    arrays: Mapping[str, Any]  # content of the data file, by name
    is_watched: bool = False  # whether a Monitor measures the network while it is trained

    def monitor(self, folder: Path) -> Monitor:
        """Return a Monitor that measures each checkpoint as an analysis of the folder does."""
        settings = tomllib.loads(self.toml)
        for name in ("columns", "data", "activation"):  # the network itself shows its activation
            settings.pop(name, None)
        options = {name.replace("-", "_"): value for name, value in settings.items()}
        return Monitor(
            folder / LIVE, str(folder / self.data_file), every=1, on_error="raise", overwrite=True,
            quiet=True, device="cpu", **options,
        )  # fmt: skip

    def write(self, folder: Path) -> None:
        """Create and fill the folder; remove checkpoints of an earlier run."""
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("step_*.safetensors"):
            old.unlink()
        (folder / _SETTINGS).write_text(self.toml, encoding="utf-8")
        np.savez_compressed(folder / self.data_file, **self.arrays)


def settings_text(settings: Mapping[str, Any], columns: Mapping[str, str | int | float]) -> str:
    """Return a `localrank.toml` with the given keys and constant columns."""
    # Strings, numbers and lists look the same in JSON and TOML.
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    lines += ["", "[columns]", *(f"{key} = {json.dumps(value)}" for key, value in columns.items())]
    return "\n".join(lines) + "\n"


def text_of_inputs(inputs: Tensor, seed: int, decay: float) -> SeriesText:
    """Return the content of a series that is analyzed at the inputs of its training."""
    settings = {"data": "inputs.npz", "activation": "relu", "rtol": 0.1}
    columns = {"weight_decay": decay, "seed": seed}
    return SeriesText(settings_text(settings, columns), "inputs.npz", {"x": inputs.numpy()})


def save_step(net: nn.Module, folder: Path, step: int) -> None:
    """Save the weights as the checkpoint of one step."""
    save_file(net.state_dict(), folder / f"step_{step}.safetensors", {"step": str(step)})


def write_metrics(folder: Path, table: list[list[str]]) -> None:
    """Write `metrics.csv` again after each checkpoint, so that it is complete up to the last."""
    with (folder / "metrics.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(table)


def train_series(
    recipe: Recipe, task: Task, text: SeriesText, folder: Path
) -> Iterator[tuple[list[str], nn.Sequential]]:
    """Train a network by SGD and fill its folder; yield what `keep_series` yields."""
    return keep_series(training(recipe, task), task, text, folder)


def keep_series(
    steps: Iterator[tuple[int, nn.Sequential]], task: Task, text: SeriesText, folder: Path
) -> Iterator[tuple[list[str], nn.Sequential]]:
    """Fill a folder while a network is trained, including `metrics.csv`.

    `steps` yields step and live network wherever a checkpoint is wanted.

    Yields:
        After each checkpoint: its line of `metrics.csv` (step, loss, training and test score),
        and the live network.
    """
    with output_errors(folder):
        text.write(folder)
    monitor = text.monitor(folder) if text.is_watched else None
    table = [["step", "loss", f"train_{task.score_name}", f"test_{task.score_name}"]]
    for step, net in steps:
        row = [str(step), *(f"{number:.6g}" for number in figures(net, task))]
        table.append(row)
        with output_errors(folder):
            save_step(net, folder, step)
            write_metrics(folder, table)
        if monitor is not None:
            monitor(net, step)
        yield row, net
    if monitor is not None:
        monitor.close()


@contextmanager
def output_errors(folder: Path) -> Iterator[None]:
    """Turn an error while writing to a folder into an OutputError that names it."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written ({error.strerror}).", "Choose another folder with --out."
        ) from error


@contextmanager
def reproducibly() -> Iterator[None]:
    """Use one thread, with which small networks train fastest and the same bit by bit."""
    with threads.one_thread(), torch.random.fork_rng(devices=[]):
        yield
