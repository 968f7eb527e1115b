"""Bases of the strongest directions."""

from dataclasses import replace
from functools import partial
from unittest import mock

import pytest
import torch
from torch import Tensor

from localrank_cli.intervals import deflation
from localrank_cli.intervals.beta import largest_count
from localrank_cli.intervals.bracket import bracket
from localrank_cli.intervals.deflation import Draw, strongest
from localrank_cli.intervals.lanczos import Runs
from localrank_cli.intervals.operator import of_matrix
from tests.intervals.planted import generator, planted


def drawing(d: int, seed: int) -> Draw:
    random = generator(seed)
    return lambda count: torch.randn(count, d, generator=random, dtype=torch.float64)


def low_rank() -> Tensor:
    """10 values above 0.7, 20 more below it, and zeros."""
    values = torch.cat([torch.linspace(1, 0.9, 10), torch.linspace(0.6, 0.5, 20)]).double()
    return planted(values, 120, 100, generator(0))


def test_an_exhausted_krylov_space_certifies_no_copies() -> None:
    """F2: the rank is 30, and the space goes on beyond it."""
    found = strongest(of_matrix(low_rank()), drawing(100, 1), [1e-6], 100, 10_000)
    assert found.values.shape[0] > 30
    assert (found.count(1e-6), found.count(0.5)) == (30, 10)
    assert found.defect < 1e-12


def test_what_rounding_leaves_would_be_certified_without_the_guards() -> None:
    def careless(block: Tensor, basis: Tensor, draw: Draw) -> Tensor:
        rest = block - (block @ basis.T) @ basis
        q: Tensor = torch.linalg.qr(rest.T)[0]  # normalizes rounding, which is not orthogonal
        return q.T

    with (
        mock.patch.object(deflation, "orthonormal", careless),
        mock.patch.object(deflation, "_STABLE", 5),
    ):
        found = strongest(of_matrix(low_rank()), drawing(100, 1), [1e-6], 64, 10_000)
    assert found.defect > 1e-3
    assert found.count(0.5) == 0
    assert replace(found, defect=0.0).count(0.5) > 10


@pytest.mark.parametrize("room", [8, 20, 60])
def test_any_basis_counts_at_most_the_rank(room: int) -> None:
    values = torch.arange(1, 81).double() ** -0.7
    matrix = planted(values, 80, 90, generator(room))
    found = strongest(of_matrix(matrix), drawing(80, 5), [0.01], room, 10_000)
    assert 0 < found.count(0.01) <= int((values > 0.1).sum())


def test_probes_that_built_the_basis_say_nothing_about_its_complement() -> None:
    """F5: they would bound the rank of a flat spectrum by too little, every time."""
    matrix = planted(torch.ones(60).double(), 60, 60, generator(0))
    at, delta = 0.25, 0.05
    misses = {"same": 0, "fresh": 0}
    for seed in range(20):
        start = drawing(60, seed)(8)
        basis = strongest(of_matrix(matrix), partial(torch.narrow, start, 0, 0), [at], 8, 100)
        kept = basis.count(at)
        for name, probes in (("same", start[:2]), ("fresh", drawing(60, 100 + seed)(2))):
            runs = Runs(of_matrix(matrix), probes, 5, basis.vectors[:kept])
            runs.step()
            rest = sum(runs.squares) / float(probes.square().sum())
            share = bracket(runs, [0, 1], at, 1.0)[1] if rest > 1e-20 else 0.0
            high = kept + largest_count(share, delta, 2, 60 - kept)
            misses[name] += high < 60
    assert misses["same"] == 20
    assert misses["fresh"] == 0
