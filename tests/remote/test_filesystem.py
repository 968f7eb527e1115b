"""Stores that show the versions of their files in several ways, or not at all."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import save

from localrank_cli.remote import places
from tests.cli.program import Outcome, invoke
from tests.helpers import weights

STEPS = (0, 5, 10)
ENTRIES = ("name", "size", "type")


class _Store(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A store in memory, whose lists and files show chosen entries."""

    cachable = False
    listed: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    knows_ranges = True
    fault: BaseException | None = None  # of each download

    def get_file(self, rpath: str, lpath: str, **given: Any) -> None:
        if self.fault is not None and rpath.endswith("step_5.safetensors"):
            raise self.fault
        super().get_file(rpath, lpath, **given)

    def ls(self, path: str, detail: bool = True, **given: Any) -> Any:
        found = super().ls(path, detail=detail, **given)
        return [_only(one, self.listed) for one in found] if detail else found

    def info(self, path: str, **given: Any) -> Any:
        return _only(super().info(path, **given), self.shown)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **given: Any
    ) -> Any:
        asked = (start, end) if self.knows_ranges else (None, None)
        return super().cat_file(path, *asked, **given)


def _only(info: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {
        **{name: info[name] for name in ENTRIES if name in info},
        **{name: info.get("created") for name in names},
    }


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Store]]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.chdir(tmp_path)
    fsspec.register_implementation("memory", _Store, clobber=True)
    for step in STEPS:
        _put(step, seed=step)
    yield _Store
    fsspec.register_implementation("memory", MemoryFileSystem, clobber=True)
    _Store.listed = _Store.shown = ()
    _Store.knows_ranges, _Store.fault = True, None
    MemoryFileSystem().rm("/versions", recursive=True)


def _put(step: int, seed: int) -> None:
    content = save(weights(4, 6, 2, seed=seed))  # of one size
    MemoryFileSystem().pipe_file(f"/versions/step_{step}.safetensors", content)


def _analyze(*words: str) -> Outcome:
    try:
        return invoke(
            *("analyze", "memory://versions", "--data", "normal:4", "--points", "3"),
            *("--device", "cpu", "-o", "a.csv", *words),
        )
    finally:
        places.release()


@pytest.mark.parametrize(
    ("listed", "shown"),
    [
        (("created",), ("created",)),  # as a number in a list, and as a time of a file
        ((), ("ETag",)),  # http
        (("mtime",), ("modified",)),
        (("sha",), ("sha",)),  # github
        ((), ()),
    ],
)
def test_a_file_that_changed_between_runs(
    store: type[_Store], listed: tuple[str, ...], shown: tuple[str, ...]
) -> None:
    store.listed, store.shown = listed, shown
    first = _analyze()
    assert first.code == 0, first.stderr
    assert ("does not show versions" in first.stderr) == (not shown)
    again = _analyze()
    assert "3 of 3 checkpoints are already finished" in again.stderr
    table = pd.read_csv("a.csv")
    _put(5, seed=1)  # with other weights: its rows may not be kept as those of the new file
    changed = _analyze()
    assert changed.code == 1
    assert "step_5.safetensors (step 5): its weights changed" in changed.stderr
    pd.testing.assert_frame_equal(pd.read_csv("a.csv"), table, check_exact=True)


def test_a_file_without_version_is_not_taken_from_an_earlier_run(store: type[_Store]) -> None:
    assert _analyze("--cache", "kept", "--keep").code == 0
    before = pd.read_csv("a.csv").set_index("step")["effective_rank"]
    _put(5, seed=1)
    assert _analyze("--cache", "kept", "--keep", "--overwrite").code == 0
    after = pd.read_csv("a.csv").set_index("step")["effective_rank"]
    assert list(after.index[after != before].unique()) == [5]


def test_a_store_that_sends_whole_files_for_parts(store: type[_Store], tmp_path: Path) -> None:
    store.listed = store.shown = ("created",)
    place = tmp_path / "versions"
    place.mkdir()
    for step in STEPS:
        content = {"model": weights(4, 1200, 600, seed=step), "iteration": 7 * step}
        written = io.BytesIO()
        torch.save(content, written)  # of over 2 MiB: the plan reads parts of it
        (place / f"step_{step}.pt").write_bytes(written.getvalue())
        MemoryFileSystem().pipe_file(f"/versions/step_{step}.pt", written.getvalue())
        MemoryFileSystem().rm(f"/versions/step_{step}.safetensors")
    store.knows_ranges = False
    assert _analyze().code == 0
    options = ("--data", "normal:4", "--points", "3", "--device", "cpu", "-o", "b.csv")
    assert invoke("analyze", "versions", *options).code == 0
    assert Path("a.csv").read_bytes() == Path("b.csv").read_bytes()


@pytest.mark.parametrize(
    ("fault", "code"), [(RuntimeError("no route"), 3), (MemoryError("no room"), 1)]
)
def test_a_download_ahead_that_fails(store: type[_Store], fault: BaseException, code: int) -> None:
    store.listed = store.shown = ("created",)
    store.fault = fault
    first = _analyze("--on-error", "skip")
    # pytest makes a traceback of the thread that downloads ahead an error.
    assert (first.code, str(fault) in first.stderr) == (code, True)
    found = pd.read_csv("a.csv").groupby("step")["status"].first()
    assert found[0] == "ok"
    assert code == 1 or list(found) == ["ok", "unreadable", "ok"]
    store.fault = None
    assert _analyze().code == 0
    assert list(pd.read_csv("a.csv").groupby("step")["status"].first()) == ["ok"] * len(STEPS)
