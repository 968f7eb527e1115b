"""Keeps the singular values of every point beside a table (`--spectra`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from localrank_cli.errors import OutputError, SettingsError
from localrank_cli.pipeline.manifest import series_settings
from localrank_cli.pipeline.plan import Plan
from localrank_cli.spectrum.spectra import LayerSpectrum
from localrank_cli.table.record import CheckpointRecord
from localrank_cli.table.spectra_files import spectra_path, write_spectra
from localrank_cli.table.write import make_folder


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
        make_folder(folder)

    def begin(self, plan: Plan) -> None:
        """Takes the settings of each series, and makes its folder.

        Args:
            plan: What is run.

        Raises:
            SettingsError: If a shard has only a part of the points of a checkpoint.
        """
        for series in plan.series:
            self._settings[series.run] = series_settings(series)
            make_folder(spectra_path(self._folder, series.run, 0).parent)
            if any(checkpoint.points is not None for checkpoint in series.checkpoints):
                raise SettingsError(
                    "--spectra: there are more shards than checkpoints, so that each has a part of"
                    " the points only.",
                    "Give at most as many shards as there are checkpoints.",
                )

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
