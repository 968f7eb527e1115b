"""Several named inputs of a network (`input_ids`, `attention_mask`) as one tensor.

The inputs of a point are its entries in one row, so that points are drawn, divided and compared as
points of a single input are. A hook before the network's forward pass takes the row apart and
passes the inputs by name.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from localrank_cli.errors import DataError, SettingsError, listed
from localrank_cli.points.draw import COMPLEX_DATA, check_dtype, integers
from localrank_cli.points.files import DEFAULT_KEYS, choose_key, which_key
from localrank_cli.points.rows import Data, Rows, chunks

# Where the forward pass need not have them, they are what a training compares outputs with.
_TARGETS = frozenset(("labels", "label", "targets", "target", "y"))
_LARGEST_INTEGER = 2**24  # beside floating-point inputs: exact in float32 too
_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Forward:
    """The inputs that a network's forward pass takes by name."""

    names: tuple[str, ...] = ()
    required: frozenset[str] = frozenset()
    takes_all: bool = False  # `**kwargs`

    @classmethod
    def of(cls, forward: Callable[..., object]) -> "Forward":
        """Return the inputs of a forward pass."""
        try:
            parameters = inspect.signature(forward).parameters.values()
        except (TypeError, ValueError):
            return cls()
        named = [one for one in parameters if one.kind in _KINDS]
        return cls(
            tuple(one.name for one in named),
            frozenset(one.name for one in named if one.default is one.empty),
            any(one.kind is one.VAR_KEYWORD for one in parameters),
        )

    def takes(self, name: str) -> bool:
        """Return whether an input may be passed by a name."""
        return name in self.names or self.takes_all


def choose_keys(
    keys: Sequence[str], key: str, forward: Forward, labels_key: str, place: str
) -> list[str]:
    """Return the arrays to take of some named ones; one alone is passed without its name.

    `key` is `--data-key`, and `place` is for messages.

    Raises:
        SettingsError: If the network does not take them.
    """
    if "," in key and key not in keys:
        chosen = [one.strip() for one in key.split(",")]
        chosen = [
            choose_key(keys, one, place, "--data-key") for one in dict.fromkeys(chosen) if one
        ]
        wrong = [one for one in chosen if not forward.takes(one)]
        if wrong:
            raise _not_taken(wrong, forward, place, "Give others with --data-key A,B.")
        return _complete(chosen, keys, forward, place)
    default = next((one for one in DEFAULT_KEYS if one in keys), "")
    rest = [one for one in keys if one != labels_key]
    rest = [one for one in rest if one not in _TARGETS or one in forward.required]
    if key or len(keys) == 1 or (default and default not in forward.names):
        return [choose_key(keys, key, place, "--data-key")]
    # What **kwargs takes beside named inputs may be ignored: it is passed if --data-key names it.
    takes_any = forward.takes_all and not forward.names
    taken = [one for one in rest if one in forward.names or takes_any]
    if default:  # other arrays are no part of the data, but what the network takes by name is
        return _complete(taken, keys, forward, place) if default in taken else [default]
    if not taken:
        raise SettingsError(
            f"{place} holds several arrays: {listed(keys)}.",
            f"{which_key(keys)}, or save several under the names that the network's"
            f" forward pass takes: {listed(forward.names, 20)}."
            if forward.names
            else f"{which_key(keys)}.",
        )
    left = [one for one in rest if one not in taken]
    if left:
        advice = f"Name the arrays to pass: --data-key {','.join(taken)}."
        raise _not_taken(left, forward, place, advice)
    return _complete(taken, keys, forward, place)


def _complete(chosen: list[str], keys: Sequence[str], forward: Forward, place: str) -> list[str]:
    missing = sorted(forward.required - set(chosen))
    if missing and len(chosen) > 1:
        there = [one for one in missing if one in keys]
        raise SettingsError(
            f"{place}: the network's forward pass also needs {listed(missing)}, which"
            f" {'--data-key does not name' if there else 'the data do not hold'}.",
            f"Give --data-key {','.join([*chosen, *there])}."
            if there
            else "Save it with the data, or write a subclass whose forward pass supplies it.",
        )
    return chosen


def _not_taken(names: Sequence[str], forward: Forward, place: str, advice: str) -> SettingsError:
    return SettingsError(
        f"{place}: holds {listed(names)}, which the network's forward pass does not take; it takes"
        f" {listed(forward.names, 20) or 'nothing by name'}.",
        advice,
    )


