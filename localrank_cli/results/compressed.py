"""What `localrank compress` writes: weights, the program that loads them, and what it measured."""

import csv
import hashlib
import json
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localrank_cli.errors import OutputError, one_line
from localrank_cli.files import read_regular
from localrank_cli.results.columns import on_one_line
from localrank_cli.results.write import (
    cannot_write,
    make_folder,
    replacing,
    write_bytes,
    write_json,
)
from localrank_cli.validation import loads

if TYPE_CHECKING:  # figures read the names here, without torch
    from torch import Tensor

LOADER_NAME = "load.py"
FACTS_NAME = "compress.json"
UNFINISHED_NAME = "compress.unfinished.json"
BUDGETS_NAME = "budgets.csv"
LAYERS_NAME = "layers.csv"
_MOST_BYTES = 2**28  # of an unfinished run: a row for each layer and budget
# The columns of budgets.csv that a figure needs.
BUDGETS = ("method", "budget", "weights", "loss", "loss_increase_se")
LATENCY = "milliseconds_at_batch_1"  # the column of the original and of each result
CONFIG_NAME, HF_NAME = "config.json", "model.safetensors"  # the names of transformers
# The same for every network: ranks are in the shapes. Works without localrank and safetensors.
LOADER = """\
import json, pathlib, struct, torch
from torch import nn
TYPES = dict(F64="float64", F32="float32", F16="float16", BF16="bfloat16", I64="int64",
             I32="int32", I16="int16", I8="int8", U8="uint8", BOOL="bool")
def load(model, path):  # model: the network as it was; returned with factors and weights
    raw = bytearray(pathlib.Path(path).read_bytes())
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    entries = {k: v for k, v in json.loads(raw[8:start]).items() if k != "__metadata__"}
    state = {k: torch.frombuffer(raw[start + v["data_offsets"][0]:start + v["data_offsets"][1]],
             dtype=getattr(torch, TYPES[v["dtype"]])).reshape(v["shape"]) for k, v in entries.items()}
    for name, old in list(model.named_modules()):
        a, b = (state.get(f"{name}.{i}.weight") for i in "01")
        if a is None or b is None or not hasattr(old, "weight"): continue
        pair = [nn.Linear(a.shape[1], len(a), bias=False), nn.Linear(*b.shape[::-1])] if a.ndim == 2 else [
            nn.Conv2d(a.shape[1], len(a), a.shape[2:], old.stride, old.padding, old.dilation, bias=False,
                      padding_mode=old.padding_mode), nn.Conv2d(b.shape[1], len(b), 1)]
        model.get_submodule(name.rpartition(".")[0])._modules[name.split(".")[-1]] = nn.Sequential(*pair).to(old.weight).train(old.training)
    return model.load_state_dict(state) and model
"""  # noqa: E501  # at most twenty lines


def weights_name(share: float, *, dense: bool = False) -> str:
    """Return the name of the file of a budget: `factored_0.5.safetensors`."""
    return f"{'dense' if dense else 'factored'}_{share:g}.safetensors"


def hf_name(share: float) -> str:
    """Return the name of the folder of a budget that `from_pretrained` loads: `hf_0.5`."""
    return f"hf_{share:g}"


def prepare_folder(
    folder: Path,
    inputs: Iterable[Path] = (),
    *,
    overwrite: bool,
    is_unfinished: bool = False,
) -> None:
    """Create the folder of the results; the files in `inputs` are never overwritten.

    Earlier results are overwritten if `overwrite` is set, or if they are of the same run, which was
    interrupted (`is_unfinished`). Links are not: the file that one leads to may be anyone's, and
    the folder another program's.

    Raises:
        OutputError: If a file that would be written exists, or the folder cannot be created.
    """
    make_folder(folder)
    held = [path for path in folder.iterdir() if _is_written(path.name)]
    for path in folder.glob("hf_*"):
        held += [path] if path.is_symlink() else []
        held += [path / name for name in (CONFIG_NAME, HF_NAME) if os.path.lexists(path / name)]
    for path in sorted(held):
        if any(one.exists() and path.samefile(one) for one in inputs):
            raise OutputError(
                f"{path}: is read by this command, and its results could replace it.",
                "Name another folder with -o.",
            )
        if path.is_symlink() or not path.is_file():
            kind = "a link" if path.is_symlink() else "not a file"
            raise OutputError(
                f"{path}: is {kind}, but has the name of a result.",
                "Remove it, or name another folder with -o.",
            )
        if not (overwrite or is_unfinished):
            raise OutputError(
                f"{path}: already exists.",
                "Pass --overwrite to replace such files, or name another folder with -o.",
            )


def _is_written(name: str) -> bool:
    """Return whether results may have a file of this name."""
    is_weights = name.startswith(("factored_", "dense_")) and name.endswith(".safetensors")
    names = {FACTS_NAME, UNFINISHED_NAME, LOADER_NAME, BUDGETS_NAME, LAYERS_NAME}
    return is_weights or name in names


@dataclass(frozen=True)
class Found:
    """What was found for one budget."""

    budgets: tuple[dict[str, object], ...]  # rows of budgets.csv
    layers: tuple[dict[str, object], ...]  # rows of layers.csv
    verdicts: tuple[str, ...]
    files: dict[str, str]  # the weights that were written -> their SHA-256
    keeps_limit: bool


