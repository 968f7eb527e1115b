import gzip
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from localrank_cli.checkpoints.formats import is_weights_file, is_whole, read, weights_suffix
from localrank_cli.errors import UnreadableError
from tests.helpers import Evil, weights

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")


def assert_same(content_states: object, key: str = "") -> None:
    assert isinstance(content_states, dict)
    state = content_states[key]
    assert sorted(state) == sorted(weights())
    for name, value in weights().items():
        assert torch.equal(state[name], value)


@pytest.mark.parametrize("suffix", TORCH_SUFFIXES)
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files(tmp_path: Path, suffix: str, zipped: bool) -> None:
    path = tmp_path / f"step_1{suffix}"
    torch.save({"model": weights(), "step": 7}, path, _use_new_zipfile_serialization=zipped)
    content = read(path)
    assert_same(content.states, "model")
    assert content.step == 7


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_a_zip_is_mapped_and_a_legacy_file_is_not(tmp_path: Path) -> None:
    for zipped in (True, False):
        path = tmp_path / f"{zipped}.pt"
        torch.save(weights(), path, _use_new_zipfile_serialization=zipped)
        content = read(path)
        assert_same(content.states)
        assert (str(path) in Path("/proc/self/maps").read_text()) is zipped


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(weights(), path, metadata={"step": "12", "epoch": "3", "format": "pt"})
    content = read(path)
    assert_same(content.states)
    assert (content.step, content.step_source, content.epoch) == (12, "step", 3)


