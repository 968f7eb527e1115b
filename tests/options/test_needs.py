"""What is missing is reported from file names alone, before torch is imported."""

from pathlib import Path

import pytest

from localrank_cli.checkpoints.formats import SUFFIXES
from localrank_cli.errors import SettingsError
from localrank_cli.options.needs import check_needs
from localrank_cli.options.table import AnalyzeOptions


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".PT", ".safetensors.index.json"])
def test_missing_data_are_noticed_beside_weights_of_every_format(
    tmp_path: Path, suffix: str
) -> None:
    options = AnalyzeOptions((tmp_path,), model="net.py:Net")
    check_needs(options)  # without weights, another error comes first
    (tmp_path / f"step_1{suffix}").touch()
    with pytest.raises(SettingsError, match="no data to take points from"):
        check_needs(options)
