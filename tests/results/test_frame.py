import io

import pandas as pd

from localrank_cli.results.columns import COLUMNS, header
from localrank_cli.results.frame import to_frame
from localrank_cli.results.write import RowWriter
from tests.results.rows import ROWS


def test_types() -> None:
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


def test_full_precision() -> None:
    assert to_frame(ROWS, header())["local_rank"][0] == 1 / 3


def test_no_rows() -> None:
    frame = to_frame([], header())
    assert list(frame.columns) == list(header())
    assert len(frame) == 0
    assert str(frame["step"].dtype) == "int64"


def test_the_csv_holds_the_same() -> None:
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