def test_a_safetensors_header_needs_no_tensor(tmp_path: Path) -> None:
    path = tmp_path / "a.SafeTensors"
    save_file(weights(), path)
    state = read(path, header_only=True).states[""]
    assert all(tensor.is_meta for tensor in state.values())
    assert {key: value.shape for key, value in state.items()} == {
        key: value.shape for key, value in weights().items()
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_types_are_kept(tmp_path: Path, dtype: torch.dtype, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    state = {"w": torch.arange(4).to(dtype)}
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    assert read(path).states[""]["w"].dtype == dtype


@pytest.mark.parametrize("suffix", [*TORCH_SUFFIXES, ".safetensors", ".PT", ".pth.tar"])
def test_suffixes(suffix: str) -> None:
    assert is_weights_file(Path(f"x{suffix}"))


@pytest.mark.parametrize(
    "name", ["x.npz", "x.pkl", "x.pt.tmp", "x.onnx", "x", "x.tar", ".pt", "x.json"]
)
def test_other_suffixes(name: str) -> None:
    assert not is_weights_file(Path(name))


def test_a_suffix_of_two_parts_is_whole() -> None:
    assert weights_suffix("model_best.Pth.tar") == ".Pth.tar"
    assert weights_suffix("a.b.pt") == ".pt"


def _evil_zip(path: Path, marker: Path) -> None:
    torch.save({"state_dict": weights(), "extra": Evil(marker)}, path)


def _evil_legacy(path: Path, marker: Path) -> None:
    torch.save({"extra": Evil(marker)}, path, _use_new_zipfile_serialization=False)


def _evil_pickle(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps(Evil(marker)))


def _evil_text_pickle(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps(Evil(marker), protocol=0))


@pytest.mark.parametrize("suffix", TORCH_SUFFIXES)
@pytest.mark.parametrize("write", [_evil_zip, _evil_legacy, _evil_pickle, _evil_text_pickle])
def test_no_pickle_runs_code(
    tmp_path: Path, suffix: str, write: Callable[[Path, Path], None]
) -> None:
    marker, path = tmp_path / "marker", tmp_path / f"step_1{suffix}"
    write(path, marker)
    with pytest.raises(UnreadableError, match=r"step_1\."):
        read(path)
    assert not marker.exists()


def test_the_pickle_of_that_test_would_run(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "step_1.pt"
    _evil_zip(path, marker)
    read(path, trust_pickle=True)
    assert marker.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_names_that_run_code_are_refused(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "step_1.pt"
    saved = {"model": weights(), "x": Evil(Path("x"))}
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnreadableError, match=r"needs code to load: posix\.system\.") as caught:
        read(path)
    assert "--trust-pickle" in caught.value.advice
    assert "torch.save(model.state_dict(), FILE)" in caught.value.advice


def test_a_trusted_pickle_runs_only_if_it_must(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "step_1.pt"
    torch.save({"model": weights(), "x": Runs(marker)}, path)
    assert_same(read(path, trust_pickle=True).states, "model")
    assert not marker.exists()


class Runs:
    """Creates a file when it is loaded, by a function that is not refused by name."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


class Hidden:
    """A state dict that only the code of the class can give."""

    def __reduce__(self) -> Any:
        return weights, ()


def test_a_pickle_that_must_run(tmp_path: Path) -> None:
    path = tmp_path / "step_1.pt"
    torch.save(Hidden(), path)
    with pytest.raises(UnreadableError, match=r"holds a tests\.helpers\.weights") as caught:
        read(path)
    assert "--trust-pickle" in caught.value.advice
    assert_same(read(path, trust_pickle=True).states)


def _cut(part: Callable[[bytes], bytes], zipped: bool) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        torch.save(weights(), path, _use_new_zipfile_serialization=zipped)
        path.write_bytes(part(path.read_bytes()))

    return write


def _zip_of_text(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "hello")


DAMAGED: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
    "first bytes of a zip": _cut(lambda data: data[:3], zipped=True),
    "half a zip": _cut(lambda data: data[: len(data) // 2], zipped=True),
    "a zip without its end": _cut(lambda data: data[:-30], zipped=True),
    "half a legacy file": _cut(lambda data: data[: len(data) // 2], zipped=False),
    "a legacy file without its end": _cut(lambda data: data[:-4], zipped=False),
    "another zip": _zip_of_text,
    "gzip": lambda path: path.write_bytes(gzip.compress(b"x" * 99)),
    "pickle": lambda path: path.write_bytes(pickle.dumps({"a": 1})),
    "safetensors": lambda path: save_file(weights(), path),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_torch_files(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "step_1.pt"
    DAMAGED[kind](path)
    with pytest.raises(UnreadableError, match=r"step_1\.pt") as caught:
        read(path)
    assert "--pattern" in caught.value.advice
    assert "trust-pickle" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(
    "part",
    [lambda data: b"", lambda data: data[:6], lambda data: data[:-5], lambda data: b"x" * 100],
)
def test_damaged_safetensors(tmp_path: Path, part: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "step_1.safetensors"
    save_file(weights(), path)
    path.write_bytes(part(path.read_bytes()))
    for header_only in (True, False):
        with pytest.raises(UnreadableError, match=r"step_1\.safetensors"):
            read(path, header_only=header_only)


def test_safetensors_without_a_tensor(tmp_path: Path) -> None:
    save_file({}, tmp_path / "a.safetensors")
    with pytest.raises(UnreadableError, match="holds no tensor"):
        read(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnreadableError, match=r"cannot be read \(No such file"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_folder_in_the_place_of_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UnreadableError, match=name):
        read(tmp_path / name)


@pytest.mark.parametrize("name", [b"\xff.pt", b"\xff.safetensors"])
def test_a_path_that_is_not_utf8(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    try:
        path.write_bytes(b"x")
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    with pytest.raises(UnreadableError, match="the path is not UTF-8"):
        read(path)


def test_a_file_is_whole_at_its_full_length_only(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.pt"):
        path = tmp_path / name
        if name.endswith("pt"):
            torch.save(weights(), path)
        else:
            save_file(weights(), path)
        assert is_whole(path)
        data = path.read_bytes()
        for length in (0, 4, 9, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:length])
            # What does not begin as a zip is no zip of torch: the reader will say what it is.
            assert is_whole(path) == (name.endswith("pt") and length < 4), length
    assert not is_whole(tmp_path / "none")
