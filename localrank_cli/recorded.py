"""What checkpoints record of how their network was built, as plain values.

A value is None, a bool, int, float or str, a list, tuple or dict of values, a `Record`, or a
`NotPlain` in the place of anything else.
"""

from collections.abc import Mapping
from dataclasses import dataclass

DICT = "dict"


@dataclass(frozen=True)
class Record:
    """A dict with names as keys, or the attributes of an object."""

    kind: str  # qualified name of the class, as the file names it; `dict` for a dict
    values: Mapping[str, object]

    @property
    def class_name(self) -> str:
        """The name of the class without its module."""
        return self.kind.rpartition(".")[2]


@dataclass(frozen=True)
class NotPlain:
    """An object that is not passed to any code."""

    kind: str  # qualified name of its class, or of the class or function that it is


Entries = Mapping[str, Record]  # by their place in the file: `model_args`, `config.model`


def find_not_plain(value: object, place: str) -> tuple[str, NotPlain] | None:
    """Return the first object in a value that is not plain, with its place; None without one."""
    if isinstance(value, NotPlain):
        return place, value
    parts: list[tuple[str, object]] = []
    if isinstance(value, Record):
        parts = [(f"{place}.{key}", part) for key, part in value.values.items()]
    elif isinstance(value, dict):
        parts = [(f"{place}[{key!r}]", part) for key, part in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(f"{place}[{index}]", part) for index, part in enumerate(value)]
    found = (find_not_plain(part, inner) for inner, part in parts)
    return next((one for one in found if one is not None), None)


def written(value: object) -> str:
    """Return a value as Python code would write it, with the names of classes."""
    if isinstance(value, Record) and value.kind != DICT:
        inner = ", ".join(f"{key}={written(part)}" for key, part in value.values.items())
        return f"{value.class_name}({inner})"
    if isinstance(value, (dict, Record)):
        pairs = (value.values if isinstance(value, Record) else value).items()
        return "{" + ", ".join(f"{key!r}: {written(part)}" for key, part in pairs) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, tuple):
        comma = "," if len(value) == 1 else ""
        return f"({', '.join(map(written, value))}{comma})"
    return f"<{value.kind}>" if isinstance(value, NotPlain) else repr(value)
