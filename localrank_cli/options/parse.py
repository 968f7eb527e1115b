"""Readers of option values, and the types StepRange, Part, Shard and Preset that they return.

A reader receives a text (from the command line, localrank.toml or Python, where the same text means
the same) or a value of TOML or Python. It returns values that it does not know unchanged, for their
type to be checked.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from numbers import Integral, Number, Real
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, TypeVar

from localrank_cli.errors import SettingsError
from localrank_cli.points.advice import advice_of_array
from localrank_cli.points.defaults import MOST_AXES

AUTO = "auto"

_SHARD = re.compile(r"^(\d+)/(\d+)$")
_WHOLE = re.compile(r"^[+-]?[0-9]{1,40}$")
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?$", flags=re.IGNORECASE)
_LIMIT = re.compile(r"^\s*(\d{1,9}(?:\.\d{1,17})?)\s*(%|nats)\s*$")
_INCHES = re.compile(r"^(\d+(?:\.\d+)?)x(\d+(?:\.\d+)?)$", flags=re.IGNORECASE)
_LARGEST = 100.0  # inches; a figure of 100 x 100 has 400 million pixels at 200 dpi
_LENGTHS = re.compile(r"^\d{1,18}(?:x\d{1,18})*$")
_RANGE = re.compile(r"^\s*(\d*)\s*(?:(:)\s*(\d*)\s*(?::\s*(\d+)\s*)?)?$")

# A path has one slash where the user wrote two. One letter is a drive of Windows.
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+", re.IGNORECASE)


class UnfitError(ValueError):
    """A value of an option cannot be read.

    Args:
        value: The offending part.
        expected: Such as "expected a number".
        advice: A sentence that says what to do, or "".
    """

    def __init__(self, value: object, expected: str, advice: str = "") -> None:
        super().__init__(expected)
        self.value = value
        self.expected = expected
        self.advice = advice


@dataclass(frozen=True)
class StepRange:
    """Steps from first to last, both included, in strides from the first."""

    first: int = 0
    last: int | None = None  # None: to the end
    stride: int = 1

    def __contains__(self, step: int) -> bool:
        if step < self.first or (self.last is not None and step > self.last):
            return False
        return (step - self.first) % self.stride == 0


class HasStep(Protocol):
    """An item of a series, whose step may be unknown."""

    @property
    def step(self) -> int | None:
        """The training step."""


_Item = TypeVar("_Item", bound=HasStep)


@dataclass(frozen=True)
class Part:
    """A part of a series; by default all of it."""

    steps: StepRange | None = None
    every: int = 1
    last: int | None = None

    @property
    def is_all(self) -> bool:
        """Whether it is the whole series."""
        return self == Part()

    def of(self, items: Sequence[_Item]) -> list[_Item]:
        """Return the items in the part: in the range of steps, of these every K-th, then the last.

        `items` are by step. Those without a step come last and belong to no range.
        """
        steps = self.steps
        picked = [
            item
            for item in items
            if steps is None or (item.step is not None and item.step in steps)
        ][:: self.every]
        return picked if self.last is None else picked[-self.last :]


def steps(value: object) -> object:
    """Read a range of steps: `A:B` with both ends included, `A:B:C`, `A:`, `:B` or one step `A`."""
    if isinstance(value, StepRange):
        return value
    text = str(whole(value))
    match = _RANGE.match(text)
    if match is None or not text.strip():
        raise UnfitError(
            value,
            "expected a range of steps",
            "Ranges are A:B (ends included), A:B:C (every C steps from A on), A: and :B.",
        )
    first, colon, last, stride = match.groups()
    begin = int(first or 0)
    end = int(last) if last else None if colon else begin
    if (end is not None and end < begin) or (stride is not None and int(stride) == 0):
        raise UnfitError(value, "contains no step", "Give A:B with A at most B.")
    return StepRange(begin, end, int(stride or 1))


@dataclass(frozen=True)
class Shard:
    """One of several equal parts of the work."""

    index: int  # from 0
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def file_name(self) -> str:
        """The name of its table, without a suffix."""
        return f"shard-{self.index:05d}-of-{self.count:05d}"


def shard(value: object, environment: Mapping[str, str] = os.environ) -> object:
    """Read `I/N` with I from 0 to N-1, or `auto`: the rank that Slurm or torchrun set."""
    if not isinstance(value, str):
        return value
    if value.strip().lower() == AUTO:
        return _from_environment(environment)
    match = _SHARD.match(value.strip())
    if match is None:
        raise UnfitError(value, "not of the form I/N", "Give 0/8 to 7/8, or auto.")
    index, count = int(match.group(1)), int(match.group(2))
    if index >= count:
        raise UnfitError(
            value,
            "counting starts at 0",
            f"Of {count} shards the first is 0/{count} and the last {count - 1}/{count}."
            if count
            else "Give at least one shard: 0/1.",
        )
    return Shard(index, count)


def array_size(environment: Mapping[str, str]) -> int | None:
    """Return the number of tasks in this process's Slurm array; None outside of an array."""
    count = _number(environment, "SLURM_ARRAY_TASK_COUNT")
    return count if "SLURM_ARRAY_TASK_ID" in environment else None