def has_unfinished(folder: Path) -> bool:
    """Return whether a run in a folder was interrupted."""
    path = folder / UNFINISHED_NAME
    return path.is_file() and not path.is_symlink()


@dataclass
class Unfinished:
    """The budgets of a run that has not ended, in a file beside the weights.

    Args:
        folder: The folder of the results.
        key: What decides the numbers.
        is_resumed: Whether an earlier run with the same key began to write.
    """

    folder: Path
    key: Mapping[str, object]
    is_resumed: bool = False
    _found: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def at(cls, folder: Path, key: Mapping[str, object], *, overwrite: bool) -> "Unfinished":
        """Return what an interrupted run left in a folder; nothing where it is to be replaced.

        Raises:
            OutputError: If it was another run.
        """
        key = json.loads(json.dumps(key))
        path = folder / UNFINISHED_NAME
        if overwrite or not has_unfinished(folder):
            return cls(folder, key)
        advice = "Pass --overwrite to start over, or name another folder with -o."
        try:
            earlier, found = _checked(read_regular(path, _MOST_BYTES))
        except OSError as error:
            raise OutputError(
                f"{path}: cannot be read ({error.strerror or error}).", advice
            ) from error
        except ValueError as error:
            raise OutputError(
                f"{path}: was not left by an interrupted run ({one_line(error)}).", advice
            ) from error
        differing = [name for name in {**earlier, **key} if earlier.get(name) != key.get(name)]
        if differing:
            raise OutputError(
                f"{folder}: an interrupted run there had different settings:"
                f" {', '.join(differing)}.",
                advice,
            )
        return cls(folder, key, True, found)

    @property
    def n_kept(self) -> int:
        """The number of budgets that are done."""
        return len(self._found)

    def found(self, share: float) -> Found | None:
        """Return what was found for a budget; None if it was not finished."""
        held = self._found.get(f"{share:g}")
        if held is None:
            return None
        return Found(
            tuple(held["budgets"]),
            tuple(held["layers"]),
            tuple(held["verdicts"]),
            held["files"],
            held["keeps_limit"],
        )

    def begin(self) -> None:
        """Mark the folder as unfinished, and remove the facts of an earlier run's weights."""
        self._write()
        try:
            (self.folder / FACTS_NAME).unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self.folder / FACTS_NAME, error) from error

    def keep(self, share: float, found: Found) -> None:
        """Keep a budget whose weights are written."""
        self._found[f"{share:g}"] = asdict(found)
        self._write()

    def end(self) -> None:
        """Remove the file: everything is in the results."""
        (self.folder / UNFINISHED_NAME).unlink(missing_ok=True)

    def _write(self) -> None:
        content = {"key": self.key, "found": self._found}
        write_json(
            self.folder / UNFINISHED_NAME, {"sha256": _sum_of(self.key, self._found), **content}
        )


def _sum_of(key: object, found: object) -> str:
    """Return a checksum of what is kept of an unfinished run."""
    return hashlib.sha256(json.dumps([key, found], sort_keys=True).encode()).hexdigest()


def _checked(content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the key and the budgets of an unfinished run; a ValueError says what is wrong."""
    from localrank_cli.results.schema import Unfinished as Content
    from localrank_cli.results.schema import check

    # A network that diverged has a loss that is not finite.
    held: Any = loads(content.decode("utf-8"), non_finite=True)
    check(Content, held)
    if held["sha256"] != _sum_of(held["key"], held["found"]):
        raise ValueError("its checksum differs: it has changed since")
    return held["key"], held["found"]


def write_weights(
    path: Path, state: Mapping[str, "Tensor"], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as a safetensors file, whole or not at all."""
    from safetensors.torch import save

    content = save(dict(state), None if metadata is None else dict(metadata))
    write_bytes(path, *_ordered(content))


def _ordered(content: bytes) -> tuple[bytes, memoryview]:
    """Return a safetensors file with its metadata in order, which is another one at each save.

    In two parts, since a copy of the weights may not fit.
    """
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return struct.pack("<Q", len(text)) + text, memoryview(content)[8 + length :]


def write_hf(
    folder: Path,
    config: Mapping[str, object],
    state: Mapping[str, "Tensor"],
    metadata: Mapping[str, str],
) -> None:
    """Write a folder as `save_pretrained` does."""
    make_folder(folder)
    write_weights(folder / HF_NAME, state, {**metadata, "format": "pt"})
    write_json(folder / CONFIG_NAME, config)


def write_loader(folder: Path) -> None:
    """Write the program that loads the weights."""
    write_bytes(folder / LOADER_NAME, LOADER.encode())


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows of equal keys as CSV; None is an empty cell."""
    with replacing(path) as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)


def write_facts(folder: Path, facts: Mapping[str, object]) -> None:
    """Write what was measured, and of what; last, so that a folder with it is whole."""
    write_json(folder / FACTS_NAME, facts)


def _cell(value: object) -> object:
    if isinstance(value, str):
        return on_one_line(value)  # names of layers come from the checkpoint
    return "" if value is None else value
