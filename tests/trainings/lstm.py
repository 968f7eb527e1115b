"""Train an LSTM under DistributedDataParallel; save its state dict, and the whole module too."""

from pathlib import Path

import torch
from torch import Tensor, distributed, nn


class LSTMClassifier(nn.Module):
    def __init__(self, features: int = 5, hidden: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.lstm(x)[0][:, -1])
        return out


if __name__ == "__main__":
    torch.manual_seed(0)
    sequences, labels = torch.randn(300, 7, 5), torch.randint(3, (300,))
    torch.save(sequences, "sequences.pt")
    store = distributed.FileStore("rendezvous", 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    model = nn.parallel.DistributedDataParallel(LSTMClassifier())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for folder in ("ddp", "whole"):
        Path(folder).mkdir()
    for epoch in range(1, 4):
        for x, y in zip(sequences.split(50), labels.split(50), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        facts = {"epoch": epoch, "optimizer": optimizer.state_dict(), "loss": 1.0}
        torch.save({"model_state_dict": model.state_dict(), **facts}, f"ddp/model_{epoch}.pt")
        torch.save(model.module, f"whole/model_{epoch}.pt")
    distributed.destroy_process_group()
