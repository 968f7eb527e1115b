"""The commands as functions: the same options, and the same results."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from localrank_cli import analyze, inspect, merge, plot, rethreshold
from localrank_cli.errors import LocalrankError, UsageError
from localrank_cli.results.read import read_table
from tests.cli.program import invoke
from tests.helpers import save_series

NOTHING: Any = None
POINTS = ["--data", "normal:4", "--points", "5", "--device", "cpu"]


def test_inspect(tmp_path: Path) -> None:
    save_series(tmp_path)
    printed = json.loads(invoke("inspect", str(tmp_path), "--json").stdout)
    assert json.loads(json.dumps(inspect(tmp_path))) == printed["series"]
    (found,) = inspect(str(tmp_path), data="normal:4", timed=False, layers="0", memory="1GiB")
    words = "--data normal:4 --no-time --layers 0 --memory 1GiB --json"
    (asked,) = json.loads(invoke("inspect", str(tmp_path), *words.split()).stdout)["series"]
    assert json.loads(json.dumps(found)) == asked


def test_rethreshold(tmp_path: Path) -> None:
    save_series(tmp_path / "run")
    kept = tmp_path / "kept"
    args = ["--spectra", str(kept), "-o", str(tmp_path / "ranks.csv")]
    assert invoke("analyze", str(tmp_path / "run"), *POINTS, *args).code == 0
    found = rethreshold(kept, atol=[0.5, 0.1], output=tmp_path / "new.csv")
    direct = analyze(tmp_path / "run", data="normal:4", points=5, device="cpu", atol=[0.5, 0.1])
    assert found["local_rank"].tolist() == direct["local_rank"].tolist()
    assert read_table(tmp_path / "new.csv")["local_rank"].tolist() == found["local_rank"].tolist()
    assert set(rethreshold(str(kept))["tolerance"]) == {"atol=0.01"}


def test_merge(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_series(tmp_path / "run")
    parts = tmp_path / "parts"
    for index in range(2):
        shard = ["--shard", f"{index}/2", "-o", f"{parts}/"]
        parts.mkdir(exist_ok=True)
        assert invoke("analyze", str(tmp_path / "run"), *POINTS, *shard).code == 0
    found = merge(parts, tmp_path / "ranks.csv")
    assert invoke("analyze", str(tmp_path / "run"), *POINTS, "-o", f"{tmp_path}/one.csv").code == 0
    pd.testing.assert_frame_equal(found, read_table(tmp_path / "one.csv"))
    (parts / "shard-00001-of-00002.csv.journal").unlink()
    with pytest.raises(LocalrankError, match="missing"):
        merge(parts, tmp_path / "part.csv")
    merge(parts, tmp_path / "part.csv", partial=True)
    assert "missing: " in caplog.text


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    save_series(tmp_path / "run")
    table = tmp_path / "ranks.csv"
    assert invoke("analyze", str(tmp_path / "run"), *POINTS, "-o", str(table)).code == 0
    figure = plot(table, kind="heatmap")
    assert figure.get_axes()
    assert not list(tmp_path.glob("*.png"))  # written only where that is asked for
    plot([table], y="effective_rank", output=tmp_path / "one.svg", size="6x4")
    assert (tmp_path / "one.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: plot("ranks.csv", kinds="heatmap"), TypeError, "did you mean 'kind'"),
        (lambda: plot("ranks.csv", kind="pie"), UsageError, "unknown"),
        (lambda: plot("ranks.csv", output="ranks.bmp"), UsageError, "bmp"),
        (lambda: inspect("run", output="x.csv"), TypeError, "it is only for the command line"),
        (lambda: rethreshold("kept", points=5), TypeError, "points"),
        (lambda: merge("parts", "ranks.txt"), LocalrankError, "txt"),
        (lambda: merge("parts", NOTHING), UsageError, "no file to write"),
    ],
)
def test_errors(call: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        call()
