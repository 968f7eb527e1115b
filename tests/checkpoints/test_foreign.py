"""Files that torch.save did not write: the message identifies each, and its command works."""

import contextlib
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from localrank_cli.checkpoints.formats import read
from localrank_cli.checkpoints.series import find_checkpoints
from localrank_cli.errors import LocalrankError, UnreadableError
from tests.helpers import mlp, weights


def refusal(path: Path) -> UnreadableError:
    with pytest.raises(UnreadableError) as caught:
        read(path)
    assert caught.value.what.startswith(f"{path}: ")
    assert "--pattern" in caught.value.advice
    with pytest.raises(UnreadableError) as again:
        read(path, trust_pickle=True)
    assert str(again.value) == str(caught.value)
    return caught.value


def command_in(advice: str) -> str:
    """The command of a message, for this Python."""
    start = advice.index("python -c ")
    command = advice[start : advice.rindex(", or leave it out")]
    return command.replace("python", sys.executable, 1)


def _pickled(state: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(state))


def _old_pickle(state: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(state, protocol=0))


def _script(_: Any, path: Path) -> None:
    torch.jit.script(mlp(4, 3, 2)).save(str(path))


def _trace(_: Any, path: Path) -> None:
    torch.jit.trace(mlp(4, 3, 2), torch.ones(1, 4)).save(str(path))


def _export(_: Any, path: Path) -> None:
    made = torch.export.export(mlp(4, 3, 2), (torch.ones(1, 4),))
    torch.export.save(made, path.with_suffix(".pt2"))
    path.with_suffix(".pt2").rename(path)


def _arrays(state: Any, path: Path) -> None:
    torch.save({key: value.numpy() for key, value in state.items()}, path)


def _params(state: Any, path: Path) -> None:
    torch.save({"params": {key: value.numpy() for key, value in state.items()}}, path)


def _npz(state: Any, path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, **{key: value.numpy() for key, value in state.items()})


KINDS = [
    (_pickled, "is a plain pickle"),
    (_old_pickle, "is a plain pickle"),
    (_script, "is a TorchScript file"),
    (_trace, "is a TorchScript file"),
    (_export, "is a torch.export program"),
    (_arrays, "holds numpy arrays, not tensors"),
    (_params, "holds numpy arrays under 'params', not tensors"),
    (_npz, "is an archive of numpy arrays"),
]


def here(command: str, folder: Path) -> None:
    """Let a shell take the command apart, and run its program in this process."""
    asked = command.replace(sys.executable, "printf '%s\\0'", 1)
    done = subprocess.run(asked, shell=True, check=True, capture_output=True, text=True)
    option, code, *rest = done.stdout.split("\0")[:-1]
    assert (option, rest) == ("-c", [])
    with contextlib.chdir(folder):
        exec(compile(code, "<command>", "exec"), {"__name__": "__main__"})


def in_its_own_process(command: str, folder: Path) -> None:
    subprocess.run(command, shell=True, check=True, cwd=folder)


def converts(
    tmp_path: Path,
    write: Callable[[Any, Path], None],
    what: str,
    name: str,
    start: Callable[[str, Path], None],
) -> None:
    path = tmp_path / name
    write(weights(4, 3, 2), path.with_stem("step_2"))
    write(weights(4, 3, 2), path)
    error = refusal(path)
    assert what in error.what
    start(command_in(error.advice), tmp_path)
    converted = [path.name, path.with_stem("step_2").name]
    assert sorted(file.name for file in (tmp_path / "converted").iterdir()) == sorted(converted)
    found = read(tmp_path / "converted" / name).states[""]
    assert list(found) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert [tuple(value.shape) for value in found.values()] == [(3, 4), (3,), (2, 3), (2,)]
    if write not in {_script, _trace, _export}:
        assert all(torch.equal(found[key], value) for key, value in weights(4, 3, 2).items())


NAMES = pytest.mark.parametrize("name", ["step_1.pt", "it's 1.ckpt"])
WARNS = pytest.mark.filterwarnings("ignore")  # of torch, about its own deprecated functions


@WARNS
@NAMES
@pytest.mark.parametrize(("write", "what"), KINDS)
def test_the_command_converts(
    tmp_path: Path, write: Callable[[Any, Path], None], what: str, name: str
) -> None:
    converts(tmp_path, write, what, name, here)


@pytest.mark.processes
@WARNS
@pytest.mark.parametrize(("write", "what"), [KINDS[4]])
def test_the_command_converts_in_its_own_process(
    tmp_path: Path, write: Callable[[Any, Path], None], what: str
) -> None:
    converts(tmp_path, write, what, "it's 1.ckpt", in_its_own_process)


@pytest.mark.long
@WARNS
@NAMES
@pytest.mark.parametrize(("write", "what"), KINDS)
def test_every_command_converts_in_its_own_process(
    tmp_path: Path, write: Callable[[Any, Path], None], what: str, name: str
) -> None:
    converts(tmp_path, write, what, name, in_its_own_process)


