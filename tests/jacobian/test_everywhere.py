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


def test_what_has_no_output_is_named() -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "nothing"

    with pytest.raises(ModelError, match="holds no floating-point tensor"):
        everywhere(Silent(), torch.randn(2, 3), None)


def test_a_failing_point_is_told() -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if bool((x > 5).any()):
                raise RuntimeError("too large")
            return x

    with pytest.raises(ModelError, match="RuntimeError: too large"):
        everywhere(Picky(), torch.tensor([[1.0], [2.0], [3.0], [9.0]]), None)
