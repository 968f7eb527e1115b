"""The places of points in a batched tensor."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from localrank_cli.jacobian.batch import Layout

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


@pytest.mark.parametrize(
    ("one", "batch", "n_points", "axis"),
    [
        ((1, 5), (3, 5), 3, 0),
        ((1, 2, 5), (3, 2, 5), 3, 0),
        ((2, 1, 5), (2, 3, 5), 3, 1),
        ((4, 5), (12, 5), 3, 0),
        ((2, 4, 5), (2, 12, 5), 3, 1),
        ((6,), (18,), 3, 0),
        ((1, 5), (1, 5), 1, 0),
        ((3, 1, 5), (3, 1, 5), 1, 0),
    ],
    ids=str,
)
def test_find(one: tuple[int, ...], batch: tuple[int, ...], n_points: int, axis: int) -> None:
    assert Layout.find(one, batch, n_points) == Layout(axis, one)


@pytest.mark.parametrize(
    ("one", "batch"),
    [
        ((1, 5), (1, 5)),  # does not know of the batch
        ((1, 5), (2, 5)),  # has grown by another factor
        ((1, 5), (3, 15)),  # two axes have
        ((5,), (3, 5)),  # has gained an axis
        ((1, 5), (15,)),
        ((), ()),
    ],
    ids=str,
)
def test_find_refuses(one: tuple[int, ...], batch: tuple[int, ...]) -> None:
    assert Layout.find(one, batch, 3) is None


@given(shape=shapes, n_points=st.integers(1, 5), data=st.data())
def test_split_gives_each_point_its_own_row(
    shape: tuple[int, ...], n_points: int, data: st.DataObject
) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    parts = [torch.randn(shape) for _ in range(n_points)]
    batch = torch.cat(parts, dim=axis)
    rows = Layout(axis, shape).split(batch)
    assert torch.equal(rows, torch.stack([part.flatten() for part in parts]))


@given(shape=shapes, n_points=st.integers(1, 5), data=st.data())
def test_join_undoes_split(shape: tuple[int, ...], n_points: int, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    layout = Layout(axis, shape)
    batch = torch.cat([torch.randn(shape) for _ in range(n_points)], dim=axis)
    assert torch.equal(layout.join(layout.split(batch)), batch)
    flat = torch.randn(n_points, batch.numel() // n_points)
    assert torch.equal(layout.split(layout.join(flat)), flat)


@given(shape=shapes, n_points=st.integers(2, 5), data=st.data())
def test_find_finds_what_was_joined(
    shape: tuple[int, ...], n_points: int, data: st.DataObject
) -> None:
    layout = Layout(data.draw(st.integers(0, len(shape) - 1)), shape)
    batch = layout.join(torch.randn(n_points, torch.Size(shape).numel()))
    assert Layout.find(shape, tuple(batch.shape), n_points) == layout
