"""Train with torch.distributed.checkpoint, one folder for each save."""

import torch
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh())
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


if __name__ == "__main__":
    torch.manual_seed(0)
    inputs = torch.randn(500, 12)
    torch.save(inputs, "inputs.pt")
    targets = inputs @ torch.randn(12, 2) @ torch.randn(2, 3)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=1e-2)
    for step in range(201):
        if step % 100 == 0:
            state = {"model": model.state_dict(), "optim": optimizer.state_dict()}
            dcp.save(state, checkpoint_id=f"checkpoints/step-{step}")
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
