import os
from pathlib import Path

import pytest

from localrank_cli.checkpoints.folders import folder_weights
from localrank_cli.checkpoints.reading import files_of, footprint
from localrank_cli.errors import UnreadableError
from tests.checkpoints.layouts import LAYOUTS

NAMES = ["sharded safetensors", "torch.distributed.checkpoint, sharded", "safetensors"]


def weights_of(folder: Path, name: str) -> Path:
    LAYOUTS[name].write(folder, 5)
    path = folder / LAYOUTS[name].file.format(step=5)
    found = folder_weights(path) if path.is_dir() else path
    assert found is not None
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_file_counts(tmp_path: Path, name: str) -> None:
    path = weights_of(tmp_path, name)
    files = files_of(path)
    assert footprint(path).size == sum(file.stat().st_size for file in files)
    assert footprint(path).mtime_ns == max(file.stat().st_mtime_ns for file in files)
    before = footprint(path)
    os.utime(files[-1], ns=(1, before.mtime_ns + 10))
    assert footprint(path) != before


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_vanished_is_named(tmp_path: Path, name: str) -> None:
    path = weights_of(tmp_path, name)
    last = files_of(path)[-1]
    last.unlink()
    with pytest.raises(UnreadableError, match="cannot be read") as caught:
        footprint(path)
    assert str(last) in caught.value.what
