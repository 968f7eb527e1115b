"""`--memory`: too small a budget is refused before any work."""

from pathlib import Path

import pytest
import torch
from torch import nn

from localrank_cli import analyze
from localrank_cli.errors import ModelError
from localrank_cli.jacobian.blocks import plan_blocks
from localrank_cli.jacobian.budget import Budget, check_fits
from localrank_cli.layers.capture import Call
from localrank_cli.layers.survey import CallRecord

MIB = 2**20


def record(n_out: int) -> CallRecord:
    return CallRecord(Call("big"), "Linear", True, (1, n_out), True, 1.0)


def test_a_refusal_names_needed_and_available_memory() -> None:
    with pytest.raises(ModelError) as caught:
        check_fits([record(3000)], 4000, 64 * MIB)
    for words in ("'big'", "3000 x 4000", "343 MiB", "64 MiB", "--memory", "--exclude", "--wrt"):
        assert words in str(caught.value)


def test_a_long_side_is_no_reason_to_refuse() -> None:
    check_fits([record(10_000_000)], 100, 16 * MIB)


@pytest.mark.parametrize("shape", [(3072, 16384), (16384, 3072), (100, 100_000), (2000, 2000)])
@pytest.mark.parametrize("total", [384 * MIB, 1024 * MIB, 4096 * MIB])
def test_the_parts_stay_inside_the_whole(shape: tuple[int, int], total: int) -> None:
    budget, short = Budget(total), min(shape)
    # While blocks come: the Gram matrix and LAPACK's copy (or the QR's), the directions, the block,
    # the directions' output and the QR's copy of the block.
    beside = budget.block_directions(*shape) + 3 * budget.block(*shape)
    assert 5 * 8 * short**2 + beside <= total
    assert budget.jacobians * 3 <= total


def test_blocks_go_along_the_longer_side() -> None:
    assert plan_blocks(16384, 3072, 8, 64 * MIB, forward=True).along == "rows"
    assert plan_blocks(3072, 16384, 8, 64 * MIB, forward=True).along == "columns"
    # Two passes of 3072 directions forward beat 16384 rows in reverse; many passes do not.
    assert plan_blocks(16384, 3072, 8, 256 * MIB, forward=True).mode == "forward"
    assert plan_blocks(16384, 3072, 8, 16 * MIB, forward=True).mode == "reverse"
    assert plan_blocks(16384, 3072, 8, 256 * MIB, forward=False).mode == "reverse"


def test_too_little_for_a_layer_is_known_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "wide.py").write_text(
        "from torch import nn\n\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.a = nn.Linear(1000, 1100)\n"
        "    def forward(self, x):\n        return self.a(x)\n"
    )
    state = {f"a.{key}": value for key, value in nn.Linear(1000, 1100).state_dict().items()}
    torch.save(state, tmp_path / "step_1.pt")
    with pytest.raises(ModelError, match=r"1100 x 1000.*38.2 MiB.*16 MiB"):
        analyze(tmp_path, model=f"{tmp_path}/wide.py:Net", data="normal:1000", memory="16MiB")
