"""A disk that fills up while the program writes, and a read-only one."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.program import QUICK, invoke, run
from tests.helpers import entries, save_series


@contextmanager
def mounted(place: Path, options: str) -> Iterator[None]:
    """A small file system of its own."""
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None:
        pytest.skip("there is no mount here")
    command = [mount, "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run([mount.replace("mount", "umount"), str(place)], check=True)


def test_finished_checkpoints_are_kept_and_the_run_resumes(tmp_path: Path) -> None:
    """Journal, table and manifest fight for the room; none of them is ever half-written."""
    series = save_series(tmp_path / "run", range(12))
    at_once = invoke("analyze", str(series), *QUICK).stdout
    disk = tmp_path / "disk"
    target = disk / "ranks.csv"
    with mounted(disk, "size=48k"):
        (disk / "ballast").write_bytes(b"x" * 20_000)
        outcome = run("analyze", str(series), *QUICK, "-o", str(target))
        assert outcome.code == 1
        last = outcome.stderr.splitlines()[-1]
        assert last.startswith("localrank: error: ")
        assert "ranks.csv" in last
        assert "cannot be written (No space left on device)" in last
        assert "Traceback" not in outcome.stderr
        assert "finished checkpoints are kept" in outcome.stderr
        assert not any(name.endswith((".tmp", ".lock")) for name in entries(disk))
        journal = Path(f"{target}.journal").read_bytes()
        finished = journal.count(b'"kind":"checkpoint"')
        assert 0 < finished <= 12
        assert journal.endswith(b"\n")
        if target.exists():  # whole, if it is there
            assert set(target.read_text().splitlines()) <= set(at_once.splitlines())
        (disk / "ballast").unlink()
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        again = run("analyze", str(series), *QUICK, "-o", str(target))
        assert again.code == 0
        assert f"{finished} of 12 checkpoints are already finished" in again.stderr
        assert target.read_text() == at_once


def test_a_disk_without_any_room(tmp_path: Path) -> None:
    series = save_series(tmp_path / "run")
    with mounted(tmp_path / "disk", "size=4k"):
        (tmp_path / "disk/ballast").write_bytes(b"x" * 4096)
        target = tmp_path / "disk/ranks.csv"
        outcome = invoke("analyze", str(series), *QUICK, "-o", str(target))
        assert outcome.code == 1
        assert "cannot be written (No space left on device)" in outcome.error
        assert entries(tmp_path / "disk") == ["ballast"]


def test_a_file_system_that_may_only_be_read(tmp_path: Path) -> None:
    series = save_series(tmp_path / "run")
    with mounted(tmp_path / "disk", "size=64k,ro"):
        target = tmp_path / "disk/ranks.csv"
        outcome = invoke("analyze", str(series), *QUICK, "-o", str(target))
        assert outcome.code == 1
        assert f"{target}: cannot be written (Read-only file system)" in outcome.error
