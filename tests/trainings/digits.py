"""Train a small CNN on digits with Lightning."""

from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def cnn(channels: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(channels * 9, 10),
    )  # fmt: skip


class LitDigits(lightning.LightningModule):  # type: ignore[misc]  # Any to mypy
    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = cnn(channels)

    def forward(self, images: Tensor) -> Any:
        return self.model(images)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


if __name__ == "__main__":
    lightning.seed_everything(0)
    labels = torch.arange(400) % 10
    images = torch.rand(10, 1, 8, 8)[labels] + 0.3 * torch.rand(400, 1, 8, 8)
    torch.save({"images": images, "labels": labels}, "digits.pt")
    saving = lightning.pytorch.callbacks.ModelCheckpoint(every_n_epochs=1, save_top_k=-1)
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", callbacks=[saving], enable_progress_bar=False
    )
    trainer.fit(LitDigits(channels=5), DataLoader(TensorDataset(images, labels), 4, shuffle=True))
