"""Random and corrupted inputs, and what must hold for each: a result, or an error of the tool."""

import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from safetensors.torch import save

from localrank_cli.checkpoints.names import StepRule
from localrank_cli.checkpoints.reading import read_checkpoint
from localrank_cli.checkpoints.series import find_checkpoints
from localrank_cli.errors import LocalrankError
from localrank_cli.options.folder import read_folder_settings
from localrank_cli.points.files import load_array
from localrank_cli.results.journal import Journal
from tests.checkpoints.dcp_writer import save_dcp
from tests.cli.program import invoke
from tests.faults.spoiled import safetensors, sharded
from tests.helpers import save_series, weights

Check = Callable[[Any, Path], None]


@dataclass(frozen=True)
class Kind:
    """One kind of input."""

    inputs: SearchStrategy[Any]
    check: Check  # gets an input and an empty place that is its own
    weight: float = 1.0  # of the number of inputs: slow ones get fewer


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=10,
)
SIZES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 12, 2**31, 2**62, 2**63, -1]), max_size=3)
TENSOR = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F64", "BF16", "I64", "BOOL", "U8", "F8_E4M3", "X", ""]),
        "shape": SIZES,
        "data_offsets": st.lists(st.sampled_from([0, 4, 12, 48, 2**62, -1]), max_size=3),
    }
)
NAMES = st.sampled_from(["0.weight", "0.bias", "2.weight", "__metadata__", "a", "", "\n"])
HEADERS = st.dictionaries(NAMES, TENSOR | JSON, max_size=4)
# What is done to the bytes of a whole file: (where, as a share of its length; what).
WOUNDS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=0, max_size=9), st.booleans()),
    min_size=1,
    max_size=4,
)


def wounded(whole: bytes, wounds: list[tuple[float, bytes, bool]]) -> bytes:
    """Bytes written over, or put in place of all that follows."""
    data = whole
    for share, put, cut in wounds:
        at = int(share * len(data))
        data = data[:at] + put + (b"" if cut else data[at + len(put) :])
    return data


