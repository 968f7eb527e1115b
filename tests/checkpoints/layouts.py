"""Every layout that docs/formats.md names, written to disk: one case for all tests of layouts."""

import json
import random
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.checkpoints.dcp_writer import save_dcp
from tests.helpers import renamed, weights

State = Mapping[str, Tensor]


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


@dataclass(frozen=True)
class Layout:
    """One way to lay out a checkpoint."""

    write: Callable[[Path, int], None]  # a checkpoint of that step into the series' folder
    file: str  # the name by which the table knows it; {step} stands for the step
    has_ema: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)  # options of analyze


def raw(step: int) -> dict[str, Tensor]:
    """The weights that training continues with at a step."""
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


def _lightning(step: int) -> dict[str, Any]:
    return {
        "epoch": 1,
        "global_step": step,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": renamed(raw(step), "model."),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": None}},
        "optimizer_states": [{"state": {}, "param_groups": []}],
        "lr_schedulers": [],
        "hyper_parameters": {"step": 1, "global_step": 2},
    }


def _lightning_averaging(step: int) -> dict[str, Any]:
    moved = {"state_dict": renamed(ema(step), "model.")}
    moved |= {"current_model_state": renamed(raw(step), "model.")}
    return _lightning(step) | moved | {"averaging_state": {"n_averaged": torch.tensor(3)}}


def _lightning_swa(step: int) -> dict[str, Any]:
    average = {"n_averaged": torch.tensor(3), **renamed(ema(step), "module.model.")}
    swa = {"n_averaged": 3, "latest_update_epoch": 1, "average_model_state": average}
    return _lightning(step) | {"callbacks": {"StochasticWeightAveraging": swa}}


def _timm(step: int) -> dict[str, Any]:
    return {
        "epoch": step,
        "arch": "resnet50",
        "args": Namespace(lr=0.1, data_dir=Path("/data")),
        "state_dict": raw(step),
        "optimizer": {"state": {}, "param_groups": []},
        "version": 2,
        "state_dict_ema": ema(step),
        "metric": 71.5,
    }


def _fairseq(step: int) -> dict[str, Any]:
    return {
        "args": Namespace(arch="transformer", task=Namespace(data="/data")),
        "cfg": {"model": {"encoder_layers": 6}},
        "model": raw(step),
        "criterion": {},
        "optimizer_history": [
            {"criterion_name": "C", "optimizer_name": "Adam", "num_updates": 1},
            {"criterion_name": "C", "optimizer_name": "Adam", "num_updates": step},
        ],
        "task_state": {},
        "extra_state": {
            "train_iterator": {"epoch": 2, "iterations_in_epoch": 7, "shuffle": True},
            "ema": ema(step),
            "previous_training_time": np.float64(3.5),
        },
        "last_optimizer_state": {"state": {}},
    }


def _mmengine(step: int) -> dict[str, Any]:
    # EMAHook swaps: the average is under state_dict, and the training weights are beside it.
    return {
        "meta": {"epoch": 2, "iter": step, "mmengine_version": "0.10.4", "cfg": "iters = 5"},
        "state_dict": ema(step),
        "ema_state_dict": {"steps": torch.tensor(9), **renamed(raw(step), "module.")},
        "message_hub": {"log_scalars": {"loss": np.arange(3.0)}, "runtime_info": {"iter": 1}},
        "optimizer": {"state": {}, "param_groups": []},
    }


def _detectron2(step: int) -> dict[str, Any]:
    model = renamed(raw(step), "module.")
    return {"model": model, "optimizer": {}, "scheduler": {"last_epoch": 3}, "iteration": step}


def _nanogpt(step: int) -> dict[str, Any]:
    return {
        "model": renamed(raw(step), "_orig_mod."),
        "optimizer": {"state": {}, "param_groups": []},
        "model_args": {"n_layer": 1, "n_head": 1},
        "iter_num": step,
        "best_val_loss": torch.tensor(3.1),
        "config": {"max_iters": 600000},
    }


def _composer(step: int) -> dict[str, Any]:
    timestamp: dict[str, Any] = {"epoch": 1, "batch": step, "sample": 8 * step, "token": 0}
    timestamp = {"Timestamp": timestamp | {"total_wct": timedelta(seconds=9)}}
    model = renamed(raw(step), "module.")
    state = {"model": model, "timestamp": timestamp, "optimizers": {"Adam": {}}}
    rng = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.ones(5)}
    return {"state": state, "rng": [rng]}


def _torchtune(folder: Path, step: int) -> None:
    place = folder / f"epoch_{step}"
    save_shards(place, "ft-model", raw(step))
    (place / "config.json").write_text("{}")
    (folder / "recipe_state").mkdir(exist_ok=True)
    torch.save({"epochs_run": step}, folder / "recipe_state/recipe_state.pt")


def _accelerate(folder: Path, step: int) -> None:
    place = folder / f"checkpoint_{step}"
    place.mkdir()
    save_file(raw(step), place / "model.safetensors", metadata={"format": "pt"})
    torch.save({}, place / "optimizer.bin")
    torch.save({}, place / "scheduler.bin")
    (place / "random_states_0.pkl").write_bytes(b"x")


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


def _dcp(name: str, wrap: Callable[[int], dict[str, Any]], parts: int = 1) -> Any:
    def write(folder: Path, step: int) -> None:
        save_dcp(folder / name.format(step=step), wrap(step), parts)

    return write


def _training(step: int) -> dict[str, Any]:
    """A model and what its optimizer keeps, under the names of the model."""
    state = {
        f"state.{key}.exp_avg": torch.full_like(value, 5.0) for key, value in raw(step).items()
    }
    return {"model": raw(step), "optimizer": {**state, "param_groups": [{"lr": 0.1}]}}


