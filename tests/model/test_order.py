from itertools import pairwise, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localrank_cli.model.mlp import two_orders


def chains(weights: dict[str, tuple[int, int]]) -> list[tuple[str, ...]]:
    """All orders by trial, for names without numbers."""
    return [
        order
        for order in permutations(weights)
        if all(weights[before][0] == weights[after][1] for before, after in pairwise(order))
    ]


@given(
    st.dictionaries(
        st.sampled_from("abcde"),
        st.tuples(st.integers(1, 3), st.integers(1, 3)),
        min_size=1,
        max_size=5,
    )
)
def test_against_all_permutations(weights: dict[str, tuple[int, int]]) -> None:
    expected = chains(weights)
    found, complete = two_orders(weights)
    assert len(found) == min(2, len(expected))
    assert set(found) <= set(expected)
    assert complete is (len(expected) < 2)


def test_numbers_decide() -> None:
    square = dict.fromkeys(("fc10", "fc2", "fc1"), (4, 4))
    assert two_orders(square) == ([("fc1", "fc2", "fc10")], True)


def test_several_numbers_decide_in_turn() -> None:
    names = ("block1.fc1", "block1.fc2", "block2.fc1", "block10.fc1")
    assert two_orders(dict.fromkeys(reversed(names), (4, 4))) == ([names], True)


def test_shapes_against_numbers_fit_nowhere() -> None:
    assert two_orders({"fc1": (2, 3), "fc2": (3, 4)}) == ([], True)


def test_leading_zeros_do_not_decide() -> None:
    found, complete = two_orders({"1": (4, 4), "01": (4, 4)})
    assert (len(found), complete) == (2, False)


def test_layers_that_form_no_chain_are_seen_at_once() -> None:
    # Trying every order of 24 square layers would take longer than the universe is old.
    weights = dict.fromkeys("abcdefghijklmnopqrstuvwx", (8, 8))
    assert two_orders(weights | {"head": (2, 8), "other": (3, 8)}) == ([], True)


def test_an_endless_search_is_stopped() -> None:
    # Two loops that touch nowhere: no order fits, and degrees do not show it.
    weights = {f"{name}{letter}": (8, 8) for name in "ab" for letter in "cdefghijklm"}
    weights |= {f"x{name}": (9, 9) for name in weights}
    assert two_orders(weights) == ([], False)


@pytest.mark.parametrize("count", [1, 1100, pytest.param(2000, marks=pytest.mark.long)])
def test_many_layers_need_no_recursion(count: int) -> None:
    names = tuple(str(number) for number in range(count))
    assert two_orders(dict.fromkeys(names, (4, 4))) == ([names], True)
