"""docs/formats.md names what is tested, and nothing else."""

from pathlib import Path

import pytest

from localrank_cli.checkpoints.frameworks import CONTAINER_KEYS, EMA_KEYS
from tests.checkpoints.layouts import LAYOUTS, REFUSED
from tests.test_docs import ROOT, table_rows

PAGE = ROOT / "docs/formats.md"


def test_every_layout_of_the_table_is_a_case_and_every_case_a_row() -> None:
    rows = table_rows(PAGE, "Layouts")
    assert sorted(row[0] for row in rows) == sorted(LAYOUTS)
    assert all(all(row[1:4]) for row in rows)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_table_shows_where_averages_are(name: str) -> None:
    (row,) = [row for row in table_rows(PAGE, "Layouts") if row[0] == name]
    assert bool(row[4]) is LAYOUTS[name].has_ema


def test_every_refusal_of_the_table_is_a_case_and_every_case_a_row() -> None:
    rows = table_rows(PAGE, "Refused layouts, and how to convert them")
    assert [row[0] for row in rows] == list(REFUSED)


def test_the_page_names_all_places() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"`{key}`" in text for key in (*CONTAINER_KEYS, *EMA_KEYS))


def test_no_path_of_a_test_is_gone() -> None:
    for name in ("layouts.py", "test_written_by_libraries.py"):
        assert f"tests/checkpoints/{name}" in PAGE.read_text(encoding="utf-8")
        assert (Path(__file__).parent / name).is_file()
