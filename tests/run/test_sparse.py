"""Networks that keep sparse tensors which no checkpoint holds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from localrank_cli import analyze


class Graph(nn.Module):
    """Multiplies by the matrix of a directed ring."""

    ring: Tensor

    def __init__(self, layout: torch.layout, place: str) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        ring = torch.eye(6).roll(1, 0)
        ring = ring.to_sparse_csr() if layout == torch.sparse_csr else ring.to_sparse()
        if place == "attribute":
            self.ring = ring
        else:
            self.register_buffer("ring", ring, persistent=False)

    def forward(self, x: Tensor) -> Any:
        return self.b(self.a(x) @ self.ring.to_dense())


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.parametrize("place", ["attribute", "buffer"])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_sparse_tensors(tmp_path: Path, layout: torch.layout, place: str) -> None:
    expected = []
    for step in (1, 2):
        torch.manual_seed(step)
        model = Graph(layout, place)
        torch.save(model.state_dict(), tmp_path / f"step_{step}.pt")
        # The layer b is linear in the input: B R' A.
        a, b = model.a.weight.detach().double(), model.b.weight.detach().double()
        expected.append(float(torch.linalg.matrix_norm(b @ a.roll(-1, 0), 2)))
    frame = analyze(
        tmp_path,
        model=lambda: Graph(layout, place),
        data=torch.randn(3, 4),
        layers="b",
        device="cpu",
    )
    # Both are computed in float64: rounding is far below 1e-9.
    assert list(frame["spectral_norm"]) == pytest.approx(expected, rel=1e-9)
