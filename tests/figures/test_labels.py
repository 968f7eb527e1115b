from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localrank_cli.figures.labels import distinct, readable, shortened, spread_out
from localrank_cli.figures.look import MARKERS, depth_colours, depth_pens

PLACES = st.lists(st.floats(0, 1), min_size=1, max_size=10)


@given(PLACES)
def test_names_are_apart_in_order_and_on_the_paper(places: list[float]) -> None:
    wanted = np.array(places)
    placed = spread_out(wanted, 0.1, 0.0, 1.0)
    assert (np.diff(np.sort(placed)) >= 0.1 - 1e-9).all()
    assert placed.min() >= -1e-9
    assert placed.max() <= 1 + 1e-9
    order = np.argsort(wanted, kind="stable")
    assert (np.diff(placed[order]) > 0).all()


@given(PLACES)
def test_what_is_apart_does_not_move(places: list[float]) -> None:
    wanted = np.unique(np.round(np.array(places), 1))
    assert spread_out(wanted, 0.05, 0.0, 1.0) == pytest.approx(wanted)


def test_neighbours_move_evenly() -> None:
    assert spread_out(np.array([0.5, 0.5]), 0.1, 0.0, 1.0) == pytest.approx([0.45, 0.55])
    assert spread_out(np.array([0.0, 0.0]), 0.1, 0.0, 1.0) == pytest.approx([0.0, 0.1])


def test_names_are_cut_in_the_middle() -> None:
    name = "encoder.layers.11.self_attn.out_proj"
    assert shortened("fc") == "fc"
    assert len(shortened(name)) == 26
    assert shortened(name).startswith("encoder")
    assert shortened(name).endswith("attn.out_proj")


@pytest.mark.parametrize("count", [1, 2, 4, 8, 14, 200])
def test_colours_go_from_light_to_dark(count: int) -> None:
    def light(colour: tuple[float, ...]) -> float:
        red, green, blue, _ = colour
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    shades = [light(colour) for colour in depth_colours(count)]
    assert len(shades) == count
    assert all(one > other for one, other in pairwise(shades))
    assert shades[0] < 0.75  # seen on white
    assert all(light((*readable(colour), 1.0)) <= 0.43 for colour in depth_colours(count))


def test_neighbours_differ_in_more_than_colour() -> None:
    pens = [pen.of_line(5) for pen in depth_pens([f"layer{index}" for index in range(14)]).values()]
    for one, other in pairwise(pens):
        assert one["marker"] != other["marker"]
    # Where a marker returns, the colour is another.
    assert len({(pen["marker"], pen["color"]) for pen in pens}) == 14
    assert {pen["marker"] for pen in pens} == set(MARKERS)


def test_a_long_line_is_marked_at_places_of_its_own() -> None:
    first, second = depth_pens(["a", "b"]).values()
    assert first.of_line(40)["markevery"] is None
    start, between = second.of_line(41)["markevery"]
    assert first.of_line(41)["markevery"] == (0.0, between)
    assert start == between / 2


def test_lines_without_names_have_no_marker_but_a_single_point_is_seen() -> None:
    pen = depth_pens([str(index) for index in range(15)])["3"]
    assert pen.of_line(1)["marker"] == "o"
    assert pen.of_line(1000)["marker"] == ""


def test_shared_parts_of_names_go_first() -> None:
    names = [f"encoder.layers.{index}.self_attn.out_proj.base_layer" for index in range(3)]
    assert list(distinct(names).values()) == ["…0…", "…1…", "…2…"]
    assert distinct(["fc", "head"]) == {"fc": "fc", "head": "head"}
    long = "a" * 40
    assert distinct([long]) == {long: shortened(long)}


@given(st.lists(st.text("ab.c", min_size=1, max_size=60), min_size=1, max_size=6, unique=True))
def test_shortened_names_are_distinct(names: list[str]) -> None:
    written = distinct(names)
    assert list(written) == names
    assert len(set(written.values())) == len(names)
