"""Reads the singular values that `localrank analyze --spectra FOLDER` keeps."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from localrank_cli.errors import DataError, SettingsError
from localrank_cli.table.choose import listed, matching
from localrank_cli.table.columns import SCALE

Array = np.ndarray[Any, np.dtype[np.float64]]

_KEY, _FORMAT = "localrank_spectra", 1


@dataclass(frozen=True)
class Spectrum:
    """One layer at one checkpoint.

    Args:
        run: Name of the series.
        step: Training step.
        layer: Qualified name.
        layer_index: Order of execution.
        values: Singular values, descending; shape (points, min(n_out, n_in)), finite points only.
        first: What relative tolerances refer to, shape (points,): sigma_1 of these values, or with
            `--sigma-1 full` that of the whole Jacobian of which they are a part.
    """

    run: str
    step: int
    layer: str
    layer_index: int
    values: Array
    first: Array


class SpectraFile:
    """Kept singular values, of which only what is asked for is read.

    Args:
        path: What `--spectra` wrote: a folder with a file for each checkpoint; or one of the files.

    Raises:
        DataError: If it is something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        files = sorted(path.rglob("step_*.safetensors")) if path.is_dir() else [path]
        if not files:
            raise DataError(
                f"{path}: holds no singular values of localrank.",
                "Make them with localrank analyze --spectra FOLDER.",
            )
        # Each entry knows its file.
        self._entries = [entry | {"path": file} for file in files for entry in _entries(file)]

    @property
    def runs(self) -> list[str]:
        """Names of the runs, in order."""
        return list(dict.fromkeys(str(entry["run"]) for entry in self._entries))

    def one_run(self, wanted: str | None) -> str:
        """The run to show.

        Args:
            wanted: Its name; None: the only one.

        Returns:
            Its name.

        Raises:
            SettingsError: If there are several to choose from, or it is not there.
        """
        if wanted is None and len(self.runs) > 1:
            raise SettingsError(
                f"the singular values are of several runs: {listed(self.runs)}.",
                "Choose one with --run.",
            )
        if wanted is not None and wanted not in self.runs:
            raise SettingsError(
                f"--run {wanted}: not among the singular values.", f"There are {listed(self.runs)}."
            )
        return self.runs[0] if wanted is None else wanted

    def steps(self, run: str) -> list[int]:
        """Steps of a run.

        Args:
            run: Its name.

        Returns:
            Ascending.
        """
        return sorted({entry["step"] for entry in self._entries if entry["run"] == run})

    def read(self, run: str, layers: Sequence[str], steps: Sequence[int]) -> list[Spectrum]:
        """Reads singular values.

        Args:
            run: Its name.
            layers: Globs; empty: all.
            steps: Only these.

        Returns:
            In the order of steps and depth; layers without a finite point are left out.

        Raises:
            DataError: If there are none.
        """
        of_run = [entry for entry in self._entries if entry["run"] == run]
        depth = {str(entry["layer"]): entry["layer_index"] for entry in of_run}
        names = set(matching(sorted(depth, key=depth.__getitem__), layers))
        wanted = [e for e in of_run if e["layer"] in names and e["step"] in steps]
        found: list[Spectrum] = []
        for path, entries in groupby(wanted, key=lambda entry: entry["path"]):
            with _opened(path) as file:
                found += [_spectrum(entry, file) for entry in entries]
        found = [spectrum for spectrum in found if len(spectrum.values)]
        if not found:
            raise DataError(f"{self.path}: holds no finite singular values for this choice.")
        return sorted(found, key=lambda spectrum: (spectrum.step, spectrum.layer_index))


def _entries(path: Path) -> list[dict[str, Any]]:
    with _opened(path) as file:
        text = (file.metadata() or {}).get(_KEY)
        if text is None:
            raise DataError(
                f"{path}: holds no singular values of localrank.",
                "Make them with localrank analyze --spectra FOLDER.",
            )
        described = json.loads(text)
        if described["format"] != _FORMAT:
            raise DataError(
                f"{path}: has format {described['format']}, and this version reads {_FORMAT}.",
                "Use the version of localrank that wrote it.",
            )
        return [
            entry | {"step": int(entry["step"]), "layer_index": int(entry["layer_index"])}
            for entry in described["entries"]
        ]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except OSError as error:
        said = error.strerror or error
        raise DataError(f"{path}: cannot be read ({said}).", "Check the name.") from error
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: is no file of singular values ({' '.join(str(error).split())}).",
            "Make one with localrank analyze --spectra FOLDER.",
        ) from error


def _spectrum(entry: dict[str, Any], file: Any) -> Spectrum:
    name = f"{entry['run']}\t{entry['step']}\t{entry['layer']}"
    values = np.asarray(file.get_tensor(name), dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"{name!r} has shape {values.shape}")
    ordered = -np.sort(-values, axis=1)
    first = ordered[:, 0] if values.shape[1] else np.zeros(len(values))
    if name + SCALE in file.keys():  # noqa: SIM118  # safetensors' file is no mapping
        first = np.asarray(file.get_tensor(name + SCALE), dtype=np.float64)[0]
    finite = np.isfinite(values).all(axis=1)
    run, layer = str(entry["run"]), str(entry["layer"])
    place = (run, entry["step"], layer, entry["layer_index"])
    return Spectrum(*place, ordered[finite], first[finite])


def counts(spectrum: Spectrum, tolerances: Array, *, relative: bool) -> Array:
    """Compute the mean local rank at many tolerances, counted as the table counts.

    Args:
        spectrum: Of one layer.
        tolerances: Any number.
        relative: Whether they are shares of `spectrum.first`.

    Returns:
        One mean for each tolerance.
    """
    # torch takes seconds to import, and most pictures need no singular values.
    import torch  # noqa: PLC0415

    from localrank_cli.measures.points import count_above  # noqa: PLC0415

    scale = spectrum.first if relative else np.ones(len(spectrum.first))
    thresholds = torch.from_numpy(scale[:, None] * tolerances)
    found = count_above(torch.from_numpy(spectrum.values), thresholds)
    means: Array = found.sum(dim=0).numpy() / len(spectrum.values)
    return means
