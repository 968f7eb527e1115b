"""Strict JSON, and one-sentence messages for pydantic's errors.

pydantic itself is imported by the modules that define models, so that `--help` does without it.
"""

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from localrank_cli.errors import printable, shortened

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

# Files of localrank have 8 levels; far more would exhaust the stack of a recursive walk.
DEEPEST = 64


def loads(text: str, *, non_finite: bool = False) -> object:
    """Parse JSON strictly.

    `non_finite` allows NaN, Infinity and numbers too large for a float64.

    Raises:
        ValueError: If it is not JSON, repeats a key of an object, is nested more than `DEEPEST`
            levels deep, or holds a non-finite number that is not allowed.
    """
    try:
        value = (_LENIENT if non_finite else _STRICT).decode(text)
    except RecursionError:
        raise _too_deep() from None
    _check_depth(text, value)
    return value


def load_first(text: str, start: int) -> object:
    """Parse the JSON value that begins at a place of a text, ignoring what follows.

    Raises:
        ValueError: As for `loads`; no number may be non-finite.
    """
    try:
        value, end = _STRICT.raw_decode(text, start)
    except RecursionError:
        raise _too_deep() from None
    _check_depth(text[start:end], value)
    return value


def _check_depth(text: str, value: object) -> None:
    if text.count("[") + text.count("{") <= DEEPEST:  # most are shallow: no walk is needed
        return
    if not isinstance(value, dict | list):  # a text with brackets
        return
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        level = [
            child
            for one in level
            for child in (one.values() if isinstance(one, dict) else one)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> ValueError:
    return ValueError(f"it is nested more than {DEEPEST} levels deep")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"the key {shown(twice)} appears twice")
    return found


def _refuse(constant: str) -> float:
    raise ValueError(f"expected finite numbers, got {constant}")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"expected finite numbers, got {shortened(text)}")
    return number


_LENIENT = json.JSONDecoder(object_pairs_hook=_distinct)
_STRICT = json.JSONDecoder(object_pairs_hook=_distinct, parse_constant=_refuse, parse_float=_finite)


_BOUNDS = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
}
# What was expected, by pydantic's type of error.
_EXPECTED = _BOUNDS | {
    "int_type": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "keys with values",
    "model_type": "keys with values",
    "too_short": "at least {min_length} items",
    "too_long": "at most {max_length} items",
}


def complaint(error: "ValidationError") -> str:
    """Return the first of pydantic's errors: the key, what was expected, and what was found.

    For example `points[1]: expected an integer, got 'x'`, or `run: is missing`.
    """
    first = error.errors(include_url=False)[0]
    kind = first["type"]
    if kind == "value_error":  # raised by a validator of ours, which words it whole
        sentence = printable(str(first["ctx"]["error"]))
    elif kind == "missing":
        sentence = "is missing"
    elif kind == "extra_forbidden":
        sentence = "is not a known key"
    else:
        expected = _fill(_EXPECTED, first) or first["msg"][:1].lower() + first["msg"][1:]
        sentence = f"expected {expected}, got {shown(first['input'])}"
    path = ""
    for part in first["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return f"{printable(shortened(path))}: {sentence}" if path else sentence


def expected_bound(one: "ErrorDetails") -> str:
    """Return the bound that a number breaks, such as `at least 1`; empty for other errors."""
    return _fill(_BOUNDS, one)


def _fill(templates: Mapping[str, str], one: "ErrorDetails") -> str:
    context = {
        name: f"{value:g}" if isinstance(value, float) else value
        for name, value in one.get("ctx", {}).items()
    }
    return templates.get(one["type"], "").format(**context)


def shown(value: object) -> str:
    """Return a value from a file for a message, in one short line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return f"{len(value)} keys with values" if value else "no keys"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to write very long ones
    return printable(shortened(repr(value)))
