"""The networks that are timed, and the points at which."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

DIGITS = Path(__file__).parent.parent / "sample_checkpoints" / "mnist_mlp" / "digits.npz"
TRAINING_STEPS = 600


def digits(count: int) -> tuple[Tensor, Tensor]:
    """Real digits.

    Args:
        count: How many.

    Returns:
        Images, shape (count, 784), float32 in [0, 1], and labels.
    """
    with np.load(DIGITS, allow_pickle=False) as file:
        images, labels = file["images"][:count], file["labels"][:count]
    return torch.from_numpy(images).float() / 255, torch.from_numpy(labels).long()


def mlp(width: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """784-width-width-width-10.

    Args:
        width: Of the hidden layers.
        activation: Class of the activation.

    Returns:
        The network, untrained.
    """
    sizes = [784, width, width, width, 10]
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1])


def train(model: nn.Module, steps: int, each: Callable[[int], None] = lambda _: None) -> None:
    """Train on 2,000 digits by SGD with momentum and weight decay.

    Args:
        model: Changed in place.
        steps: How many.
        each: Called with each step's number.
    """
    images, labels = digits(2000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, steps + 1):
        batch = torch.randint(len(images), (128,), generator=generator)
        loss = functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        each(step)


class Residual(nn.Module):
    """Two 3x3 convolutions with BatchNorm around a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the block.

        Args:
            inputs: Shape (points, channels, height, width).

        Returns:
            The same shape.
        """
        hidden = torch.relu(self.norm1(self.conv1(inputs)))
        return torch.relu(inputs + self.norm2(self.conv2(hidden)))


class SmallResNet(nn.Module):
    """A stem of 16 channels, one residual block, one of half the size with 32 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.block1 = Residual(16)
        self.down = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.block2 = Residual(32)
        self.head = nn.Linear(32, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        """Classify images.

        Args:
            inputs: Shape (points, 3, height, width).

        Returns:
            Shape (points, 10).
        """
        hidden = self.block1(torch.relu(self.stem(inputs)))
        hidden = self.block2(torch.relu(self.down(hidden)))
        logits: Tensor = self.head(hidden.mean((2, 3)))
        return logits


class NormedBlock(nn.Module):
    """Linear, LayerNorm and ReLU around a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the block.

        Args:
            inputs: Shape (points, width).

        Returns:
            The same shape.
        """
        return inputs + torch.relu(self.norm(self.linear(inputs)))


def normed_mlp(width: int) -> nn.Sequential:
    """784 inputs, two blocks with LayerNorm and skip connections, 10 outputs: no chain.

    Args:
        width: Of the blocks.

    Returns:
        The network, untrained.
    """
    return nn.Sequential(
        nn.Linear(784, width),
        nn.LayerNorm(width),
        nn.ReLU(),
        NormedBlock(width),
        NormedBlock(width),
        nn.Linear(width, 10),
    )


class DecoderBlock(nn.Module):
    """Causal attention and an MLP, each after a LayerNorm and around a skip connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the block.

        Args:
            inputs: Shape (points, tokens, width).

        Returns:
            The same shape.
        """
        points, tokens, width = inputs.shape
        parts = self.qkv(self.norm1(inputs)).reshape(points, tokens, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = inputs + self.out(mixed.transpose(1, 2).reshape(points, tokens, width))
        return hidden + self.down(functional.gelu(self.up(self.norm2(hidden))))


class Decoder(nn.Module):
    """A small GPT whose input are embeddings and whose output are the last token's logits."""

    def __init__(self, width: int = 32, blocks: int = 3, vocabulary: int = 128) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(DecoderBlock(width, 4) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Predict the next token.

        Args:
            inputs: Shape (points, tokens, width).

        Returns:
            Shape (points, vocabulary).
        """
        logits: Tensor = self.head(self.norm(self.blocks(inputs))[:, -1])
        return logits
