"""`localrank compare` as a command: its outputs, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from localrank_cli.compare import intervals
from tests.cli.program import invoke
from tests.compare.test_groups import seeds
from tests.figures.tables import table


@pytest.fixture
def tables(tmp_path: Path) -> list[str]:
    """Two tables of three seeds; the second is 5 lower at the last step, and varies."""
    paths = []
    for name, fall in (("none", 0.0), ("decay", 5.0)):
        frame = seeds(3)
        last = frame["step"] == 1000
        frame.loc[last, "local_rank"] -= fall + 0.1 * fall * frame["seed"][last]
        path = tmp_path / f"{name}.csv"
        frame.to_csv(path, index=False)
        paths.append(str(path))
    return paths


def test_everything_is_written_where_asked(tables: list[str], tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("d.csv", "o.jsonl", "f.png")]
    words = zip(("-o", "--onsets", "--figure"), map(str, files), strict=True)
    done = invoke("compare", *tables, *(word for pair in words for word in pair))
    assert (done.code, done.stdout) == (0, "")
    assert "note: the runs are paired: 0, 1, 2" in done.stderr
    found = pd.read_csv(files[0])
    assert len(found) == 3 * 4
    last = found[(found["layer"] == "layer0") & (found["step"] == 1000)].iloc[0]
    # Falls of 5, 5.5 and 6: their mean, and t(2) sd / sqrt(3) = 4.302653 * 0.5 / sqrt(3).
    assert last["difference"] == pytest.approx(-5.5, rel=1e-8)
    assert last["high"] - last["difference"] == pytest.approx(4.302653 * 0.5 / 3**0.5, rel=1e-6)
    onset = [json.loads(line) for line in files[1].read_text().splitlines()]
    # The rank itself rises by 1 for each decade of steps: by 3 at the last.
    assert [(one["group"], one["onset"]) for one in onset if one["layer"] == "layer0"] == [
        ("none", None), ("decay", 1000),
    ]  # fmt: skip
    assert files[2].read_bytes().startswith(b"\x89PNG")


def test_a_pipe_gets_csv(tables: list[str]) -> None:
    done = invoke("compare", *tables, "-q")
    assert done.code == 0
    header, *rows = done.stdout.splitlines()
    assert header.startswith("group,reference,layer,step,measure,tolerance,")
    assert len(rows) == 12
    assert done.stderr == ""


def test_single_runs_are_said_to_say_nothing_about_seeds(tmp_path: Path) -> None:
    path = tmp_path / "ranks.csv"
    table(runs=("a", "b")).to_csv(path, index=False)
    done = invoke("compare", str(path))
    assert "they say nothing about other seeds" in done.stderr
    assert ",points,0.95" in done.stdout


BAD = [
    (["--confidence", "95"], 2, "--confidence"),
    (["-o", "x.xlsx"], 2, "suffix"),
    (["--figure", "x.gif"], 2, "Choose one of .png, .svg, .pdf."),
    (["--onsets", "-"], 2, "only the differences"),
    (["--layers", "nothing"], 1, "--layers nothing: matches no layer."),
    (["--tolerance", "atol=1"], 1, "It has atol=0.01."),
    (["--by", "checkpoint"], 1, "changes within the run"),
    (["-o", "missing/x.csv"], 1, "missing"),
]


@pytest.mark.parametrize(("words", "code", "text"), BAD)
def test_what_is_wrong_is_said_before_anything_is_written(
    tables: list[str], words: list[str], code: int, text: str
) -> None:
    done = invoke("compare", *tables, *words)
    assert (done.code, done.stdout) == (code, "")
    assert text in done.error


def test_no_table_is_lost(tables: list[str], tmp_path: Path) -> None:
    before = [Path(table).read_bytes() for table in tables]
    link = tmp_path / "link.csv"
    link.symlink_to(tables[1])
    for words in (["-o", tables[0]], ["--onsets", str(link)], ["-o", tables[0], "--overwrite"]):
        done = invoke("compare", *tables, *words)
        assert (done.code, done.error) == (
            2, f"{words[1]}: is one of the tables to compare. Name another file.",
        )  # fmt: skip
    other = tmp_path / "other.csv"
    other.write_bytes(before[0])
    done = invoke("compare", *tables, "-o", str(other))
    assert (done.code, done.error) == (
        1, f"{other}: already exists. Name another file, or replace it with --overwrite.",
    )  # fmt: skip
    assert invoke("compare", *tables, "-o", str(other), "--onsets", str(other)).code == 2
    assert [Path(table).read_bytes() for table in [*tables, str(other)]] == [*before, before[0]]
    assert invoke("compare", *tables, "-o", str(other), "--overwrite").code == 0
    assert other.read_bytes().startswith(b"group,")


def test_other_commands_do_not_import_scipy() -> None:
    code = "import localrank_cli.cli.main, sys; sys.exit('scipy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_intervals_that_promise_less_are_said_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "_MOST_RESAMPLES", 300)
    names = []
    for name, count in (("few", 5), ("many", 10), ("more", 11)):
        seeds(count).to_csv(tmp_path / f"{name}.csv", index=False)
        names.append(str(tmp_path / f"{name}.csv"))
    done = invoke("compare", names[1], names[0], names[2])
    assert "note: few has 5 runs and many has 10: the intervals of single layers" in done.stderr
    assert "4 degrees of freedom" in done.stderr
    # 300 resamples have 7 beyond the quantile of 2.5 %, too few to be shared by 12.
    assert "note: 12 layers and steps are more than the 7 that the bootstrap can" in done.stderr