def test_a_resource_fork_of_macos(tmp_path: Path) -> None:
    path = tmp_path / "a b" / "._step_1.pt"
    path.parent.mkdir()
    path.write_bytes(b"\x00\x05\x16\x07" + bytes(120))
    (path.parent / "step_1.pt").touch()
    error = refusal(path)
    assert "macOS resource fork" in error.what
    command = error.advice.split(": ", 1)[1].split(", or")[0]
    subprocess.run(command, shell=True, check=True)
    assert [file.name for file in path.parent.iterdir()] == ["step_1.pt"]


def test_a_safetensors_file_of_another_name(tmp_path: Path) -> None:
    path = tmp_path / "step_1.pt"
    save_file(weights(), path)
    error = refusal(path)
    assert "is a safetensors file" in error.what
    subprocess.run(error.advice.split(": ", 1)[1].split(", or")[0], shell=True, check=True)
    assert set(read(tmp_path / "step_1.safetensors").states[""]) == set(weights())


def test_a_torch_file_called_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "step_1.safetensors"
    torch.save(weights(), path)
    error = refusal(path)
    assert "like those that torch.save writes" in error.what
    subprocess.run(error.advice.split(": ", 1)[1].split(", or")[0], shell=True, check=True)
    assert list(read(tmp_path / "step_1.pt").states[""]) == list(weights())


OTHERS = {
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "numpy array": b"\x93NUMPY\x01\x00" + bytes(200),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", OTHERS)
def test_other_files(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"step_1{suffix}"
    path.write_bytes(OTHERS[kind])
    assert kind in refusal(path).what


@pytest.mark.parametrize(
    ("saved", "what"),
    [
        (torch.ones(20, 6), "holds a Tensor of shape [20, 6], not a state dict"),
        ([torch.ones(2)], "holds a list, not a state dict"),
        (np.ones((2, 3)), "holds a numpy array, not a state dict"),
    ],
)
def test_data_that_torch_saved(tmp_path: Path, saved: object, what: str) -> None:
    torch.save(saved, tmp_path / "a.pt")
    assert what in refusal(tmp_path / "a.pt").what


@pytest.mark.parametrize("named", [[], ["step_5.npz"]])
def test_archives_of_arrays_by_their_suffix(tmp_path: Path, named: list[str]) -> None:
    states = {step: weights(seed=step) for step in (0, 5)}
    for step, state in states.items():
        _npz(state, tmp_path / f"step_{step}.npz")
    with pytest.raises(LocalrankError) as caught:
        find_checkpoints(tmp_path, [tmp_path / name for name in named], "", [])
    advice = caught.value.advice
    assert "convert them: python -c " in advice
    here(advice[advice.index("python -c") :].replace("python", sys.executable, 1), tmp_path)
    for step, state in states.items():
        found = torch.load(tmp_path / "converted" / f"step_{step}.pt")
        assert all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize("is_named", [False, True])
@pytest.mark.parametrize("is_zip", [False, True])
@pytest.mark.parametrize("name", ["model", "it's a.tar", "model.th", "model.pkl", "lr_0.01"])
def test_one_file_of_torch_save_under_another_suffix(
    tmp_path: Path, name: str, is_zip: bool, is_named: bool
) -> None:
    state = weights()
    torch.save(state, tmp_path / name, _use_new_zipfile_serialization=is_zip)
    torch.save({"state": {}}, tmp_path / "optimizer.pkl")
    with pytest.raises(LocalrankError) as caught:
        find_checkpoints(tmp_path, [tmp_path / name] if is_named else [], "", [])
    rename(caught.value.advice)
    (file,) = find_checkpoints(tmp_path, [], "", []).files
    assert not (tmp_path / name).exists()
    assert all(torch.equal(read(file.path).states[""][key], state[key]) for key in state)


@pytest.mark.parametrize("count", [2, 7])
@pytest.mark.parametrize("suffix", ["", ".tar", ".th", ".pkl"])
def test_a_series_of_torch_save_under_another_suffix(
    tmp_path: Path, suffix: str, count: int
) -> None:
    names = [f"step_{step}" for step in range(count)]
    for name in names:
        torch.save(weights(), tmp_path / f"{name}{suffix}")
    with pytest.raises(LocalrankError) as caught:
        find_checkpoints(tmp_path, [], "", [])
    rename(caught.value.advice)
    found = [file.name for file in find_checkpoints(tmp_path, [], "", []).files]
    assert found == [f"{name}.pt" for name in names]


def test_the_command_replaces_no_other_checkpoint(tmp_path: Path) -> None:
    torch.save(weights(seed=1), tmp_path / "model.pt")
    torch.save(weights(seed=2), tmp_path / "model.tar")
    before = (tmp_path / "model.pt").read_bytes()
    with pytest.raises(LocalrankError) as caught:
        find_checkpoints(tmp_path, [tmp_path / "model.tar"], "", [])
    rename(caught.value.advice)
    assert (tmp_path / "model.pt").read_bytes() == before
    assert (tmp_path / "model.tar.pt").exists()


def rename(advice: str) -> None:
    """Run the command of a message that renames files."""
    (command,) = re.findall(r"ename (?:it|them): (.*?)(?:\. Supported.*)?$", advice)
    subprocess.run(["sh", "-c", command], check=True)
