"""Keeps the singular values of every point beside a table (`--spectra`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from localrank_cli.errors import OutputError
from localrank_cli.pipeline.manifest import series_settings
from localrank_cli.pipeline.plan import Plan
from localrank_cli.spectrum.spectra import LayerSpectrum
from localrank_cli.table.record import CheckpointRecord
from localrank_cli.table.spectra_files import spectra_path, write_spectra
from localrank_cli.table.write import cannot_write


class SpectraFolder:
    """A folder with a file for each checkpoint: each is whole or not there.

    Args:
        folder: Absolute; made if it is not there.

    Raises:
        OutputError: If it cannot be made, or is a file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._settings: dict[str, dict[str, Any]] = {}
        if folder.exists() and not folder.is_dir():
            raise OutputError(
                f"{folder}: is a file.",
                "--spectra names a folder, with a file for each checkpoint.",
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) from error

    def begin(self, plan: Plan) -> None:
        """Takes the settings of each series, and makes its folder.

        Args:
            plan: What is run.

        Raises:
            OutputError: If a folder cannot be made.
        """
        for series in plan.series:
            self._settings[series.run] = series_settings(series)
            place = spectra_path(self._folder, series.run, 0).parent
            try:
                place.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise cannot_write(place, error) from error

    def has(self, run: str, step: int) -> bool:
        """Tells whether a checkpoint's singular values are there.

        Args:
            run: Name of the series.
            step: Of the checkpoint.

        Returns:
            True when they are.
        """
        return spectra_path(self._folder, run, step).is_file()

    def keep(self, record: CheckpointRecord, spectra: Sequence[LayerSpectrum]) -> None:
        """Writes a checkpoint's singular values.

        Args:
            record: The checkpoint.
            spectra: Of its layers.
        """
        assert record.step is not None
        path = spectra_path(self._folder, record.run, record.step)
        write_spectra(path, record, spectra, self._settings[record.run])
