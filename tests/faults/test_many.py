"""What one more checkpoint costs: files opened and bytes written are counted, no time is taken."""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from localrank_cli.results import journal as journal_file
from tests.cli.program import QUICK, Outcome, invoke
from tests.helpers import save_series

_LISTENERS: list[Counter[str]] = []


def _hook(event: str, arguments: Any) -> None:
    if _LISTENERS and event == "open" and "step_" in str(arguments[0]):
        _LISTENERS[-1][Path(os.fsdecode(arguments[0])).name] += 1


sys.addaudithook(_hook)  # cannot be taken away again; without a listener it does nothing


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Opened files by name: by Python, and by safetensors, which opens files on its own."""
    opened: Counter[str] = Counter()

    def counted(path: Path, **options: Any) -> Any:
        opened[f"{path.name} by safetensors"] += 1
        return safe_open(path, **options)

    _LISTENERS.append(opened)
    with monkeypatch.context() as patch:
        patch.setattr("localrank_cli.checkpoints.safetensors_file.safe_open", counted)
        yield opened
    _LISTENERS.pop()


def analyze(run: Path, count: int) -> Outcome:
    return invoke("analyze", str(run), *QUICK, "-q", "-o", str(run.parent / f"{count}.csv"))


def test_each_file_is_opened_once_to_plan_and_once_to_compute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = save_series(tmp_path / "run", range(30))
    with counting(monkeypatch) as opened:
        assert analyze(run, 30).code == 0
    first = {name: opened.pop(name) for name in list(opened) if name.startswith("step_0.")}
    # The first is read once more: the model runs on a point of it.
    assert set(first.values()) == {3}
    assert len(opened) == 2 * 29
    assert set(opened.values()) == {2}


def test_a_finished_checkpoint_is_opened_once_and_its_tensors_stay_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = save_series(tmp_path / "run", range(30))
    assert analyze(run, 30).code == 0
    with counting(monkeypatch) as opened:
        assert analyze(run, 30).code == 0
    assert {n: c for n, c in opened.items() if not n.startswith("step_0.")} == {
        name: 1
        for step in range(1, 30)
        for name in (f"step_{step}.safetensors", f"step_{step}.safetensors by safetensors")
    }


def test_the_journal_grows_by_what_is_new_and_not_by_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write_all = journal_file._write_all

    def counted(descriptor: int, data: bytes, offset: int) -> None:
        written.append(len(data))
        write_all(descriptor, data, offset)

    monkeypatch.setattr(journal_file, "_write_all", counted)
    run = save_series(tmp_path / "run", range(20))
    assert analyze(run, 20).code == 0
    assert len(written) == 2 + 20  # kind, settings, and a line for each checkpoint
    assert sum(written) == (tmp_path / "20.csv.journal").stat().st_size
    assert max(written[2:]) < 3000  # 5 points, 2 layers
    written.clear()
    assert analyze(run, 20).code == 0
    assert written == []
    save_series(run, (20,))
    assert analyze(run, 20).code == 0
    assert len(written) == 1