@cache
def whole(name: str) -> bytes:
    """A file without a fault."""
    stream = io.BytesIO()
    x = torch.linspace(-1, 1, 36).reshape(9, 4)
    if name in ("x.npy", "x.npz"):
        (np.save if name == "x.npy" else np.savez_compressed)(stream, x.numpy())
    elif name.endswith(".safetensors"):
        return save({"x": x} if name.startswith("x") else weights())
    else:
        legacy = name.endswith(".bin")
        thing = x if name.startswith("x") else {"model": weights(), "step": 7, "args": [1, "a"]}
        torch.save(thing, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def _read(path: Path) -> None:
    for header_only in (True, False):
        with contextlib.suppress(LocalrankError):
            content = read_checkpoint(path, header_only=header_only)
            assert content.states


def _checkpoint(name: str) -> Check:
    def check(wounds: Any, place: Path) -> None:
        (place / name).write_bytes(wounded(whole(name), wounds))
        _read(place / name)

    return check


def _header(header: Any, place: Path) -> None:
    (place / "step_7.safetensors").write_bytes(safetensors(header, b"\0" * 48))
    _read(place / "step_7.safetensors")


def _data(name: str) -> Check:
    def check(wounds: Any, place: Path) -> None:
        (place / name).write_bytes(wounded(whole(name), wounds))
        with contextlib.suppress(LocalrankError):
            load_array(place / name, "")

    return check


def _index(content: Any, place: Path) -> None:
    index = sharded(place)
    if isinstance(content, tuple):  # JSON knows none
        index.write_bytes(wounded(index.read_bytes(), *content))
    else:
        index.write_text(json.dumps(content))
    _read(index)


@cache
def _metadata() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save_dcp(Path(folder) / "x", {"model": weights(), "step": 7})
        return (Path(folder) / "x/.metadata").read_bytes()


def _dcp(wounds: Any, place: Path) -> None:
    (place / ".metadata").write_bytes(wounded(_metadata(), wounds))
    (place / "__0_0.distcp").write_bytes(b"\0" * 4000)
    _read(place / ".metadata")


def _toml(text: str, place: Path) -> None:
    (place / "localrank.toml").write_text(text, encoding="utf-8", errors="surrogatepass")
    with contextlib.suppress(LocalrankError):
        read_folder_settings(place)


def _name(name: str, place: Path) -> None:
    try:
        (place / name).write_bytes(whole("step_7.safetensors"))
    except (OSError, ValueError):  # no name for a file
        return
    with contextlib.suppress(LocalrankError):
        for file in find_checkpoints(place, (), "", (), StepRule().names).files:
            assert file.name_step is None or file.name_step >= 0
            assert file.name_epoch is None or file.name_epoch >= 0


def _journal(wounds: Any, place: Path) -> None:
    path = place / "j"
    with Journal(path) as journal:
        for name in "abc":
            journal.append({"kind": "note", "run": "r", "checkpoint": name}, [name] * 9)
    path.write_bytes(wounded(path.read_bytes(), wounds))
    with contextlib.suppress(LocalrankError), Journal(path) as journal:
        for entry in journal.entries("note"):
            # Whatever is left of it is what was written, never half of it.
            assert journal.body(entry) == [entry.head["checkpoint"]] * 9
        journal.append({"kind": "note", "run": "r", "checkpoint": "d"}, ["d"] * 9)


def _options(words: list[str], place: Path) -> None:
    run = save_series(place / "run", (0,))
    outcome = invoke("analyze", str(run), "--device", "cpu", "--points", "2", *words)
    assert outcome.code in {0, 1, 2, 3}, (words, outcome.stderr)
    assert "Traceback" not in outcome.stderr
    assert outcome.code in {0, 3} or "localrank: error: " in outcome.stderr


KEYS = st.sampled_from(
    ["model", "data", "points", "seed", "layers", "atol", "rtol", "noise", "dtype", "columns",
     "wrt", "activation", "input-metric", "data-key", "model-arg", "x"]
)  # fmt: skip
VALUES = st.sampled_from(
    ['"normal:4"', '"a.py:b"', '"../x.npy"', "1", "-1", "0.5", "nan", "inf", "1e400", "true",
     "[]", "[1, 2]", '["*", "!0"]', "{}", "{beta = 2.0}", "{run = 1}", "9999999999999999999999",
     '"eps"', '"\\u0000"', "1979-05-27", "[[[]]]", "'''\n'''"]
)  # fmt: skip
TOML = st.lists(st.tuples(KEYS, VALUES), max_size=4).map(
    lambda pairs: "".join(f"{key} = {value}\n" for key, value in pairs)
)
FLAGS = st.sampled_from(
    ["--data", "--layers", "--exclude", "--wrt", "--atol", "--rtol", "--noise", "--steps",
     "--every", "--last", "--pattern", "--step-regex", "--step-from", "--dtype", "--memory",
     "--seed", "--points", "--on-error", "--weights", "--data-scale", "--data-key", "--model-arg",
     "--activation", "--input-metric", "-q", "-v", "--nope"]
)  # fmt: skip
WORDS = st.sampled_from(
    ["normal:4", "normal:0", "uniform:4x", "normal:99999999999999999999", "0", "-1", "1e308",
     "nan", "eps", "*", "[", "", "0:5", "5:0:2", ":::", "(", "(?P<step>\\d+)", "skip", "float32",
     "1B", "9EiB", "ema", "raw", "data", "identity", "relu", "x=1", "\u0000", "\udc80", "🙂", "2"]
)  # fmt: skip
STEMS = st.lists(
    st.sampled_from(["step", "epoch", "iter", "checkpoint", "_", "-", "=", "1", "007", "9" * 40,
                     "²", "٣", "\n", "[", " ", "🙂", "best", "last", "optimizer", ".", "\x1b[31m"]),
    max_size=8,
).map("".join)  # fmt: skip
ENDINGS = st.sampled_from([".safetensors", ".pt", ".pth.tar", ".SAFETENSORS", ".bin", ""])

KINDS: dict[str, Kind] = {
    "headers of safetensors": Kind(HEADERS | st.binary(max_size=60), _header),
    "safetensors, corrupted": Kind(WOUNDS, _checkpoint("step_7.safetensors")),
    ".pt, corrupted": Kind(WOUNDS, _checkpoint("step_7.pt")),
    ".bin from torch < 1.6, corrupted": Kind(WOUNDS, _checkpoint("step_7.bin")),
    "indexes of shards": Kind(
        st.tuples(WOUNDS) | JSON | st.fixed_dictionaries({"weight_map": JSON}), _index
    ),
    "metadata of DCP, corrupted": Kind(WOUNDS, _dcp),
    "data in .npy, corrupted": Kind(WOUNDS, _data("x.npy")),
    "data in .npz, corrupted": Kind(WOUNDS, _data("x.npz")),
    "data in .pt, corrupted": Kind(WOUNDS, _data("x.pt")),
    "data in .safetensors, corrupted": Kind(WOUNDS, _data("x.safetensors")),
    "localrank.toml": Kind(TOML | st.text(max_size=40), _toml),
    "names of checkpoints": Kind(st.builds(str.__add__, STEMS, ENDINGS), _name),
    "journals, corrupted": Kind(WOUNDS, _journal),
    "options of analyze": Kind(
        st.lists(st.one_of(FLAGS, WORDS), max_size=5)
        | st.lists(st.tuples(FLAGS, WORDS), max_size=3).map(
            lambda pairs: ["--data", "normal:4", *(word for pair in pairs for word in pair)]
        ),
        _options,
        0.1,
    ),
}