def _from_environment(environment: Mapping[str, str]) -> Shard:
    task = _number(environment, "SLURM_ARRAY_TASK_ID")
    if task is not None:
        low, high, count = (
            _number(environment, f"SLURM_ARRAY_TASK_{name}") for name in ("MIN", "MAX", "COUNT")
        )
        if low is None or high is None or count is None or high - low + 1 != count:
            raise SettingsError(
                f"--shard auto: the array has {count} tasks, from {low} to {high}, so they are not"
                " numbered consecutively.",
                "Submit it with --array=0-7 (no step, no list), or give --shard I/N.",
            )
        return Shard(task - low, count)
    # Batch scripts have a SLURM_PROCID too, although one process runs there for many tasks.
    if environment.get("SLURM_STEP_ID", "").isdecimal():
        rank, size = _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_NTASKS")
        if rank is not None and size is not None:
            return Shard(rank, size)
    rank, size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    if rank is not None and size is not None and rank < size:
        return Shard(rank, size)
    raise SettingsError(
        "--shard auto: neither a Slurm array, nor srun, nor RANK and WORLD_SIZE say which part this"
        " process computes.",
        "Give --shard I/N.",
    )


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    return int(text) if text.isdecimal() else None


class Preset(StrEnum):
    """Names of the rules of published work."""

    patel2024 = "patel2024"
    feng2022 = "feng2022"
    numpy = "numpy"


def preset(value: object) -> object:
    """Read the name of a preset."""
    if isinstance(value, str) and value not in list(Preset):
        raise UnfitError(value, "unknown", f"Choose one of {', '.join(Preset)}.")
    return Preset(value) if isinstance(value, str) else value


def number(value: object) -> object:
    """Read a number, or the text of one."""
    try:
        if isinstance(value, str):
            return float(value)
        if isinstance(value, Real) and not isinstance(value, bool):
            return float(value)
    except ValueError:
        raise UnfitError(value, "expected a number") from None
    except OverflowError:
        raise UnfitError(value, "expected a number that fits in float64") from None
    return value


def whole(value: object) -> object:
    """Read a whole number, or the text of one."""
    if isinstance(value, str) and _WHOLE.match(value.strip()):
        return int(value)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return value


LOG = "log"


def pace(value: object) -> object:
    """Read how often to measure: a number of steps, or `log`."""
    found = whole(value)
    if isinstance(found, str) and found.strip().lower() == LOG:
        return LOG
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise UnfitError(value, "expected a whole number of at least 1, or log")
    return found


def factor(value: object) -> object:
    """Read a factor: a number other than 0, or a fraction such as the 1/255 of pixels."""
    if isinstance(value, str):
        above, _, below = value.partition("/")
        try:
            result: object = float(above) / float(below or 1)
        except (ValueError, ZeroDivisionError):
            raise UnfitError(value, "expected a number, or a fraction such as 1/255") from None
    else:
        result = number(value)
    if result == 0:
        raise UnfitError(value, "expected a number other than 0")
    return result


