import pytest
from hypothesis import given
from hypothesis import strategies as st

from localrank_cli.cli.chart import Paper, line_chart, shade_chart

PLAIN = Paper(width=40, height=5, unicode=False)


def test_letter_by_letter() -> None:
    lines = {"fc": [(0.0, 8.0), (10.0, 4.0), (20.0, 0.0)], "head": [(0.0, 2.0), (20.0, 2.0)]}
    assert line_chart(lines, PLAIN) == [
        "     8 |a....",
        "     6 |     .......",
        "     4 |            ....a...",
        "     2 |b..............................b",
        "     0 |                            ...a",
        "       ++---------------+--------------+",
        "        0              10             20",
        "                      step",
        "a fc   b head",
    ]


def test_every_checkpoint_has_its_letter() -> None:
    drawn = line_chart({"x": [(0.0, 0.0), (5.0, 5.0), (10.0, 10.0)]}, PLAIN)
    assert sum(line[8:].count("a") for line in drawn[:5]) == 3
    assert drawn[0].endswith("a")
    assert drawn[4].startswith("     0 |a")


def test_letters_on_one_another_are_several() -> None:
    drawn = line_chart({"x": [(0.0, 1.0)], "y": [(0.0, 1.0)]}, PLAIN)
    assert "*" in drawn[0]
    assert drawn[-1] == "a x   b y   * several"


def test_a_log_axis_shows_zero() -> None:
    drawn = line_chart({"x": [(0.0, 1.0), (1.0, 1.0), (1000.0, 1.0)]}, PLAIN)
    assert drawn[0][8] == "a"
    assert drawn[0].count("a") == 3
    assert drawn[-3].split() == ["0", "1", "10", "100", "1000"]
    assert "step (log)" in drawn[-2]


@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(0, 10**7).map(float), st.floats(0, 1e6)), min_size=1, max_size=30
        ).map(sorted),
        min_size=1,
        max_size=8,
    ),
    st.integers(40, 120),
    st.booleans(),
)
def test_any_lines_fit(lines: list[list[tuple[float, float]]], width: int, unicode: bool) -> None:
    named = {f"layer{index}": points for index, points in enumerate(lines)}
    paper = Paper(width, unicode=unicode)
    for draw in (line_chart, shade_chart):
        text = draw(named, paper)
        assert max(map(len, text)) <= width
        assert unicode or "".join(text).isascii()


@pytest.mark.parametrize("count", [9, 24, 200])
def test_many_layers_are_shades(count: int) -> None:
    lines = {f"blocks.{i}": [(0.0, float(i)), (10.0, 0.0)] for i in range(count)}
    drawn = shade_chart(lines, Paper(60, unicode=False))
    rows = [line for line in drawn if "|" in line]
    assert len(rows) == min(count, 24)
    assert rows[0].strip() == "blocks.0 |"  # zero is white
    assert "@" in rows[-1]
    assert rows[-1].split()[0] == f"blocks.{count - 1}"
    assert drawn[-1].startswith("' ' 0 to '@' ")
    assert (f"24 of {count} layers" in drawn[-1]) is (count > 24)
