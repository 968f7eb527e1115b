"""Small work is done by one thread, whatever the number of threads, which is left as it was."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from localrank_cli.jacobian import engine, guards
from localrank_cli.jacobian.budget import Budget
from localrank_cli.measures.table import demand_of
from localrank_cli.spectrum import solve
from localrank_cli.spectrum.svd import thread_map
from localrank_cli.spectrum.tolerance import Tolerance
from localrank_cli.threads import one_thread
from tests.asking import spectra_of
from tests.helpers import threads


def seen(_: int) -> int:
    return torch.get_num_threads()


@pytest.mark.parametrize(
    ("n_items", "how", "expected"),
    [
        (1, {"are_small": True}, [1]),
        (1, {"are_small": False}, [4]),
        (2, {"are_small": True}, [1, 1]),
        (2, {"are_small": False}, [2, 2]),
        (5, {"are_small": False}, [1] * 5),
        (5, {"are_small": False, "at_once": 2}, [2] * 5),
        (5, {"are_small": False, "at_once": 1}, [4] * 5),
        (0, {"are_small": False}, []),
    ],
)
def test_matrices(n_items: int, how: dict[str, Any], expected: list[int]) -> None:
    with threads(4):
        assert thread_map(seen, range(n_items), **how) == expected
        assert torch.get_num_threads() == 4


def test_matrices_side_by_side_keep_to_the_memory() -> None:
    gram = 8 * 3072**2  # bytes
    assert Budget(2**31).squares(3072, held=0) == 3
    assert Budget(2**31).squares(3072, held=2**29) == 2
    assert Budget(4 * 2 * 7 * gram + 5).squares(3072, held=5) == 7
    assert Budget(gram).squares(3072, held=2 * gram) == 1


@pytest.mark.parametrize("memory", [0, 2**31])
def test_large_matrices_side_by_side_are_numpys(
    monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    monkeypatch.setattr(solve, "_MAX_THREADED_SIZE", 30)
    matrices = torch.randn(5, 60, 40, dtype=torch.float64)
    demand = demand_of((Tolerance(rtol=0.1),))
    with threads(3):
        found = solve.solve_stack(matrices, demand, memory=memory)
    # Both are backward stable: a few units in the last place of the largest.
    np.testing.assert_allclose(found, np.linalg.svd(matrices, compute_uv=False), rtol=1e-10)


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
        # No chain, as the points of one need no check of their own.
        network = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1), nn.Linear(3, 3)).double()
        spectra_of(network, torch.randn(5, 4).double())
        assert torch.get_num_threads() == 2
    assert numbers == [expected] * 4