def share(value: object) -> object:
    """Read a share: a number such as 0.02, or a percentage such as 2%."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError:
            raise UnfitError(value, "expected a number, or a percentage such as 2%") from None
    return number(value)


def relative(value: object) -> object:
    """Read a relative tolerance: a number, or `eps`, which is None."""
    if isinstance(value, str) and value.strip().lower() == "eps":
        return None
    try:
        return number(value)
    except UnfitError:
        raise UnfitError(value, "expected a number, or eps") from None


def size(value: object) -> object:
    """Read a number of bytes: `2GiB`, `512MB`, `1.5G` or plain bytes."""
    if not isinstance(value, str):
        return whole(value)
    match = _SIZE.match(value.strip())
    if match is None:
        raise UnfitError(value, "expected a size", "Write 2GiB, 512MB or 1.5G.")
    digits, prefix, binary = match.groups()
    # MB is 1000^2 bytes, as disks and the SI have it; MiB and a bare M are 1024^2, as in Slurm.
    base = 1000 if value.strip().lower().endswith("b") and not binary else 1024
    return int(float(digits) * base ** " kmgt".index(prefix.lower() or " "))


def inches(value: object) -> object:
    """Read the width and height of a figure, `6.5x4`."""
    match = _INCHES.match(str(value).strip())
    if match is None:
        raise UnfitError(value, "not of the form WxH, such as 6.5x4")
    width, height = (float(part) for part in match.groups())
    if not (2 <= width <= _LARGEST and 1.5 <= height <= _LARGEST):
        raise UnfitError(value, f"must be from 2x1.5 to {_LARGEST:g}x{_LARGEST:g} inches")
    return width, height


def shape(value: object) -> object:
    """Read the shape of a point: `1x28x28`, `784`, or whole numbers in a list."""
    if isinstance(value, str):
        if not _LENGTHS.match(value.strip().lower()):
            raise UnfitError(
                value, "not of the form 1x28x28", "Give the shape of one point, without the points."
            )
        lengths: tuple[object, ...] = tuple(int(one) for one in value.strip().lower().split("x"))
    else:
        lengths = tuple(whole(one) for one in several(value))
    if not lengths or any(isinstance(one, int) and one < 1 for one in lengths):
        raise UnfitError(value, "has an axis without entries", "Write every length: 1x28x28.")
    if len(lengths) > MOST_AXES:
        raise UnfitError(value, f"has {len(lengths)} axes, expected at most {MOST_AXES}")
    return lengths


def minutes(value: object) -> object:
    """Read a time limit as sbatch does, in minutes, rounded up.

    The forms are `90` (minutes), `90:00`, `1:30:00`, `2-12`, `2-12:30` and `2-12:30:00`.
    """
    if not isinstance(value, str):
        return whole(value)
    days, dash, rest = value.strip().rpartition("-")
    parts = rest.split(":")
    if not all(part.isdecimal() for part in ([days] if dash else []) + parts) or len(parts) > 3:
        raise UnfitError(value, "expected a time", "Write 90 (minutes), 1:30:00 or 2-12.")
    numbers = [int(part) for part in parts]
    if dash:
        hours, whole_minutes, seconds = [*numbers, 0, 0][:3]
    else:
        padded = {1: [0, *numbers, 0], 2: [0, *numbers], 3: numbers}[len(numbers)]
        hours, whole_minutes, seconds = padded
    return (int(days or 0) * 24 + hours) * 60 + whole_minutes + -(-seconds // 60)


def globs(value: object) -> tuple[str, ...]:
    """Read patterns: texts with commas between patterns; drop empty patterns."""
    texts = _texts(value, "expected a string or a list of strings")
    parts = tuple(part.strip() for text in texts for part in text.split(","))
    if texts and not any(parts):
        raise UnfitError(texts[-1], "is empty", "Give a pattern, or leave the option out.")
    return tuple(part for part in parts if part)


def joined(value: object) -> object:
    """Read one text, or a list of texts as one with commas between."""
    return ",".join(_texts(value, "expected a string or a list of strings"))


def axes(value: object) -> object:
    """Read `AXIS` and `NAME=AXIS`, each an integer or a text."""
    return globs(
        tuple(
            str(one) if isinstance(one, int) and not isinstance(one, bool) else one
            for one in several(value)
        )
    )


def several(value: object) -> tuple[object, ...]:
    """Return one value or several as a tuple; a mapping is not several values."""
    if isinstance(value, str | bytes | Mapping | Number) or not isinstance(value, Iterable):
        return (value,)
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:  # an array that is a number
        return (value.item(),)
    return tuple(value)


def budgets(value: object) -> object:
    """Read shares with commas between them."""
    return tuple(number(part) for part in globs(tuple(map(str, several(value)))))


@dataclass(frozen=True)
class LossLimit:
    """By how much a loss may increase."""

    value: float
    is_share: bool  # of the original's loss; else in the loss's own unit

    def __str__(self) -> str:
        return f"{100 * self.value:g}%" if self.is_share else f"{self.value:g}nats"


def loss_limit(value: object) -> object:
    """Read `1%` or `0.02nats`."""
    match = _LIMIT.match(value) if isinstance(value, str) else None
    if match is None:
        return value if isinstance(value, LossLimit) else _not_a_limit(value)
    is_share = match.group(2) == "%"
    found = float(match.group(1)) / (100 if is_share else 1)
    return LossLimit(found, is_share) if found > 0 else _not_a_limit(value)


def _not_a_limit(value: object) -> object:
    raise UnfitError(value, "expected a positive share or number of nats", "Write 1% or 0.02nats.")


def places(value: object) -> object:
    """Read one path or address, or several."""
    return _each_path(value, place)


def paths(value: object) -> object:
    """Read one path or several."""
    return _each_path(value, path)


def _each_path(value: object, read: Callable[[object], Path]) -> object:
    if _is_module(value) or hasattr(value, "dtype"):  # a network or a tensor can be iterated over
        read(value)
    _refuse_series(value)
    return tuple(read(one) for one in ((value,) if isinstance(value, PathLike) else several(value)))


def _refuse_series(value: object) -> None:
    """Refuse a list or table of state dicts or networks, with the lines that save it."""
    if isinstance(value, Mapping) and all(str(key).isdecimal() for key in value):
        pairs, held = "series.items()", tuple(value.values())
    elif isinstance(value, list | tuple):
        pairs, held = "enumerate(series)", tuple(value)
    else:
        return
    if len(held) < 2 or not all(_is_module(one) or isinstance(one, Mapping) for one in held):
        return
    one = "one.state_dict()" if _is_module(held[0]) else "one"
    raise UnfitError(
        value,
        "expected a path",
        f"Weights are read from files: for step, one in {pairs}: torch.save({one},"
        " f'run/step_{step}.pt'). Then pass the folder 'run'.",
    )


def path(value: object) -> Path:
    """Read a path on this machine."""
    found = place(value)
    address = _ADDRESS.match(str(found))
    if address is not None and not Path(address[0]).is_dir():
        raise UnfitError(
            f"{address[1]}://{str(found)[address.end() :]}",
            "expected a path on this machine, got an address",
            "Name a file or folder here; only checkpoints and data are read from elsewhere.",
        )
    return found


def place(value: object) -> Path:
    """Read a path or an address."""
    if not isinstance(value, str | PathLike):
        advice = "Pass the folder with the checkpoints, or a list of folders and files."
        if _is_module(value) or isinstance(value, Mapping):
            saved, given = (
                ("model.state_dict()", "model") if _is_module(value) else ("state_dict",) * 2
            )
            advice = (
                f"Call localrank_cli.local_rank({given}, data), or save a series,"
                f" torch.save({saved}, 'run/step_0.pt'), and pass the folder 'run'; the network's"
                " class or function is the option model."
            )
        raise UnfitError(value, "expected a path", advice)
    if "\0" in str(value):
        raise UnfitError(
            value, "expected a path", "The name of a file cannot contain a NUL character."
        )
    return Path(value)


def model(value: object) -> object:
    """Check that a model is a name, or a function or class that builds one."""
    if _is_module(value):
        raise UnfitError(
            value,
            "expected a class or a function that returns a module, but this is a module",
            "Pass its class, or a function: model=lambda: network. The checkpoints' weights replace"
            " its own.",
        )
    if not isinstance(value, str) and not callable(value):
        raise UnfitError(
            value,
            "expected a string, a class or a function",
            "Pass the class of the network, or the text 'file.py:name'.",
        )
    return value


def _is_module(value: object) -> bool:
    """Return whether a value is a network and not its class, without importing torch."""
    return hasattr(value, "named_modules") and not isinstance(value, type)


def data(value: object) -> object:
    """Read a source of points: a text, a path, a tensor, or an array that torch can convert."""
    if isinstance(value, str):
        return value
    if isinstance(value, PathLike):
        return str(value)
    from torch import as_tensor  # torch is slow, and only Python passes arrays

    try:
        if isinstance(value, Mapping) and value:
            return {str(name): as_tensor(array) for name, array in value.items()}
        return as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        expected = "expected a string, a path, a tensor or an array"
        raise UnfitError(value, expected, advice_of_array(value)) from None


def each(read: Callable[[Any], object]) -> Callable[[object], object]:
    """Return a reader of one value or several."""
    return lambda value: tuple(read(one) for one in several(value))


def unchanged(value: object) -> object:
    """Return a value unchanged."""
    return value


def keywords(value: object) -> object:
    """Read `KEY=VALUE` texts, each value as JSON or else text, or a mapping."""
    if isinstance(value, Mapping):
        return tuple(value.items())
    if not all(isinstance(one, str) for one in several(value)):
        raise UnfitError(value, "expected a table", 'Pass a dict, such as {"width": 100}.')
    return tuple(_keyword(text) for text in _texts(value, "expected a table"))


def _texts(value: object, expected: str) -> list[str]:
    every = several(value)  # once: an iterator is empty after that
    texts = [text for text in every if isinstance(text, str)]
    if len(texts) < len(every):
        shown = list(every) if isinstance(value, Iterator) else value
        raise UnfitError(shown, expected, _as_text(shown))
    return texts


def _as_text(value: object) -> str:
    """Return advice on a name that is not a text."""
    if _is_module(value) or any(_is_module(one) for one in several(value)):
        return "Name a module as named_modules() does: '2', 'encoder.fc'."
    if all(isinstance(one, str | int) for one in several(value)):
        names = [str(one) for one in several(value)]
        return f"Names are strings: {names if len(names) > 1 else repr(names[0])}."
    return "Names are strings, such as 'encoder.fc'."


def _keyword(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise UnfitError(text, "not of the form KEY=VALUE")
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):  # not JSON, or nested too deeply for Python: a text
        return key, value


def device(value: object) -> object:
    """Check the form of the name of a device, or of several with commas."""
    if type(value).__name__ == "device":  # of torch, which is not imported here
        value = str(value)
    if not isinstance(value, str) or value == "all":
        return value
    names = [name.strip() for name in value.split(",")]
    for name in names:
        kind, _, index = name.partition(":")
        known = name in ("cpu", "cuda") or (kind == "cuda" and index.isdecimal())
        if not known and (name != "auto" or len(names) > 1):
            raise UnfitError(
                value,
                "unknown",
                "Choose auto, cpu, cuda, cuda:K, several with commas, or all (GPUs).",
            )
    return value


def dtype(value: object) -> object:
    """Read a dtype: a text, or one of torch or numpy."""
    name = value if isinstance(value, str) else getattr(value, "__name__", str(value))
    return name.removeprefix("torch.") if isinstance(name, str) else value


def pattern_with_step(value: object) -> object:
    """Check that a text holds `{step}` once; an empty one removes that of localrank.toml."""
    if isinstance(value, str) and value and value.count("{step}") != 1:
        raise UnfitError(value, "expected one {step}", "Write run_{step}_v2 for run_500_v2.pt.")
    return value
