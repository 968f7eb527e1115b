"""Every layout that docs/formats.md names, written to disk: one case for all tests of layouts."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers import renamed, weights

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """One way to lay out a checkpoint."""

    write: Callable[[Path, int], None]  # a checkpoint of that step into the series' folder
    file: str  # the name by which the table knows it; {step} stands for the step
    epochs: bool = False  # whether the number is an epoch, for want of steps
    has_ema: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)  # options of analyze


def raw(step: int) -> dict[str, Tensor]:
    """The weights that training goes on with at a step."""
    return weights(seed=step)


def ema(step: int) -> dict[str, Tensor]:
    """The average of the weights at a step."""
    return weights(seed=1000 + step)


def save_shards(folder: Path, stem: str, state: State, suffix: str = ".safetensors") -> Path:
    """Two shards and their index, as save_pretrained lays them out."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = list(state)
    places: dict[str, str] = {}
    for number, part in enumerate((keys[:1], keys[1:]), 1):
        name = f"{stem}-{number:05}-of-00002{suffix}"
        shard = {key: state[key] for key in part}
        if suffix == ".safetensors":
            save_file(shard, folder / name)
        else:
            torch.save(shard, folder / name)
        places |= dict.fromkeys(part, name)
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


def trainer_state(folder: Path, step: int) -> None:
    """What Hugging Face's Trainer writes beside the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"epoch": step / 10, "global_step": step, "log_history": [{"loss": 1.0, "step": 1}]}
    (folder / "trainer_state.json").write_text(json.dumps(facts))


def _saved(name: str, wrap: Callable[[int], Any]) -> Callable[[Path, int], None]:
    def write(folder: Path, step: int) -> None:
        torch.save(wrap(step), folder / name.format(step=step))

    return write


def _safetensors(folder: Path, step: int) -> None:
    save_file(raw(step), folder / f"step_{step}.safetensors")


def _sharded(suffix: str) -> Callable[[Path, int], None]:
    return lambda folder, step: void(save_shards(folder, f"step_{step}", raw(step), suffix))


def _trainer(sharded: bool) -> Callable[[Path, int], None]:
    def write(folder: Path, step: int) -> None:
        place = folder / f"checkpoint-{step}"
        trainer_state(place, step)
        if sharded:
            save_shards(place, "model", raw(step))
        else:
            save_file(raw(step), place / "model.safetensors", metadata={"format": "pt"})
        torch.save({"state": {}}, place / "optimizer.pt")
        torch.save({"python": 1}, place / "rng_state.pth")

    return write


def _revision(folder: Path, step: int) -> None:
    (folder / f"step{step}").mkdir()
    torch.save(raw(step), folder / f"step{step}/pytorch_model.bin")


def _hub_cache(folder: Path, step: int) -> None:
    commit = f"{step:040x}"
    for place in (f"snapshots/{commit}", "refs", "blobs"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    blob = folder / "blobs" / f"b{commit}"
    save_file(raw(step), blob)
    (folder / "snapshots" / commit / "model.safetensors").symlink_to(
        Path("../../blobs") / blob.name
    )
    (folder / f"refs/step{step}").write_text(commit)
    (folder / "refs/main").write_text(commit)


def void(value: object) -> None:
    """Forgets what a writer returns."""


LAYOUTS: dict[str, Layout] = {
    "safetensors": Layout(_safetensors, "step_{step}.safetensors"),
    "state dict of torch.save": Layout(_saved("model_{step}.pth", raw), "model_{step}.pth"),
    "PyTorch's ImageNet example": Layout(
        _saved(
            "checkpoint_{step}.pth.tar",
            lambda step: {
                "epoch": 3,
                "arch": "mlp",
                "state_dict": renamed(raw(step), "module."),
                "best_acc1": torch.tensor(0.5),
                "optimizer": {"state": {}, "param_groups": []},
            },
        ),
        "checkpoint_{step}.pth.tar",
    ),
    "sharded safetensors": Layout(_sharded(".safetensors"), "step_{step}.safetensors.index.json"),
    "sharded .bin": Layout(_sharded(".bin"), "step_{step}.bin.index.json"),
    "Hugging Face Trainer": Layout(_trainer(sharded=False), "checkpoint-{step}"),
    "Hugging Face Trainer, sharded": Layout(_trainer(sharded=True), "checkpoint-{step}"),
    "Hub revision as a folder": Layout(_revision, "step{step}"),
    "Hub cache": Layout(_hub_cache, "snapshots/{step:040x}"),
}
