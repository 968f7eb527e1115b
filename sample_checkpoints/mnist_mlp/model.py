"""The network of these checkpoints, for `--model sample_checkpoints/mnist_mlp/model.py:build`."""

from torch import nn


def build(width: int = 100) -> nn.Sequential:
    """Build the MLP 784-width-width-width-10 with ReLU and its default initial weights.

    Args:
        width: units of each hidden layer; the checkpoints have 100.

    Returns:
        The untrained network; its Linear layers are `0`, `2`, `4` and `6`.
    """
    return nn.Sequential(
        nn.Linear(784, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, 10),
    )
