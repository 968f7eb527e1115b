"""Files cut off anywhere: an error that names the file, or the same result as before."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints.dcp_writer import save_dcp
from tests.cli.program import Outcome, invoke
from tests.faults.spoiled import sharded
from tests.helpers import save_series, weights

X = torch.linspace(-1, 1, 36).reshape(9, 4)


def _dcp(run: Path) -> None:
    save_dcp(run / "step_7", weights(seed=7))


def _npz(run: Path) -> None:
    np.savez_compressed(run / "x.npz", x=X.numpy())


CHECKPOINTS: dict[str, Callable[[Path], object]] = {
    "step_7.safetensors": lambda run: save_file(weights(seed=7), run / "step_7.safetensors"),
    "step_7.pt": lambda run: torch.save(weights(seed=7), run / "step_7.pt"),
    "step_7.bin": lambda run: torch.save(
        weights(seed=7), run / "step_7.bin", _use_new_zipfile_serialization=False
    ),
    "step_7.safetensors.index.json": sharded,
    "step_7-00001-of-00002.safetensors": sharded,
    "step_7/.metadata": _dcp,
    "step_7/__0_0.distcp": _dcp,
}
DATA: dict[str, Callable[[Path], object]] = {
    "x.safetensors": lambda run: save_file({"x": X}, run / "x.safetensors"),
    "x.npy": lambda run: np.save(run / "x.npy", X.numpy()),
    "x.npz": _npz,
    "x.pt": lambda run: torch.save(X, run / "x.pt"),
}


def offsets(size: int, count: int = 9) -> list[int]:
    """Both ends, and some between."""
    return sorted({0, 1, 8, size - 1, *(size * part // count for part in range(1, count))})


def analyze(run: Path, data: str, *words: str) -> Outcome:
    return invoke("analyze", str(run), "--data", data, "--points", "5", "--device", "cpu", *words)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(tmp_path: Path, name: str) -> None:
    run = save_series(tmp_path / "run", (0,))
    CHECKPOINTS[name](run)
    assert analyze(run, "normal:4").code == 0
    whole = (run / name).read_bytes()
    for offset in offsets(len(whole)):
        (run / name).write_bytes(whole[:offset])
        outcome = analyze(run, "normal:4")
        # DCP pads its files: what is cut off behind the last tensor is no loss.
        assert outcome.code == 1 or name.endswith(".distcp"), (offset, outcome.stderr)
        if outcome.code:
            assert str(run / name) in outcome.error, offset


@pytest.mark.parametrize("name", DATA)
def test_data(tmp_path: Path, name: str) -> None:
    run = save_series(tmp_path / "run", (0,))
    DATA[name](tmp_path)
    whole = (tmp_path / name).read_bytes()
    for offset in offsets(len(whole)):
        (tmp_path / name).write_bytes(whole[:offset])
        outcome = analyze(run, str(tmp_path / name))
        assert outcome.code == 1, offset
        assert str(tmp_path / name) in outcome.error, offset


def test_settings(tmp_path: Path) -> None:
    """A shorter TOML may be whole; no other end than the two is possible."""
    run = save_series(tmp_path / "run", (0,))
    whole = b'data = "normal:4"\npoints = 5\natol = [0.1, 0.01]\n[columns]\nbeta = 2.0\n'
    codes = []
    for offset in range(len(whole)):
        (run / "localrank.toml").write_bytes(whole[:offset])
        outcome = invoke("analyze", str(run), "--device", "cpu")
        if outcome.code == 1 and offset >= len(b'data = "normal:4"'):
            assert str(run / "localrank.toml") in outcome.error
        codes.append(outcome.code)
    assert set(codes) == {0, 1}


def test_the_journal(tmp_path: Path) -> None:
    """Wherever its end is torn off: the same command gives the table of an uninterrupted run."""
    run = save_series(tmp_path / "run")
    target = tmp_path / "ranks.csv"
    words = ("normal:4", "-o", str(target))
    assert analyze(run, *words).code == 0
    table = target.read_bytes()
    journal = Path(f"{target}.journal")
    whole = journal.read_bytes()
    for offset in offsets(len(whole), 12):
        journal.write_bytes(whole[:offset])
        outcome = analyze(run, *words)
        assert outcome.code == 0, (offset, outcome.stderr)
        assert target.read_bytes() == table
        assert journal.read_bytes().count(b'"kind":"checkpoint"') == 3


def test_the_manifest_is_written_again(tmp_path: Path) -> None:
    run = save_series(tmp_path / "run")
    target = tmp_path / "ranks.csv"
    assert analyze(run, "normal:4", "-o", str(target)).code == 0
    manifest = Path(f"{target}.json")
    whole = manifest.read_bytes()
    for offset in offsets(len(whole), 3):
        manifest.write_bytes(whole[:offset])
        assert invoke("show", str(target)).code == 0
        assert analyze(run, "normal:4", "-o", str(target)).code == 0
        assert json.loads(manifest.read_bytes())["complete"] is True
