"""Kept singular values for figures and pages, counted by the rule of the table."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from localrank_cli.errors import DataError, SettingsError, listed
from localrank_cli.results.choose import matching
from localrank_cli.results.columns import on_one_line, pair_names

if TYPE_CHECKING:  # torch is imported only where there are spectra
    from localrank_cli.results.spectra import Tensors
    from localrank_cli.spectrum.layer import LayerSpectrum
    from localrank_cli.spectrum.tolerance import Tolerance

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one layer at one checkpoint."""

    run: str
    step: int
    layer: str
    layer_index: int
    whole: "LayerSpectrum"

    @cached_property
    def values(self) -> Array:
        """Singular values, descending; shape (points, min(n_out, n_in)), finite points only."""
        finite: Array = self.whole.computed[self.whole.finite].numpy()
        return finite

    @property
    def largest(self) -> float:
        """The largest singular value at any point."""
        return float(self.values.max(initial=0.0))

    def ranks(self, numbers: Iterable[float], *, relative: bool) -> Array:
        """Return the mean local rank over the finite points at each `--rtol` or `--atol`."""
        from localrank_cli.spectrum.tolerance import Tolerance

        kind = "rtol" if relative else "atol"
        return self._mean([Tolerance(**{kind: float(number)}) for number in numbers])

    def rank_at(self, label: str) -> float:
        """Return the mean local rank over the finite points at a tolerance such as `rtol=eps`."""
        return float(self._mean([_tolerance(label)])[0])

    def number_of(self, label: str) -> float:
        """Return the number that a tolerance of the table is for this layer (`eps` is by shape)."""
        tolerance = _tolerance(label)
        return tolerance.atol or tolerance.relative(self.whole.n_out, self.whole.n_in)

    def _mean(self, tolerances: "Sequence[Tolerance]") -> Array:
        from localrank_cli.measures.points import mean_ranks

        counted: Array = mean_ranks(self.whole, tolerances).numpy()
        return counted


class SpectraFile:
    """Kept singular values, read on demand.

    Args:
        path: A folder that `--spectra` wrote, with a file for each checkpoint; or one of its files.

    Raises:
        DataError: If it is something else.
    """

    def __init__(self, path: Path) -> None:
        from localrank_cli.results.spectra import find_spectra

        self.path = path
        files = list(find_spectra(path)) if path.is_dir() else [path]
        if not files:
            raise DataError(
                f"{path}: holds no singular values written by localrank.",
                "Keep them with localrank analyze --spectra FOLDER.",
            )
        # Each entry knows its file.
        every = [entry | {"path": file} for file in files for entry in _entries(file)]
        self._entries = [entry for run in _by_run(every) for entry in _named(run)]

    @property
    def runs(self) -> list[str]:
        """Names of the runs, in order."""
        return list(dict.fromkeys(str(entry["run"]) for entry in self._entries))

    def one_run(self, wanted: str | None) -> str:
        """Return the name of the run to show; None means the only one.

        Raises:
            SettingsError: If there are several to choose from, or it is not there.
        """
        if wanted is None and len(self.runs) > 1:
            raise SettingsError(
                f"the singular values are of several runs: {listed(self.runs, 20)}.",
                "Choose one with --run.",
            )
        if wanted is not None and wanted not in self.runs:
            raise SettingsError(
                f"--run {wanted}: not among the singular values.",
                f"The runs are {listed(self.runs, 20)}.",
            )
        return self.runs[0] if wanted is None else wanted

    def steps(self, run: str) -> list[int]:
        """Return the steps of a run, ascending."""
        return sorted({entry["step"] for entry in self._entries if entry["run"] == run})

    def read(self, run: str, layers: Sequence[str], steps: Sequence[int]) -> list[Spectrum]:
        """Return the singular values of a run at some steps, by step and depth.

        `layers` are globs, all if empty. Layers without a finite point are left out.

        Raises:
            DataError: If there are none.
        """
        from localrank_cli.results.spectra import opened

        of_run = [entry for entry in self._entries if entry["run"] == run]
        depth = {str(entry["name"]): entry["layer_index"] for entry in of_run}
        names = set(matching(sorted(depth, key=depth.__getitem__), layers))
        wanted = [e for e in of_run if e["name"] in names and e["step"] in steps]
        found: list[Spectrum] = []
        for path, entries in groupby(wanted, key=lambda entry: entry["path"]):
            with opened(path) as (tensors, _):
                found += [_spectrum(entry, tensors) for entry in entries]
        found = [spectrum for spectrum in found if bool(spectrum.whole.finite.any())]
        if not found:
            raise DataError(f"{self.path}: holds no finite singular values for this choice.")
        return sorted(found, key=lambda spectrum: (spectrum.step, spectrum.layer_index))


def _by_run(entries: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        found.setdefault(str(entry["run"]), []).append(entry)
    return list(found.values())


def _named(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries of a run with the names of their layers, as figures and pages show."""
    pairs = [(str(entry["layer"]), str(entry.get("wrt", ""))) for entry in entries]
    names = pair_names(pairs)
    return [entry | {"name": names[pair]} for entry, pair in zip(entries, pairs, strict=True)]


def _entries(path: Path) -> list[dict[str, Any]]:
    from localrank_cli.results.spectra import opened

    with opened(path) as (_, about):
        return [
            {
                "run": on_one_line(entry["run"]),  # as in tables
                "layer": on_one_line(entry["layer"]),
                "wrt": on_one_line(entry.get("wrt", "")),
                "step": int(entry["step"]),
                "layer_index": int(entry["layer_index"]),
                "entry": entry,
            }
            for entry in about["entries"]
        ]


def _spectrum(entry: dict[str, Any], tensors: "Tensors") -> Spectrum:
    from localrank_cli.results.spectra import read_layer

    kept = read_layer(entry["entry"], tensors)
    facts, whole = kept.facts, kept.spectrum
    assert facts.step is not None
    return Spectrum(entry["run"], facts.step, entry["name"], facts.layer_index, whole)


def _tolerance(label: str) -> "Tolerance":
    from localrank_cli.spectrum.tolerance import Tolerance

    return Tolerance.of_label(label)
