import io
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from localrank_cli.errors import DataError, LocalrankError, SettingsError, UsageError
from localrank_cli.results.columns import COLUMNS, INT, STR, header
from localrank_cli.results.read import (
    read_budgets,
    read_table,
    read_tables,
    to_frame,
    without_failed,
)
from localrank_cli.results.write import RowWriter
from tests.results.rows import ROWS

HEAD = "run,step,layer,layer_index,tolerance,local_rank,status\n"


def save(path: Path, rows: list[dict[str, Any]], columns: tuple[str, ...] = header()) -> Path:
    stream = io.StringIO()
    RowWriter(stream, columns, path.suffix).write(rows)
    path.write_text(stream.getvalue(), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_what_was_written_comes_back(tmp_path: Path, suffix: str) -> None:
    frame = read_table(save(tmp_path / f"a{suffix}", ROWS, header(("beta",))))
    assert list(frame.columns) == list(header(("beta",)))
    for name, kind in COLUMNS.items():
        if kind == STR:
            assert list(frame[name]) == [f"a {name}", ""]
        elif kind == INT:
            assert frame[name].dtype == "int64"
            assert list(frame[name]) == [7, 0]
    assert frame["local_rank"].tolist()[0] == pytest.approx(1 / 3, rel=1e-8)
    assert frame["local_rank"].isna().tolist() == [False, True]
    assert frame["rank_min"].tolist()[0] == 3
    assert frame["beta"].tolist()[0] == 2.5


def test_a_layer_that_looks_like_a_number_stays_a_text(tmp_path: Path) -> None:
    row = ROWS[0] | {"layer": "00", "run": "NA", "wrt": "None"}
    for suffix in (".csv", ".tsv", ".jsonl"):
        frame = read_table(save(tmp_path / f"a{suffix}", [row]))
        assert (frame["layer"][0], frame["run"][0], frame["wrt"][0]) == ("00", "NA", "None")


def test_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    written = read_table(save(tmp_path / "a.csv", ROWS))
    written.to_parquet(tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(read_table(tmp_path / "a.parquet"), written)


def test_parquet_without_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "fastparquet", None)
    with pytest.raises(SettingsError, match="needs pyarrow") as caught:
        read_table(tmp_path / "a.parquet")
    assert "pip install pyarrow" in caught.value.advice


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n", "is not a table"),
        ("a,b\n1,2\n", "has no column run, step, layer, layer_index, tolerance (it has a, b)"),
        (HEAD, "holds a header but no rows"),
        (HEAD + "r,x,0,0,t,1,ok\n", "column step, row 1: expected a whole number, got 'x'"),
        (HEAD + "r,,0,0,t,1,ok\n", "column step, row 1: expected a whole number, got nothing"),
        (HEAD + "r,1.5,0,0,t,1,ok\n", "column step, row 1: expected a whole number, got '1.5'"),
        (HEAD + "r,1e300,0,0,t,1,ok\n", "column step, row 1: expected a whole number, got '1e300'"),
        (HEAD + f"r,{2**63},0,0,t,1,ok\n", "row 1: expected a whole number, got '9223372"),
        (HEAD + f"r,,0,0,t,1,failed\nr,{2**63},0,0,t,1,ok\n", "row 2: expected a whole number"),
        (
            HEAD + "r,1,0,0,t,1,ok\nr,1,1,1,t,high,ok\n",
            "column local_rank, row 2: expected a number, got 'high'",
        ),
        (HEAD + "r,1,0,0,t,1,ok\nr,1,0", "line 3 has 3 cells, the header 7"),
        ("run,run\n", "one twice"),
        (HEAD + 'r,1,"0,0,t,1,ok\n', "is not a table"),
        (HEAD + "r,1,0,0,t,1,ok,extra\n", "is not a table"),
    ],
)
def test_what_is_no_table(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_table(path)
    assert message in str(caught.value)
    assert "a.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("cells", "column"),
    [
        ("fisher,half,5,0.1,0.1", "budget"),
        ("fisher,0.5,many,0.1,0.1", "weights"),
        ("fisher,0.5,0,0.1,0.1", "weights"),
        ("fisher,0.5,5,low,0.1", "loss"),
        ("fisher,0.5,5,0.1,-1", "loss_increase_se"),
    ],
)
def test_budgets_that_are_no_numbers(tmp_path: Path, cells: str, column: str) -> None:
    table = tmp_path / "budgets.csv"
    fine = "method,budget,weights,loss,loss_increase_se\noriginal,1,10,0.1,\nuniform,0.5,,,\n"
    table.write_text(fine)
    assert len(read_budgets(table)) == 2
    table.write_text(f"{fine}{cells}\n")
    with pytest.raises(DataError, match=f"column {column}, row 3: expected a number"):
        read_budgets(table)


@pytest.mark.parametrize("step", [2**53 + 1, 2**63 - 1, -(2**53) - 1])
def test_whole_numbers_are_exact(tmp_path: Path, step: int) -> None:
    (tmp_path / "a.csv").write_text(HEAD + f"r,{step},0,0,t,1,ok\nr,7,0,0,t,1,ok\n")
    assert list(read_table(tmp_path / "a.csv")["step"]) == [step, 7]


