"""Series for the tests of the command line."""

from pathlib import Path

import pytest

from tests.helpers import save_series


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Three checkpoints of a 4-3-2 network."""
    return save_series(tmp_path / "run")
