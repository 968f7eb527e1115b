"""`localrank export`: a table as the event files of TensorBoard."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from localrank_cli import analyze
from tests.cli.program import invoke
from tests.helpers import save_series

HEAD = "run,step,layer,layer_index,tolerance,local_rank,effective_rank,status\n"


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator: Any = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", exc_type=ImportError
    )
    found = accumulator.EventAccumulator(str(folder))
    found.Reload()
    return {
        tag: [(one.step, one.value) for one in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def test_a_table_as_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for name in "ab":
        save_series(tmp_path / name)
    runs = [str(tmp_path / name) for name in "ab"]
    words = ["--data", "normal:4", "--atol", "0.01", "--rtol", "0.1", "--device", "cpu"]
    table = tmp_path / "ranks.csv"
    assert invoke("analyze", *runs, *words, "-o", str(table)).code == 0
    outcome = invoke("export", str(table), "--to", "tensorboard", str(tmp_path / "events"))
    assert outcome.code == 0
    assert outcome.stdout == ""
    expected = analyze(runs, data="normal:4", atol=0.01, rtol=0.1, device="cpu")
    for run in "ab":
        found = events(tmp_path / "events" / run)
        rows = expected[expected["run"] == run]
        wanted: dict[str, list[tuple[int, float]]] = {}
        for label, prefix in (("atol=0.01", "local_rank"), ("rtol=0.1", "local_rank_rtol=0.1")):
            for layer in "02":
                of = rows[(rows["tolerance"] == label) & (rows["layer"] == layer)]
                pairs = zip(of["step"], of["local_rank"], strict=True)
                wanted[f"{prefix}/{layer}"] = list(pairs)
                soft = zip(of["step"], of["effective_rank"], strict=True)
                wanted[f"effective_rank/{layer}"] = list(soft)
        assert found.keys() == wanted.keys()
        for tag, values in found.items():
            assert [step for step, _ in values] == [step for step, _ in wanted[tag]]
            # Events hold float32.
            assert [v for _, v in values] == pytest.approx([v for _, v in wanted[tag]], rel=1e-6)
    again = invoke("export", str(table), "--to", "tensorboard", str(tmp_path / "events"))
    assert again.code == 1
    assert "already holds event files" in again.stderr


def test_rows_without_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    table = tmp_path / "ranks.csv"
    table.write_text(
        f"{HEAD}../a/b,0,fc,0,atol=0.01,3.5,2,ok\n../a/b,1,fc,0,atol=0.01,,2,ok\n"
        "../a/b,2,fc,0,atol=0.01,,,failed\n"
    )
    outcome = invoke("export", str(table), str(tmp_path / "events"))
    assert outcome.code == 0
    assert "1 of 3 rows are left out" in outcome.stderr
    found = events(tmp_path / "events" / "a" / "b")
    assert found == {"local_rank/fc": [(0, 3.5)], "effective_rank/fc": [(0, 2.0), (1, 2.0)]}
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["events"]


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["missing.csv", "events"], 1, "cannot be read"),
        (["ranks.txt", "events"], 2, "suffix"),
        (["ranks.csv", "events", "--to", "wandb"], 2, "--to wandb: unknown. Choose tensorboard."),
        (["ranks.csv"], 2, "DIR"),
    ],
)
def test_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ranks.csv").write_text(HEAD)
    outcome = invoke("export", *words)
    assert outcome.code == code
    assert text in outcome.stderr
    assert not Path("events").exists()


def test_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.utils, "tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    table = tmp_path / "ranks.csv"
    table.write_text(f"{HEAD}a,0,fc,0,atol=0.01,3.5,2,ok\n")
    outcome = invoke("export", str(table), str(tmp_path / "events"))
    assert outcome.code == 1
    assert "pip install 'localrank[tensorboard]'" in outcome.stderr
    assert not (tmp_path / "events").exists()
