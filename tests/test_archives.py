from pathlib import Path

import pytest
import torch

from localrank_cli.archives import fault_of_archive, is_archive
from tests.faults.spoiled import zipped_again, zipped_over_one_another
from tests.helpers import weights


@pytest.mark.parametrize("compressed", [False, True])
def test_only_compressed_entries_are_a_fault(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "x.pt"
    zipped_again(path, weights(), compressed=compressed)
    assert is_archive(path)
    assert ("compressed" in fault_of_archive(path)) is compressed


def test_files_of_torch_have_no_fault(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "x.pt")
    assert fault_of_archive(tmp_path / "x.pt") == ""


def test_files_that_are_not_zip_archives(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    assert not is_archive(tmp_path / "x.pt")


def test_entries_larger_than_the_file(tmp_path: Path) -> None:
    zipped_over_one_another(tmp_path / "x.pt")
    assert "larger than the file" in fault_of_archive(tmp_path / "x.pt")


def test_a_list_of_entries_cut_off(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:-30])
    assert "damaged" in fault_of_archive(tmp_path / "x.pt")
