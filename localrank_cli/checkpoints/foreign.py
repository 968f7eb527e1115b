"""Identify files with the suffix of a torch file that torch.save did not write."""

import json
import pickletools
import shlex
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

# How torch.save begins files that are no zip archives: this number, pickled on its own.
_MAGIC_OF_TORCH = (bytes.fromhex("6cfc9c46f9206aa85019"), b"119547037146038801333356")
_NPZ = ".npz"
_MOST_NAMES = 4  # in a command
_PATTERN = "or leave it out with --pattern."
_BY_MAGIC = {
    b"\x00\x05\x16\x07": (
        "is a macOS resource fork (AppleDouble), not a checkpoint",
        f"Delete such files: find {{folder}} -name '._*' -delete, {_PATTERN}",
    ),
    b"version https://git-lfs": (
        "is a Git LFS pointer, not the file itself",
        f"Fetch the file: git lfs pull, {_PATTERN}",
    ),
    b"\x93NUMPY": (
        "is a numpy array (.npy), not a state dict",
        f"If these are data, rename it to .npy and pass it with --data, {_PATTERN}",
    ),
}


def describe_foreign(path: Path) -> tuple[str, str] | None:
    """Return what a file is and what to do, as the two sentences of an error.

    None for a file of torch.save, and for one that is of no known kind.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(64)
        if start.startswith(b"PK\x03\x04"):
            return _archive(path)
        found = describe_by_magic(path)
        if found is not None:
            return found
        if any(magic in start for magic in _MAGIC_OF_TORCH):
            return None
        if _is_safetensors(start, file):
            renamed = (
                f"{shlex.quote(str(path))} {shlex.quote(str(path.with_suffix('.safetensors')))}"
            )
            return "is a safetensors file", f"Rename it: mv {renamed}, {_PATTERN}"
        if _is_pickle(file):
            command = conversion(path, "pickle.loads(f.read_bytes())", "pickle")
            return "is a plain pickle, not written by torch.save", (
                "Convert it if you trust whoever made it, since this runs its code:"
                f" {command}, {_PATTERN}"
            )
    return None


def describe_by_magic(path: Path) -> tuple[str, str] | None:
    """Return what a file with any suffix is by its first bytes, as `describe_foreign` does."""
    with path.open("rb") as file:
        start = file.read(64)
    for magic, (what, advice) in _BY_MAGIC.items():
        if start.startswith(magic):
            return what, advice.format(folder=shlex.quote(str(path.parent)))
    if start.startswith(b"PK\x03\x04") and path.suffix.lower() == ".safetensors":
        return "is a zip archive, like those that torch.save writes", _rename(path, ".pt")
    return None


def _rename(path: Path, suffix: str) -> str:
    names = shlex.join(map(str, ("mv", path, path.with_suffix(suffix))))
    return f"Rename it: {names}, {_PATTERN}"


def is_of_torch_save(path: Path) -> bool:
    """Return whether a file with any suffix is one of torch.save, by its contents."""
    with suppress(OSError, zipfile.BadZipFile), path.open("rb") as file:
        start = file.read(64)
        if start.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(path) as archive:
                return any(name.endswith("/data.pkl") for name in archive.namelist())
        return any(magic in start for magic in _MAGIC_OF_TORCH)
    return False


def renaming(paths: Sequence[Path]) -> str:
    """Return the command that gives files of torch.save in one folder a suffix that is read.

    All of them have the suffix of the first. No file that is there is replaced.
    """
    suffix = suffix_of(paths[0])
    if len(paths) == 1:
        renamed = paths[0].with_name(f"{paths[0].name.removesuffix(suffix)}.pt")
        if renamed.exists():
            renamed = paths[0].with_name(f"{paths[0].name}.pt")
        return shlex.join(map(str, ("mv", paths[0], renamed)))
    files = " ".join(shlex.quote(str(path)) for path in paths)
    if suffix and len(paths) > _MOST_NAMES:
        files = f"{shlex.quote(str(paths[0].parent))}/*{suffix}"
    stem = f"${{f%{suffix}}}" if suffix else "$f"
    return f'for f in {files}; do mv "$f" "{stem}.pt"; done'


def suffix_of(path: Path) -> str:
    """Return the suffix of a file; "" where it is a part of a number, as in `lr_0.01`."""
    return path.suffix if path.suffix[1:].isalpha() else ""


def line_of_python(code: str) -> str:
    """Return a command for the shell that runs a line of Python."""
    return f"python -c {shlex.quote(code)}"


def conversion(path: Path, read: str, *modules: str) -> str:
    """Return the command that saves a file, and those like it beside it, into a new folder.

    `read` is the code that gives the state dict of the file `f`; `modules` are what it imports.
    """
    names = ", ".join(sorted(("pathlib", "torch", *modules)))
    folder = json.dumps(str(path.parent), ensure_ascii=False)  # in quotes, as Python reads them
    name = '(f.stem + ".pt")' if path.suffix == _NPZ else "f.name"
    return line_of_python(
        f'import {names}; out = pathlib.Path("converted"); out.mkdir(exist_ok=True);'
        f" [torch.save({read}, out / {name})"
        f' for f in pathlib.Path({folder}).glob("[!.]*{path.suffix}")]'
    )


def _archive(path: Path) -> tuple[str, str] | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] or name for name in archive.namelist()}
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError):
        return None
    if "constants.pkl" in names:
        read = 'torch.jit.load(str(f), map_location="cpu").state_dict()'
        return "is a TorchScript file, not a state dict", (
            f"Convert it: {conversion(path, read)}, {_PATTERN}"
        )
    if "archive_format" in names or any(name.endswith("exported_program.json") for name in names):
        return "is a torch.export program, not a state dict", (
            f"Convert it: {conversion(path, 'torch.export.load(str(f)).state_dict')}, {_PATTERN}"
        )
    if names and all(name.endswith(".npy") for name in names):
        return "is an archive of numpy arrays (.npz), not a state dict", (
            f"Convert it: {conversion_of_arrays(path)}, {_PATTERN}"
        )
    return None


def conversion_of_arrays(path: Path) -> str:
    """Return the command that saves an .npz file, and those like it beside it, as state dicts."""
    return conversion(path, "{k: torch.from_numpy(v) for k, v in numpy.load(f).items()}", "numpy")


def _is_safetensors(start: bytes, file: BinaryIO) -> bool:
    length = int.from_bytes(start[:8], "little")
    return start[8:9] == b"{" and 2 <= length <= file.seek(0, 2) - 8


def _is_pickle(file: BinaryIO) -> bool:
    """Return whether a file is one pickle from its first byte to its last."""
    file.seek(0)
    try:
        for _ in pickletools.genops(file):
            pass
    except Exception:  # bytes that are no pickle make pickletools raise anything
        return False
    return not file.read(1)
