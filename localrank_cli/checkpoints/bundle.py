"""Several checkpoints in one file, such as a list of state dicts: the lines that split it."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from localrank_cli.checkpoints.names import epoch_in_name, step_in_name
from localrank_cli.errors import listed

Holds = Callable[[object], bool]

_COUNTERS = ("step", "iter", "epoch")
_MAX_DEPTH = 3
# Keys that lead to no network: optimizers with their moments, random states, settings, logs.
NO_WEIGHTS = re.compile(
    r"^(?:[a-z]+_)*?(?:optim(?:izer)?s?|(?:lr_?)?sched(?:uler)?s?|rng|random|(?:grad_?)?scalers?|amp|loops|"
    r"callbacks|hyper_parameters|args|config|cfg|losses|metrics)(?:_?states?|_dicts?|_[a-z]|_?\d+)*+$",
    flags=re.IGNORECASE,
)


# What people call checkpoints of a series that have no step.
_NAMED = re.compile(
    r"^(?:init(?:ial)?|start|begin|first|best|last|latest|final|end)$", re.IGNORECASE
)
_ONE_FOLDER = "Split it in Python{trust}, and analyze the folder {folder}: {lines}"
_FOLDERS = "Split it in Python{trust}, and analyze the folders in {folder}: {lines}"


@dataclass(frozen=True)
class Bundle:
    """A list or table of checkpoints in one file."""

    count: int
    place: tuple[str, ...]  # keys that lead to it; empty for the whole file
    is_list: bool
    pairs: str  # the expression of their (key, checkpoint), in which {} is the place
    name: str = "f'step_{int(key)}.pt'"  # the expression of the file of each, by its key
    is_modules: bool = False  # whether they are whole modules
    named: tuple[str, ...] = ()  # keys that hold no step
    has_folders: bool = False  # whether `name` begins with a folder, the first part of the key

    def describe(self, path: Path) -> str:
        """Return what the file holds, as a sentence without a full stop."""
        where = f" under {'.'.join(self.place)!r}" if self.place else ""
        kind = "a list" if self.is_list else "a table"
        return f"{path}: holds {self.count} checkpoints in one file ({kind}{where})"

    def lines(self, path: Path, *, needs_code: bool) -> str:
        """Return the Python code that splits the file into a folder beside it.

        `needs_code` is whether torch can load it only by running code that it names.
        """
        file, folder = str(path), str(_folder(path))
        pairs = self.pairs.format(_expression(self.place))
        one = "one.state_dict()" if self.is_modules else "one"
        load = f"torch.load({file!r}, map_location='cpu', weights_only={not needs_code})"
        within = f"os.path.join({folder!r}, str(key[0]))"
        folders = f" [os.makedirs({within}, exist_ok=True) for key, _ in {pairs}];"
        return (
            f"import os, torch; run = {load}; os.makedirs({folder!r});"
            f"{folders if self.has_folders else ''}"
            f" [torch.save({one}, os.path.join({folder!r}, {self.name})) for key, one in {pairs}]"
        )

    def advice(self, path: Path) -> str:
        """Return what to do: split the file with the lines."""
        needs_code = _needs_code(path)
        trust = " if you trust whoever made it, since this runs its code" * needs_code
        lines = self.lines(path, needs_code=needs_code)
        form = _FOLDERS if self.has_folders else _ONE_FOLDER
        more = (
            f". In that folder, rename {listed(self.named)} after the step, or leave out files"
            " without a step: --pattern '*[0-9]*'"
            if self.named
            else ""
        )
        if "enumerate(one" in self.pairs:
            more = ". The keys are not steps, so these lines number the checkpoints in order"
        return form.format(trust=trust, folder=_folder(path), lines=lines) + more


def _folder(path: Path) -> Path:
    return path.with_name(f"{path.name.split('.')[0]}_split")


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
        return _in_list(value, holds, place, beside)
    if not isinstance(value, Mapping) or len(place) > _MAX_DEPTH or "param_groups" in value:
        return None
    names = [key for key in value if isinstance(key, str) and not key.isdecimal()]
    whole = _of_names if len(names) == len(value) else _of_keys
    bundle = whole(value, names, holds, place)
    if bundle is not None:
        return bundle
    found = (
        _find(inner, holds, (*place, key), value)
        for key, inner in value.items()
        if isinstance(key, str) and not NO_WEIGHTS.match(key)
    )
    return next((one for one in found if one is not None), None)


def _in_list(
    value: Sequence[Any], holds: Holds, place: tuple[str, ...], beside: Mapping[Any, Any]
) -> Bundle | None:
    """Return a list of checkpoints, or of (step, checkpoint)."""
    count = len(value)
    if count < 2:
        return None
    if all(_is_pair(one, holds) for one in value):
        is_modules = _are_modules([one for _, one in value])
        counted = all(_is_whole(step) for step, _ in value)
        pairs = "{}" if counted else "enumerate(one for _, one in {})"
        return Bundle(count, place, True, pairs, is_modules=is_modules)
    if not all(map(holds, value)):
        return None
    key = _steps_beside(beside, count)
    word = "epoch_" if "epoch" in (key or "").lower() else "step_"
    steps = _expression((*place[:-1], key))
    pairs = f"zip({steps}, {{}})" if key else "enumerate({})"
    return Bundle(count, place, True, pairs, _name(word), _are_modules(value))


def _of_names(
    value: Mapping[str, Any], names: list[str], holds: Holds, place: tuple[str, ...]
) -> Bundle | None:
    """Return a table by names of which all, or all but `init` and the like, hold a step."""
    counted = [key for key in names if _is_counted(key)]
    named = [key for key in names if key not in counted]
    if len(names) < 2 or not counted or not all(map(_NAMED.match, named)):
        return None
    if not all(map(holds, value.values())):
        return None
    is_modules = _are_modules(list(value.values()))
    return Bundle(len(names), place, False, "{}.items()", "f'{key}.pt'", is_modules, tuple(named))


def _of_keys(
    value: Mapping[Any, Any], names: list[str], holds: Holds, place: tuple[str, ...]
) -> Bundle | None:
    """Return a table by steps, or by other keys that are no names, beside anything by names."""
    others = set(names)
    keys = [key for key in value if not isinstance(key, str) or key not in others]
    named = [key for key in names if holds(value[key])]
    is_sure = any(not isinstance(key, str) for key in keys)  # names of networks are texts
    if not all(_is_file_name(key) and (is_sure or _NAMED.match(key)) for key in named):
        return None
    if len(keys) + len(named) < 2 or not all(holds(value[key]) for key in keys):
        return None
    held = [*keys, *named]
    is_modules = _are_modules([value[key] for key in held])
    left = [key for key in names if key not in named]
    pairs, name, has_folders = "{}.items()", _name(), False
    if left:
        pairs = f"[pair for pair in {{}}.items() if pair[0] not in {_braced(left)}]"
    tuples = [key for key in keys if isinstance(key, tuple) and len(key) > 1 and _is_whole(key[-1])]
    if named:
        name = f"f'{{key}}.pt' if key in {named!r} else {_name()}"
    if len(tuples) == len(keys) and not named:
        has_folders = len({int(key[-1]) for key in tuples}) < len(tuples)
        word = "epoch_" if all("epoch" in str(key[0]).lower() for key in tuples) else "step_"
        name = _name(word, "key[-1]", "{key[0]}/" if has_folders else "")
        is_named = all(len(key) == 2 and _is_file_name(str(key[0])) for key in tuples)
        if has_folders and not is_named:
            return None
    elif not all(_is_whole(key) or str(key).isdecimal() for key in keys):
        pairs, name, named = f"enumerate(one for _, one in {pairs})", _name(), []
    return Bundle(len(held), place, False, pairs, name, is_modules, tuple(named), has_folders)


def _name(word: str = "step_", number: str = "key", folder: str = "") -> str:
    return f"f'{folder}{word}{{int({number})}}.pt'"


def _braced(names: Sequence[str]) -> str:
    return repr(list(names)).replace("{", "{{").replace("}", "}}")


def _are_modules(checkpoints: Sequence[object]) -> bool:
    return not any(isinstance(one, Mapping) for one in checkpoints)


def _is_counted(key: str) -> bool:
    has_number = step_in_name(key) is not None or epoch_in_name(key) is not None
    return _is_file_name(key) and has_number


def _is_file_name(name: str) -> bool:
    return name.isprintable() and "/" not in name and "\\" not in name


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
        and isinstance(value[0], (int, float, str, Tensor))
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
