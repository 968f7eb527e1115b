"""Small work is done by one thread, whatever the number of threads, which is left as it was."""

from typing import Any

import pytest
import torch
from torch import nn

from localrank_cli.jacobian import engine, guards
from localrank_cli.spectrum.svd import thread_map
from localrank_cli.threads import one_thread
from tests.asking import spectra_of
from tests.helpers import threads


def seen(_: int) -> int:
    return torch.get_num_threads()


@pytest.mark.parametrize(
    ("items", "are_small", "expected"),
    [([1], True, [1]), ([1], False, [2]), ([1, 2], True, [1, 1]), ([1, 2], False, [1, 1])],
)
def test_matrices(items: list[int], are_small: bool, expected: list[int]) -> None:
    with threads(2):
        assert thread_map(seen, items, are_small=are_small) == expected
        assert torch.get_num_threads() == 2


def test_the_number_is_restored_after_an_error() -> None:
    with threads(2):
        with pytest.raises(ZeroDivisionError), one_thread():
            raise ZeroDivisionError
        with one_thread(False):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("light", "expected"), [(1e6, 1), (0, 2)])
def test_checks_of_a_network(monkeypatch: pytest.MonkeyPatch, light: float, expected: int) -> None:
    numbers = []

    def note(module: Any, name: str) -> None:
        original = getattr(module, name)

        def noting(*args: Any, **kwargs: Any) -> Any:
            numbers.append(torch.get_num_threads())
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, noting)

    monkeypatch.setattr(engine, "_LIGHT", light)
    note(engine, "chain_of")
    for name in ("checked_values", "lay_out", "points_are_separate"):
        note(guards, name)
    with threads(2):
        network = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
        spectra_of(network, torch.randn(5, 4).double())
        assert torch.get_num_threads() == 2
    assert numbers == [expected] * 4
