"""Several checkpoints in one file, such as a list of state dicts: the lines that split it."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from localrank_cli.checkpoints.names import epoch_in_name, step_in_name

Holds = Callable[[object], bool]

_COUNTERS = ("step", "iter", "epoch")
_MAX_DEPTH = 3
# Keys that lead to no network: optimizers with their moments, random states, settings, logs.
NO_WEIGHTS = re.compile(
    r"^(?:[a-z]+_)*?(?:optim(?:izer)?s?|(?:lr_?)?sched(?:uler)?s?|rng|random|(?:grad_?)?scalers?|amp|loops|"
    r"callbacks|hyper_parameters|args|config|cfg|losses|metrics)(?:_?states?|_dicts?|_[a-z]|_?\d+)*+$",
    flags=re.IGNORECASE,
)


@dataclass(frozen=True)
class Bundle:
    """A list or table of checkpoints in one file."""

    count: int
    place: tuple[str, ...]  # keys that lead to it; empty for the whole file
    is_list: bool
    steps: tuple[str, ...] = ()  # keys that lead to the list of their steps
    is_pairs: bool = False  # whether the list holds (step, checkpoint)
    word: str = "step_"  # before the number, in the name of each; empty where the key is a name
    is_modules: bool = False  # whether they are whole modules

    def describe(self, path: Path) -> str:
        """Return what the file holds, as a sentence without a full stop."""
        where = f" under {'.'.join(self.place)!r}" if self.place else ""
        kind = "a list" if self.is_list else "a table"
        return f"{path}: holds {self.count} checkpoints in one file ({kind}{where})"

    def lines(self, path: Path, *, needs_code: bool) -> str:
        """Return the Python code that splits the file into a folder beside it.

        `needs_code` is whether torch can load it only by running code that it names.
        """
        file, folder = str(path), path.with_name(f"{path.name.split('.')[0]}_split")
        of = _expression(self.place)
        if not self.is_list:
            pairs = f"{of}.items()"
        elif self.is_pairs:
            pairs = of
        elif self.steps:
            pairs = f"zip({_expression(self.steps)}, {of})"
        else:
            pairs = f"enumerate({of})"
        key = "int(key)" if self.word else "key"
        name = f"os.path.join({str(folder)!r}, f'{self.word}{{{key}}}.pt')"
        one = "one.state_dict()" if self.is_modules else "one"
        load = f"torch.load({file!r}, map_location='cpu', weights_only={not needs_code})"
        return (
            f"import os, torch; run = {load};"
            f" os.makedirs({str(folder)!r}); [torch.save({one}, {name}) for key, one in {pairs}]"
        )

    def advice(self, path: Path) -> str:
        """Return what to do: split the file with the lines."""
        folder = path.with_name(f"{path.name.split('.')[0]}_split")
        needs_code = _needs_code(path)
        trust = " where you trust whoever made it, since this runs its code" * needs_code
        lines = self.lines(path, needs_code=needs_code)
        return f"Split it in Python{trust}, and analyze the folder {folder}: {lines}"


def _needs_code(path: Path) -> bool:
    try:
        return bool(get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a file from before torch 1.6, among others
        return True


def find_bundle(loaded: object, holds: Holds) -> Bundle | None:
    """Return the first list or table of at least two checkpoints in what a file holds.

    `holds` returns whether an object is a checkpoint.
    """
    return _find(loaded, holds, (), {})


def _find(
    value: object, holds: Holds, place: tuple[str, ...], beside: Mapping[Any, Any]
) -> Bundle | None:
    if isinstance(value, (list, tuple)):
        if len(value) > 1 and all(_is_pair(one, holds) for one in value):
            modules = _are_modules([one for _, one in value])
            return Bundle(len(value), place, True, is_pairs=True, is_modules=modules)
        if len(value) < 2 or not all(map(holds, value)):
            return None
        key = _steps_beside(beside, len(value))
        word = "epoch_" if "epoch" in (key or "").lower() else "step_"
        steps = (*place[:-1], key) if key else ()
        modules = _are_modules(value)
        return Bundle(len(value), place, True, steps, word=word, is_modules=modules)
    if not isinstance(value, Mapping) or len(place) > _MAX_DEPTH or "param_groups" in value:
        return None
    counted = [key for key in value if _is_whole(key) or str(key).isdecimal()]
    named = [key for key in value if isinstance(key, str) and _is_counted(key)]
    for keys, word in ((counted, "step_"), (named, "")):
        if len(keys) > 1 and len(keys) == len(value) and all(holds(value[key]) for key in keys):
            modules = _are_modules(list(value.values()))
            return Bundle(len(keys), place, False, word=word, is_modules=modules)
    found = (
        _find(inner, holds, (*place, key), value)
        for key, inner in value.items()
        if isinstance(key, str) and not NO_WEIGHTS.match(key)
    )
    return next((one for one in found if one is not None), None)


def _are_modules(checkpoints: Sequence[object]) -> bool:
    return not any(isinstance(one, Mapping) for one in checkpoints)


def _is_counted(key: str) -> bool:
    return (
        key.isprintable()
        and "/" not in key
        and (step_in_name(key) is not None or epoch_in_name(key) is not None)
    )


def _steps_beside(beside: Mapping[Any, Any], count: int) -> str:
    for key, value in beside.items():
        if not isinstance(key, str) or not any(word in key.lower() for word in _COUNTERS):
            continue
        if not isinstance(value, Sequence) and not hasattr(value, "tolist"):
            continue
        numbers = [str(int(one)) for one in value if _is_whole(one)]
        if len(value) == len(set(numbers)) == count:
            return key
    return ""


def _is_pair(value: object, holds: Holds) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and _is_whole(value[0])
        and holds(value[1])
    )


def _is_whole(value: Any) -> bool:
    number = isinstance(value, (int, float, Tensor)) and not isinstance(value, bool)
    try:
        return number and float(value).is_integer() and value >= 0
    except Exception:  # a tensor of several numbers, or without values, is no step
        return False


def _expression(place: tuple[str, ...]) -> str:
    return "run" + "".join(f"[{key!r}]" for key in place)
