import pytest

from localrank_cli.measures.table import AVERAGED
from localrank_cli.results.columns import COLUMNS, Cell, as_text, header, is_formula

# The columns beside the measures, letter by letter; tests/test_docs.py compares all columns with
# docs/table.md.
FIXED = (
    "run checkpoint step layer layer_index module n_in n_out max_rank n_points n_failed wrt"
    " input_metric dtype tolerance atol rtol local_rank local_rank_se rank_min rank_max near_tol"
    " n_undecided method status message"
)


def test_the_columns_besides_the_measures() -> None:
    measures = [column for name in AVERAGED for column in (name, f"{name}_se")]
    assert " ".join(column for column in header() if column not in measures) == FIXED
    after = header().index("method")
    assert list(header()[after - len(measures) : after]) == measures
    assert tuple(COLUMNS) == header()


def test_optional_columns_come_last() -> None:
    assert header(("beta", "epoch"))[-3:] == ("message", "beta", "epoch")


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, ""),
        ("", ""),
        ("a\nb", "a b"),
        ("a\x1b[31mb\x00\x7f\x9b", "a\\x1b[31mb\\x00\\x7f\\x9b"),
        ("\r\n\x85=1", "  =1"),
        ("=1+1", "=1+1"),
        ("a\tb", "a\tb"),
        (
            "\u4f60\u3000\u597d \U0001f469\u200d\U0001f52c",
            "\u4f60\u3000\u597d \U0001f469\u200d\U0001f52c",
        ),
        (0, "0"),
        (10**15, "1000000000000000"),
        (0.0, "0"),
        (1.0, "1"),
        (1 / 3, "0.333333333"),
        (2e9 / 3, "666666667"),
        (1234567890.0, "1.23456789e+09"),
        (1e-300 / 3, "3.33333333e-301"),
        (0.1 + 0.2, "0.3"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_cells(cell: Cell, text: str) -> None:
    assert as_text(cell) == text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("=1+1", True), ("+cmd|' /C calc'!A0", True), ("-2+3", True), ("@SUM(1)", True),
        ("\t=1", True), ("\r=1", True), ("-x", True),
        ("-1", False), ("+0.5", False), ("0", False), ("a=1", False), ("", False), (" =1", False),
    ],
)  # fmt: skip
def test_what_a_spreadsheet_would_compute(name: str, expected: bool) -> None:
    assert is_formula(name) is expected
