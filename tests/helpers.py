"""Small series of checkpoints on disk, shared by the tests of everything around the numbers."""

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

NET_CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=3, name="x", flag=False):
        super().__init__()
        self.a = nn.Linear(4, width)
        self.b = nn.Linear(width, 2)
        self.name, self.flag = name, flag

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))
"""

# Waits at checkpoints marked by their first bias, until a file exists.
WAITS = """
        if self.a.bias[0] > 9:
            import pathlib, time
            pathlib.Path({folder!r}, "waiting").touch()
            while not pathlib.Path({folder!r}, "go").exists():
                time.sleep(0.05)
        return self.b"""


def mlp(*widths: int, seed: int = 0) -> nn.Sequential:
    """Linear layers with a ReLU between them, named 0, 2, 4 and so on."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(widths):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def weights(*widths: int, seed: int = 0) -> dict[str, Tensor]:
    """The state dict of such a network."""
    return dict(mlp(*(widths or (4, 3, 2)), seed=seed).state_dict())


def renamed(state: Mapping[str, Tensor], prefix: str) -> "OrderedDict[str, Tensor]":
    """The same tensors with something before every name."""
    return OrderedDict((prefix + key, value) for key, value in state.items())


def save_series(
    folder: Path, steps: Iterable[int] = (0, 5, 10), widths: tuple[int, ...] = (4, 3, 2)
) -> Path:
    """Writes step_N.safetensors, each with other weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for step in steps:
        save_file(weights(*widths, seed=step), folder / f"step_{step}.safetensors")
    return folder


def net_weights(seed: int = 0) -> dict[str, Tensor]:
    """The state dict of NET_CODE's network."""
    names = {"0.weight": "a.weight", "0.bias": "a.bias", "2.weight": "b.weight", "2.bias": "b.bias"}
    return {names[key]: value for key, value in weights(seed=seed).items()}


class Evil:
    """Pickles as a call that creates a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.marker}'",)


def evil_code(marker: Path, then: str = "") -> str:
    """Python source that creates a file when it is imported."""
    return f"open({str(marker)!r}, 'w').close()\n{then}"


def entries(folder: Path) -> list[str]:
    """Everything in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def ignore(note: str) -> None:
    """Ignore a note, where notes do not matter."""


def save_epochs(folder: Path, places: Iterable[tuple[int, int]], **beside: Any) -> Path:
    """Writes c_00.pt, c_01.pt and so on, each with an epoch and a step, and other weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (epoch, step) in enumerate(places):
        loaded = {"model": weights(seed=number), "epoch": epoch, "step": step, **beside}
        torch.save(loaded, folder / f"c_{number:02}.pt")
    return folder


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
