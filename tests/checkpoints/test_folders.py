from pathlib import Path

import pytest

from localrank_cli.checkpoints.folders import (
    entries_in,
    folder_weights,
    is_alias,
    is_folder_weights,
    stem_of,
)
from tests.checkpoints.layouts import touch


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["model.safetensors", "training_args.bin"], "model.safetensors"),
        (["pytorch_model.bin", "optimizer.bin"], "pytorch_model.bin"),
        (["pytorch_model.bin", "model.safetensors"], "model.safetensors"),
        (["model.safetensors.index.json", "notes.txt"], "model.safetensors.index.json"),
        (["pytorch_model.bin.index.json"], "pytorch_model.bin.index.json"),
        ([".metadata", "__0_0.distcp"], ".metadata"),
        (["model_and_optim/.metadata", "train/rank0.pt"], "model_and_optim/.metadata"),
        (["pytorch_model_fsdp_0/.metadata"], "pytorch_model_fsdp_0/.metadata"),
        (["ft-model.safetensors.index.json"], "ft-model.safetensors.index.json"),
        (["weights.pt", "optim.pt", "scheduler.bin", "notes.txt"], "weights.pt"),
        (["model.pt", "meta.pt"], "model.pt"),
    ],
)  # fmt: skip
def test_where_the_weights_of_a_folder_are(tmp_path: Path, names: list[str], wanted: str) -> None:
    assert folder_weights(touch(tmp_path, *names)) == tmp_path / wanted


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["README.md"],
        ["optimizer.pt"],
        ["a.pt", "b.pt"],  # which one?
        ["step_1.pt"],  # a series of one checkpoint
        ["epoch_1.pt"],
        ["step_1.safetensors.index.json"],
        ["a-00001-of-00002.bin"],
        ["sub/model.safetensors"],
    ],
)
def test_folders_that_are_no_checkpoint(tmp_path: Path, names: list[str]) -> None:
    assert folder_weights(touch(tmp_path, *names)) is None


def test_a_missing_folder(tmp_path: Path) -> None:
    assert folder_weights(tmp_path / "nope") is None
    assert entries_in(tmp_path / "nope") == []


@pytest.mark.parametrize(
    "name",
    ["last.ckpt", "best.pt", "model_best.pth.tar", "latest", "final", "model-final.bin",
     "Last-v1.ckpt", "best=0.3.pt", "current.pt"],
)  # fmt: skip
def test_aliases(name: str) -> None:
    assert is_alias(name)


@pytest.mark.parametrize("name", ["blast.pt", "bestow.pt", "step_100.pt", "finally.pt"])
def test_names_that_are_no_alias(name: str) -> None:
    assert not is_alias(name)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("step_1.pt", "step_1"),
        ("step_1.pth.tar", "step_1"),
        ("step_1.safetensors.index.json", "step_1"),
        ("step_1.5.bin.index.json", "step_1.5"),
        ("epoch=1-step=2.ckpt", "epoch=1-step=2"),
    ],
)
def test_stems(name: str, stem: str) -> None:
    assert stem_of(name) == stem


def test_names_of_folder_weights() -> None:
    assert is_folder_weights(Path("a/.metadata"))
    assert is_folder_weights(Path("a/model.safetensors.index.json"))
    assert not is_folder_weights(Path("a/step_1.safetensors"))
