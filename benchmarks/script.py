"""What a user would write today for a folder of checkpoints: `script.py FOLDER DTYPE`, to CSV."""

import sys
from pathlib import Path

import torch
from methods import jacrev_svd
from safetensors.torch import load_file
from torch import nn


def main() -> None:
    """Print local rank by step and layer."""
    folder = Path(sys.argv[1])
    dtype: torch.dtype = getattr(torch, sys.argv[2])
    points = load_file(folder / "data.safetensors")["x"].to(dtype)
    model = nn.Sequential(
        nn.Linear(784, 200),
        nn.ReLU(),
        nn.Linear(200, 200),
        nn.ReLU(),
        nn.Linear(200, 200),
        nn.ReLU(),
        nn.Linear(200, 10),
    ).eval()
    model.requires_grad_(False).to(dtype)
    print("step,layer,local_rank")
    for path in sorted(folder.glob("step_*.safetensors"), key=lambda p: int(p.stem[5:])):
        model.load_state_dict(load_file(path))
        with torch.no_grad():
            ranks = jacrev_svd(model, points, ("0", "2", "4", "6"))
        for layer, rank in zip(("0", "2", "4", "6"), ranks, strict=True):
            print(path.stem[5:], layer, sum(rank) / len(rank), sep=",")


if __name__ == "__main__":
    main()
