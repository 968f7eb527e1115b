"""The mark cover(n): which cases of a product run each time."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import PROCESSES, ROOT, thin_out


class Case:
    nodeid = "test_file.py::test_name[...]"

    def __init__(self, size: int, **params: object) -> None:
        self.callspec = SimpleNamespace(params=params)
        self.mark = SimpleNamespace(args=(size,))
        self.is_long = False

    def get_closest_marker(self, name: str) -> object:
        return self.mark if name == "cover" else None

    def add_marker(self, name: str) -> None:
        assert name == "long"
        self.is_long = True


@pytest.mark.parametrize(("size", "most"), [(1, 4), (2, 16)])
def test_every_combination_of_that_size_is_kept(size: int, most: int) -> None:
    values: dict[str, list[Any]] = {"a": ["x", "y", "z", "w"], "b": [{}, {"k": 1}, {}], "c": [1, 2]}
    cases: list[Any] = [
        Case(size, **dict(zip(values, one, strict=True)))
        for one in itertools.product(*values.values())
    ]
    thin_out(cases)
    kept = [case.callspec.params for case in cases if not case.is_long]
    assert len(kept) <= most < len(cases)
    for names in itertools.combinations(values, size):
        found = {tuple(id(params[name]) for name in names) for params in kept}
        assert found == set(itertools.product(*(map(id, values[name]) for name in names)))


@pytest.mark.cover(1)
@pytest.mark.parametrize("a", [{"k": 1}, {"k": 2}, {"k": 3}])
@pytest.mark.parametrize("b", [{"k": 1}, {"k": 2}, {"k": 3}])
def test_pytest_keeps_as_many_of_a_product_of_dictionaries(
    a: dict[str, int], b: dict[str, int], request: pytest.FixtureRequest
) -> None:
    siblings = [
        item
        for item in request.session.items
        if item.nodeid.partition("[")[0] == request.node.nodeid.partition("[")[0]
    ]
    kept = [item for item in siblings if item.get_closest_marker("long") is None]
    assert len(kept) <= 3, f"a = {a}, b = {b} is one of {len(kept)} cases"


def test_other_tests_are_left_alone() -> None:
    case: Any = Case(1, a=1)
    case.mark = None
    thin_out([case])
    assert not case.is_long


@pytest.mark.parametrize("place", PROCESSES)
def test_what_is_kept_of_the_tests_of_processes_exists(place: str) -> None:
    source = (ROOT / place).read_text("utf-8")
    assert all(f"def {name}(" in source for name in PROCESSES[place])
