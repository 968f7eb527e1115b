import pytest

from localrank_cli.measures.table import AVERAGED
from localrank_cli.results.columns import COLUMNS, Cell, as_text, header

# design: the columns and their order, letter by letter.
CONTRACT = (
    "run checkpoint step layer layer_index module n_in n_out max_rank n_points n_failed wrt"
    " input_metric dtype tolerance atol rtol local_rank local_rank_se rank_min rank_max near_tol"
    " n_undecided effective_rank effective_rank_se stable_rank stable_rank_se participation_ratio"
    " participation_ratio_se spectral_norm spectral_norm_se jacobian_norm jacobian_norm_se"
    " gaussian_information gaussian_information_se method status message"
)


def test_the_columns_are_those_of_the_contract() -> None:
    assert " ".join(header()) == CONTRACT
    assert tuple(COLUMNS) == header()
    assert all(f"{name}_se" in COLUMNS for name in AVERAGED)


def test_optional_columns_come_last() -> None:
    assert header(("beta", "epoch"))[-3:] == ("message", "beta", "epoch")


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, ""),
        ("", ""),
        ("a\nb", "a b"),
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
