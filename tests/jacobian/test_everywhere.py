"""Outputs over all of the data: many at a time only where that is what they are alone."""

import pytest
import torch
from torch import Tensor, nn

from localrank_cli.errors import ModelError
from localrank_cli.jacobian.everywhere import outputs_everywhere
from localrank_cli.layers.capture import Call
from localrank_cli.layers.setting import analysis_setting
from tests.cases import CASES, Case, params
from tests.naive import naive_outputs


def everywhere(model: nn.Module, points: Tensor, call: Call | None) -> Tensor:
    with analysis_setting(model, torch.float64):
        return torch.cat(list(outputs_everywhere(model, torch.split(points, 3), call, 1e-9)))


@pytest.mark.parametrize(
    "case", params(case for case in CASES if not case.layers and not case.low_precision)
)
def test_every_case(case: Case) -> None:
    model, points = case.build()
    alone = [naive_outputs(model, point) for point in points]
    for label in alone[0]:
        found = everywhere(model, points, Call.parse(label))
        expected = torch.stack([torch.from_numpy(one[label]) for one in alone])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_the_networks_own_output() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True)).double()
    points = torch.randn(7, 4, dtype=torch.float64)
    torch.testing.assert_close(everywhere(model, points, None), model(points).detach())


def test_a_model_without_an_output() -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "nothing"

    with pytest.raises(ModelError, match="holds no floating-point tensor"):
        everywhere(Silent(), torch.randn(2, 3), None)


def test_a_failing_point_is_reported() -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if bool((x > 5).any()):
                raise RuntimeError("too large")
            return x

    with pytest.raises(ModelError, match="RuntimeError: too large"):
        everywhere(Picky(), torch.tensor([[1.0], [2.0], [3.0], [9.0]]), None)


class ScaledByTheLargest(nn.Module):
    """Where a value exceeds 5, the whole batch is scaled by the largest."""

    def forward(self, x: Tensor) -> Tensor:
        largest = float(x.max())
        return x / largest if largest > 5 else x.clone()


class Capacity(nn.Module):
    """An expert of limited capacity: it computes six points, and the rest pass as zeros."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.arange(x.shape[0]) < 6)[:, None]


def test_a_batch_that_first_mixes_its_points_late() -> None:
    # The first batch gives what its points give alone, and so do the first points of the second.
    points = torch.tensor([[1.0], [2], [3], [4], [1], [9], [2], [3]])
    expected = torch.tensor([[1.0], [2], [3], [4], [1], [1], [2], [3]])
    with analysis_setting(ScaledByTheLargest(), torch.float64):
        for size in (4, 8):
            chunks = torch.split(points, size)
            found = torch.cat(list(outputs_everywhere(ScaledByTheLargest(), chunks, None, 1e-9)))
            assert torch.equal(found, expected)


def test_the_last_points_of_a_batch_are_held_against_themselves_too() -> None:
    points = torch.arange(1.0, 11)[:, None]
    (found,) = outputs_everywhere(Capacity(), [points], None, 1e-9)
    assert torch.equal(found, points)


def test_a_forward_that_takes_only_one_point() -> None:
    class OnlyOne(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[0] == 1
            return 2 * x

    points = torch.arange(1.0, 8)[:, None]
    (found,) = outputs_everywhere(OnlyOne(), [points], None, 1e-9)
    assert torch.equal(found, 2 * points)


def test_an_output_whose_shape_depends_on_the_point() -> None:
    class Ragged(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, : int(x[0, 0])]

    points = torch.tensor([[1.0, 1, 1], [2, 2, 2], [3, 3, 3]])
    with pytest.raises(ModelError, match="shape of the model's output depends on the point"):
        list(outputs_everywhere(Ragged(), [points], None, 1e-9))