def _torchtitan(step: int) -> dict[str, Any]:
    # The model's own names are at the top level.
    return {
        **raw(step),
        "optimizer": _training(step)["optimizer"],
        "train_state": {"step": torch.tensor(step, dtype=torch.int32)},
        "lr_scheduler": {"last_epoch": 3},
    }


def _olmo_core(step: int) -> dict[str, Any]:
    training = _training(step)
    return {"model": training["model"], "optim": training["optimizer"]}


def _olmo_core_folder(folder: Path, step: int) -> None:
    save_dcp(folder / f"step{step}/model_and_optim", _olmo_core(step))
    (folder / f"step{step}/train").mkdir()
    torch.save({"global_step": step}, folder / f"step{step}/train/rank0.pt")
    (folder / f"step{step}/.metadata.json").write_text("{}")


def _olmo_folder(folder: Path, step: int) -> None:
    place = folder / f"step{step}-unsharded"
    place.mkdir()
    torch.save(raw(step), place / "model.pt")
    torch.save({"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}, place / "optim.pt")
    torch.save({"global_step": step, "epoch": 0}, place / "train.pt")


def _lightning_sharded(folder: Path, step: int) -> None:
    place = folder / f"epoch=0-step={step}.ckpt"
    save_dcp(place, {"state_dict": renamed(raw(step), "model."), "optimizer_0": {}}, 2)
    torch.save({"global_step": step, "epoch": 0, "loops": {}}, place / "meta.pt")


def _accelerate_fsdp(folder: Path, step: int) -> None:
    save_dcp(folder / f"step_{step}/pytorch_model_fsdp_0", {"model": raw(step)}, 2)
    save_dcp(folder / f"step_{step}/optimizer_0", {"optim": {"state": {}, "lr": 1.0}})


def void(value: object) -> None:
    """Forgets what a writer returns."""


LAYOUTS: dict[str, Layout] = {
    "safetensors": Layout(_safetensors, "step_{step}.safetensors"),
    "state dict from torch.save": Layout(_saved("model_{step}.pth", raw), "model_{step}.pth"),
    "PyTorch's ImageNet example": Layout(
        _saved(
            "checkpoint_{step}.pth.tar",
            lambda step: {
                "epoch": step,
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
    "Lightning": Layout(_saved("epoch=1-step={step}.ckpt", _lightning), "epoch=1-step={step}.ckpt"),
    "Lightning, WeightAveraging": Layout(
        _saved("step={step}.ckpt", _lightning_averaging), "step={step}.ckpt", has_ema=True
    ),
    "Lightning, StochasticWeightAveraging": Layout(
        _saved("step={step}.ckpt", _lightning_swa), "step={step}.ckpt", has_ema=True
    ),
    "timm": Layout(
        _saved("checkpoint-{step}.pth.tar", _timm), "checkpoint-{step}.pth.tar", has_ema=True
    ),
    "fairseq": Layout(
        _saved("checkpoint_2_{step}.pt", _fairseq), "checkpoint_2_{step}.pt", has_ema=True
    ),
    "mmengine": Layout(_saved("iter_{step}.pth", _mmengine), "iter_{step}.pth", has_ema=True),
    "detectron2": Layout(_saved("model_{step:07}.pth", _detectron2), "model_{step:07}.pth"),
    "nanoGPT": Layout(_saved("ckpt_at_{step}.pt", _nanogpt), "ckpt_at_{step}.pt"),
    "Composer": Layout(_saved("ep1-ba{step}-rank0.pt", _composer), "ep1-ba{step}-rank0.pt"),
    "torchtune": Layout(_torchtune, "epoch_{step}"),
    "accelerate": Layout(_accelerate, "checkpoint_{step}", settings={"step_from": "name"}),
    "torch.distributed.checkpoint": Layout(_dcp("step_{step}", _training), "step_{step}"),
    "torch.distributed.checkpoint, sharded": Layout(
        _dcp("step_{step}", _training, parts=2), "step_{step}"
    ),
    "torchtitan": Layout(_dcp("step-{step}", _torchtitan), "step-{step}"),
    "OLMo": Layout(_olmo_folder, "step{step}-unsharded"),
    "OLMo-core": Layout(_olmo_core_folder, "step{step}"),
    "Lightning, sharded": Layout(_lightning_sharded, "epoch=0-step={step}.ckpt"),
    "accelerate, FSDP sharded": Layout(_accelerate_fsdp, "step_{step}"),
}


def _touched(*names: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()

    return write


def _adapter(folder: Path) -> None:
    place = folder / "checkpoint-5"
    place.mkdir()
    save_file(
        {"base_model.model.0.lora_A.weight": torch.ones(2, 4)}, place / "adapter_model.safetensors"
    )
    (place / "adapter_config.json").write_text('{"peft_type": "LORA"}')


# Layouts that the page says are refused: the files, and the advice of the error.
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "DeepSpeed ZeRO": (
        _touched(
            "latest",
            "zero_to_fp32.py",
            "global_step5/mp_rank_00_model_states.pt",
            "global_step5/zero_pp_rank_0_mp_rank_00_optim_states.pt",
        ),
        "zero_to_fp32.py",
    ),
    "Megatron-LM": (
        _touched(
            "iter_0000005/mp_rank_00/model_optim_rng.pt",
            "iter_0000005/mp_rank_01/model_optim_rng.pt",
        ),
        "tools/checkpoint/convert.py",
    ),
    "detectron2's model zoo": (_touched("model_final.pkl"), "DetectionCheckpointer"),
    "an adapter alone": (_adapter, "merge_and_unload"),
    "shards without an index": (
        _touched("model-00001-of-00002.safetensors"),
        "Copy the index of the checkpoint too",
    ),
}