@dataclass(frozen=True)
class Part:
    """One input in the row of a point."""

    name: str
    start: int  # in the row
    shape: tuple[int, ...]  # for one point
    dtype: torch.dtype  # bool or int64; a floating-point one has that of the row

    @property
    def stop(self) -> int:
        """Where the next input begins."""
        return self.start + prod(self.shape)

    @property
    def text(self) -> str:
        """The part for messages: `input_ids (8,) int64`."""
        return f"{self.name} {self.shape} {str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Inputs:
    """The inputs in the row of each point."""

    parts: tuple[Part, ...]
    is_ordered: bool = False  # --data-key names them: the first floating-point one is varied

    @property
    def text(self) -> str:
        """The inputs for messages and the manifest."""
        return ", ".join(part.text for part in self.parts)

    def find_varied(self) -> Part | None:
        """Return the input that is varied where no module's output is; None: all are integers.

        Raises:
            SettingsError: If it is not clear which.
        """
        floating = [part for part in self.parts if part.dtype.is_floating_point]
        if len(floating) > 1 and not self.is_ordered:
            names = [part.name for part in floating]
            rest = [part.name for part in self.parts if part not in floating]
            raise SettingsError(
                f"the data hold several floating-point inputs: {listed(names)}.",
                "Name the one to differentiate with respect to first, --data-key"
                f" {','.join([*names, *rest])}; the others are held fixed. Or name a module:"
                " --wrt NAME.",
            )
        return floating[0] if floating else None

    def unpack(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the inputs by name, each (points, ...), of rows of shape (points, entries)."""
        found = {}
        for part in self.parts:
            entries = rows[:, part.start : part.stop].reshape(rows.shape[0], *part.shape)
            if not part.dtype.is_floating_point:
                entries = entries.detach().to(torch.int64)
                entries = entries != 0 if part.dtype == torch.bool else entries
            found[part.name] = entries
        return found

    def install(self, model: nn.Module) -> None:
        """Let a network that is called with rows receive the inputs by name."""
        model.register_forward_pre_hook(Unpacking(self), prepend=True, with_kwargs=True)


@dataclass(frozen=True)
class Unpacking:
    """The hook before a network's forward pass."""

    inputs: Inputs

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what the network is called with in place of rows."""
        del module
        if kwargs or len(args) != 1 or args[0].shape[1:] != (self.inputs.parts[-1].stop,):
            return args, kwargs  # the network calls itself within its forward pass
        return (), self.inputs.unpack(args[0])


def pack(arrays: Mapping[str, Data], place: str, *, is_ordered: bool) -> tuple[Data, Inputs]:
    """Return arrays as one of shape (points, entries), and where each is in it.

    It is in memory if all of them are; else its rows are read when they are asked for.

    Raises:
        DataError: If their first axes differ, or their values cannot be in one tensor.
    """
    parts: list[Part] = []
    for name, array in arrays.items():
        if array.is_complex():
            raise DataError(f"{place}[{name}]: complex data are not supported.", COMPLEX_DATA)
        if array.ndim == 0:
            raise DataError(
                f"{place}[{name}]: holds one number, but each input needs one for every point.",
                "Name the arrays to pass with --data-key A,B.",
            )
        check_dtype(array, f"{place}[{name}]")
        start = parts[-1].stop if parts else 0
        kind = torch.float64 if array.is_floating_point() else torch.int64
        kind = torch.bool if array.dtype == torch.bool else kind
        parts.append(Part(name, start, tuple(array.shape[1:]), kind))
    lengths = {name: array.shape[0] for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        text = ", ".join(f"{length} in {name}" for name, length in lengths.items())
        raise DataError(
            f"{place}: its inputs have different numbers of points: {text}.",
            "Save inputs whose first axis is the point axis.",
        )
    floating = any(part.dtype.is_floating_point for part in parts)
    _check_integers(arrays, place, beside_floats=floating)
    rows = _Packed(arrays, (lengths[parts[0].name], parts[-1].stop), floating)
    is_in_file = any(isinstance(array, Rows) for array in arrays.values())
    return rows if is_in_file else rows[:], Inputs(tuple(parts), is_ordered)


def _check_integers(arrays: Mapping[str, Data], place: str, *, beside_floats: bool) -> None:
    for name, array in arrays.items():
        if array.is_floating_point() or array.numel() == 0:
            continue
        if not beside_floats and array.dtype != torch.uint64:
            continue
        for _, chunk in chunks(array):
            values = integers(chunk, f"{place}[{name}]")
            lowest, highest = (int(one) for one in values.aminmax())
            if beside_floats and max(-lowest, highest) > _LARGEST_INTEGER:
                raise DataError(
                    f"{place}[{name}]: holds integers above 2^24 together with"
                    " floating-point inputs.",
                    "Subtract a common offset from them, and add it again in the model's forward"
                    " pass.",
                )


class _Packed(Rows):
    """Several arrays side by side."""

    def __init__(self, arrays: Mapping[str, Data], shape: tuple[int, int], floating: bool) -> None:
        super().__init__(shape, torch.float64 if floating else torch.int64)
        self._arrays = list(arrays.values())

    def read(self, start: int, stop: int) -> Tensor:
        """Return some rows; see `Rows`."""
        found = [array[start:stop] for array in self._arrays]
        rows = [one.reshape(one.shape[0], prod(one.shape[1:])) for one in found]
        return torch.cat([one.to(self.dtype) for one in rows], dim=1)