@pytest.mark.parametrize("content", [b"run,\xff\xfe\n1,2\n", b"\x89PNG\r\n\x1a\n\x00\xff"])
def test_bytes_that_are_no_text(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match="not UTF-8"):
        read_table(tmp_path / "a.csv")


@pytest.mark.parametrize("text", ["[1]\n", '{"a": 1}\n{"a"', "nonsense\n"])
def test_json_lines_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(DataError, match="is not a table"):
        read_table(tmp_path / "a.jsonl")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file or directory"):
        read_table(tmp_path / "a.csv")
    with pytest.raises(UsageError, match=r"Supported: \.csv, \.tsv, \.jsonl, \.parquet"):
        read_table(tmp_path / "a.xlsx")
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        read_table(tmp_path / "b.csv")


def test_failed_rows_are_left_out_and_said() -> None:
    frame = pd.DataFrame({
        "step": [0, 0, 5, None],
        "local_rank": [1.0, None, 3.0, None],
        "status": ["ok", "nonfinite", "ok", "unreadable"],
    })  # fmt: skip
    kept, note = without_failed(frame)
    assert kept["local_rank"].tolist() == [1.0, 3.0]
    assert note == (
        "2 of 4 rows are left out because they failed (1 nonfinite, 1 unreadable; step 0)"
    )
    assert without_failed(kept) == (kept, "")
    with pytest.raises(DataError, match="no row whose status is ok"):
        without_failed(frame[frame["status"] != "ok"])


def test_a_failed_checkpoint_without_layers_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEAD + "r,1,0,0,t,1,ok\nr,2,,,,,unreadable\n")
    kept, note = without_failed(read_table(tmp_path / "a.csv"))
    assert len(kept) == 1
    assert "1 unreadable; step 2" in note


class TestSeveral:
    def test_runs_of_one_name_are_distinguished(self, tmp_path: Path) -> None:
        paths = []
        for folder in ("decay", "none"):
            (tmp_path / folder).mkdir()
            paths.append(save(tmp_path / folder / "ranks.csv", [ROWS[0]]))
        frame = read_tables(paths)
        assert list(frame["run"]) == ["decay/ranks: a run", "none/ranks: a run"]
        assert list(frame["table"]) == ["decay/ranks", "none/ranks"]

    def test_other_names_stay(self, tmp_path: Path) -> None:
        one = save(tmp_path / "one.csv", [ROWS[0]])
        two = save(tmp_path / "two.jsonl", [ROWS[0] | {"run": "b"}])
        frame = read_tables([one, two])
        assert list(frame["run"]) == ["a run", "b"]
        assert list(frame["table"]) == ["one", "two"]

    def test_the_same_twice(self, tmp_path: Path) -> None:
        path = save(tmp_path / "one.csv", [ROWS[0]])
        with pytest.raises(LocalrankError, match="given twice"):
            read_tables([path, path])


def test_json_numbers_as_texts_are_numbers(tmp_path: Path) -> None:
    row = {"run": "r", "step": "5", "layer": "a", "layer_index": 0, "tolerance": "t", "beta": 0.5}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n\n")
    frame = read_table(tmp_path / "a.jsonl")
    assert (frame["step"][0], frame["beta"][0]) == (5, 0.5)


def test_a_frame_of_rows_has_the_types_of_the_contract() -> None:
    frame = to_frame(ROWS, header(("beta",)))
    assert list(frame.columns) == list(header(("beta",)))
    wanted = {"int": "int64", "optional int": "Int64", "float": "float64"}
    for name, kind in COLUMNS.items():
        if kind == "str":
            assert pd.api.types.is_string_dtype(frame[name]), name
        else:
            assert str(frame[name].dtype) == wanted[kind], name
    assert frame["rank_min"].isna().tolist() == [False, True]
    assert frame["local_rank"].isna().tolist() == [False, True]


def test_a_frame_of_rows_has_full_precision() -> None:
    assert to_frame(ROWS, header())["local_rank"][0] == 1 / 3


def test_a_frame_of_no_rows_has_its_columns() -> None:
    frame = to_frame([], header())
    assert list(frame.columns) == list(header())
    assert len(frame) == 0
    assert str(frame["step"].dtype) == "int64"


def test_a_frame_of_rows_and_the_csv_hold_the_same() -> None:
    stream = io.StringIO()
    RowWriter(stream, header(("beta",))).write(ROWS)
    frame = to_frame(ROWS, header(("beta",)))
    read = pd.read_csv(io.StringIO(stream.getvalue()), keep_default_na=False, na_values={
        name: [""] for name, kind in COLUMNS.items() if kind != "str"
    })  # fmt: skip
    for name, kind in COLUMNS.items():
        if kind == "str":
            assert read[name].astype(str).tolist() == frame[name].tolist(), name
        else:
            ours, theirs = frame[name].astype("float64"), read[name].astype("float64")
            assert (ours.isna() == theirs.isna()).all(), name
            # 9 significant digits: half a unit of the last one.
            assert ((ours - theirs).abs().fillna(0) <= 5.01e-9 * ours.abs().fillna(0)).all(), name
