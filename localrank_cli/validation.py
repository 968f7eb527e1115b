"""JSON that hides nothing, and one sentence for what pydantic finds wrong.

pydantic itself is imported by the modules that define models, so that `--help` does without it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from localrank_cli.errors import printable, shortened

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

# Files of localrank have 8 levels. Far more would exhaust the stack of whoever walks through them.
DEEPEST = 64


def loads(text: str, *, non_finite: bool = False) -> object:
    """Parse JSON in which every key counts.

    Args:
        text: One JSON value.
        non_finite: Whether NaN, Infinity and numbers too large for a float64 are allowed.

    Returns:
        Objects as dicts, lists as lists.

    Raises:
        ValueError: If it is no JSON, repeats a key of an object, is nested more than `DEEPEST`
            levels deep, or holds a number that is not finite and is not allowed.
    """
    try:
        value = (_LENIENT if non_finite else _STRICT).decode(text)
    except RecursionError:
        raise _too_deep() from None
    _check_depth(text, value)
    return value


def load_first(text: str, start: int) -> object:
    """Parse the JSON value that begins at a place of a text; what follows is not looked at.

    Args:
        text: Any text.
        start: Where the value begins.

    Returns:
        As for `loads`.

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
    if text.count("[") + text.count("{") <= DEEPEST:  # most are seen to be shallow without a walk
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
        raise ValueError(f"the key {shown(twice)} stands in it twice")
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


def complaint(error: "ValidationError") -> str:
    """Return the first thing that pydantic found wrong: the key, what was expected, and what came.

    For example `points[1]: expected an integer, got 'x'`, or `run: is missing`.
    """
    found = error.errors(include_url=False)
    first = found[0]
    # A union reports each of its members, with the member's type at the end of the location.
    members = [
        one
        for one in found
        if first["loc"] and one["loc"][:-1] == first["loc"][:-1] and _is_member(one)
    ]
    if _is_member(first):
        expected = " or ".join(dict.fromkeys(_expected(one) for one in members))
        return _located(first["loc"][:-1], f"expected {expected}, got {shown(first['input'])}")
    return _located(first["loc"], _sentence(first))


def _is_member(one: "ErrorDetails") -> bool:
    last = str(one["loc"][-1]) if one["loc"] else ""
    return last in _MEMBERS or last.endswith("]") or last.startswith("constrained-")


_MEMBERS = {"int", "float", "finite-float", "str", "bool", "none", "date", "datetime"}


def _located(place: Sequence[str | int], sentence: str) -> str:
    path = ""
    for part in place:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return f"{printable(shortened(path))}: {sentence}" if path else sentence


_SENTENCES = {"missing": "is missing", "extra_forbidden": "is no key that is known here"}
_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "keys with values",
    "model_type": "keys with values",
    "model_attributes_type": "keys with values",
    "none_required": "null",
}
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def _sentence(one: "ErrorDetails") -> str:
    kind, context = one["type"], one.get("ctx", {})
    if kind in _SENTENCES:
        return _SENTENCES[kind]
    if kind == "value_error":  # of a validator of ours, which words it whole
        return printable(str(context["error"]))
    if kind in {"too_short", "too_long"}:
        bound = ("at least", "min_length") if kind == "too_short" else ("at most", "max_length")
        return f"expected {bound[0]} {context[bound[1]]} items, got {context['actual_length']}"
    return f"expected {_expected(one)}, got {shown(one['input'])}"


def expected_bound(one: "ErrorDetails") -> str:
    """Return the bound that a number breaks, such as `at least 1`; empty for other errors."""
    if one["type"] not in _BOUNDS:
        return ""
    key, words = _BOUNDS[one["type"]]
    bound = one["ctx"][key]
    return f"{words} {f'{bound:g}' if isinstance(bound, float) else bound}"


def _expected(one: "ErrorDetails") -> str:
    kind = one["type"]
    if bound := expected_bound(one):
        return bound
    if kind in {"literal_error", "enum"}:
        return str(one["ctx"]["expected"])
    return _EXPECTED.get(kind) or one["msg"][:1].lower() + one["msg"][1:]


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
