"""Read and check options from the command line, localrank.toml and Python alike."""

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from localrank_cli.errors import LocalrankError, SettingsError, UsageError, shortened
from localrank_cli.options import parse
from localrank_cli.options.parse import UnfitError
from localrank_cli.options.setting import Option, options_of
from localrank_cli.options.table import AnalyzeOptions
from localrank_cli.validation import expected_bound

_Table = TypeVar("_Table")

# Messages for pydantic's errors, by their type.
_EXPECTED = {
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "finite_number": "expected a finite number",
    "bool_type": "expected true or false",
    "string_type": "expected a string",
    "tuple_type": "expected a value, or a list of values",
}
_ADVICE = {"string_type": "Write it as a string, in quotes."}


class ArgumentError(UsageError, TypeError):
    """An argument in Python has another type than the option."""


@dataclass(frozen=True)
class Place:
    """A place where options are written, which decides how messages name them."""

    named: Callable[[Option, object], str]
    error: type[LocalrankError] = UsageError
    wrong: type[LocalrankError] | None = None  # for a value of another type, where that differs

    def refusal(self, option: Option, value: object, expected: str, advice: str) -> LocalrankError:
        """Return the error for a value."""
        is_type = self.wrong is not None and expected.startswith(("expected a ", "expected true"))
        error = self.wrong if is_type and self.wrong is not None else self.error
        return error(f"{self.named(option, value)}: {expected}.", advice)


FLAGS = Place(lambda option, value: f"{option.flag} {_written(value)}")
PYTHON = Place(lambda option, value: f"{option.name}={_in_python(value)}", wrong=ArgumentError)


def in_file(path: Path) -> Place:
    """Return the place of settings in a localrank.toml."""
    return Place(
        lambda option, value: f"{path}: {option.key} = {shortened(repr(value))}", SettingsError
    )


def read_options(table: type[_Table], values: Mapping[str, object], place: Place) -> _Table:
    """Return an instance of a table of options, from texts and values by field name.

    A value of None leaves an option unset.

    Raises:
        LocalrankError: If a value cannot be read, has another type or is out of range; of the
            place's kind.
    """
    return table(**read_values(table, values, place))


def read_values(table: type, values: Mapping[str, object], place: Place) -> dict[str, Any]:
    """Read and check the values that are not None, as `read_options` does, by field name."""
    from pydantic import ValidationError

    try:
        model = _model(table).model_validate(
            {name: value for name, value in values.items() if value is not None}
        )
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False)[0], table, place) from error
    return {name: getattr(model, name) for name in model.model_fields_set}


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names, at most two, that are most like an unknown one."""
    return difflib.get_close_matches(name, list(known), n=2)


def check_keywords(function: str, given: Iterable[str], offered: Collection[str]) -> None:
    """Check the names of a function's options.

    Raises:
        TypeError: If there is no option of a name.
    """
    for name in given:
        if name not in offered:
            raise TypeError(_unknown(function, name, offered))


def _unknown(function: str, name: str, offered: Collection[str]) -> str:
    message = f"{function}() got an unexpected keyword argument {name!r}"
    known = {one.name: one.setting for one in options_of(AnalyzeOptions)}
    if name in known:
        owner = "analyze" if known[name].in_python else "the command line"
        return f"{message}: it is only for {owner}"
    near = sorted(nearest(name, offered))
    return f"{message}; did you mean {' or '.join(map(repr, near))}?" if near else message


def signature_of(function: Callable[..., object], offered: Iterable[Option]) -> inspect.Signature:
    """Return the signature of a function whose further keywords are options."""
    own = inspect.signature(function)
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    keywords = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.shown_default)
        for one in offered
    ]
    named = [one for one in own.parameters.values() if one.kind not in kinds]
    return own.replace(parameters=[*named, *keywords])


def described(function: Callable[..., object], offered: Iterable[Option]) -> str:
    """Return the docstring of a function, with its options in place of `**options`."""
    lines = "\n".join(f"        {one.name}: {one.help}" for one in offered)
    return (function.__doc__ or "").replace("        **options: See below.", lines)


@cache
def _model(table: type) -> Any:
    """Return the pydantic model of a table."""
    from pydantic import BeforeValidator, ConfigDict, create_model

    strict = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )
    kinds: dict[str, Any] = {
        option.name: (Annotated[option.kind, BeforeValidator(_reader(option))], None)
        for option in options_of(table)
    }
    return create_model(table.__name__, __config__=strict, **kinds)


def _reader(option: Option) -> Callable[[Any], object]:
    return option.setting.read or _reader_of(option.kind)


def _reader_of(kind: Any) -> Callable[[Any], object]:
    """Return the reader of numbers of a type, alone or in a tuple; other types need none."""
    if get_origin(kind) is tuple:
        return parse.each(_reader_of(get_args(kind)[0]))
    kinds = {kind, *get_args(kind)}
    kinds |= {argument for one in kinds for argument in get_args(one)}
    if float in kinds:
        return parse.number
    return parse.whole if int in kinds else parse.unchanged


def _refusal(error: Any, table: type, place: Place) -> LocalrankError:
    """Return the error for one of pydantic's."""
    option = {one.name: one for one in options_of(table)}[error["loc"][0]]
    setting, kind = option.setting, error["type"]
    original = error.get("ctx", {}).get("error")
    if isinstance(original, UnfitError):
        return place.refusal(option, original.value, original.expected, original.advice)
    if kind == "literal_error":
        *words, last = words_of_literal(option.kind)
        choices = f"{', '.join(words)} or {last}" if words else last
        return place.refusal(option, error["input"], "unknown", f"Choose {choices}.")
    bound = expected_bound(error)
    expected = f"expected {bound}" if bound else _EXPECTED.get(kind, error["msg"])
    advice = setting.advice or _ADVICE.get(kind, "")
    return place.refusal(option, error["input"], expected, advice)


def words_of_literal(kind: Any) -> list[str]:
    """Return the words of a Literal, or of one that may be None."""
    kinds = (kind, *get_args(kind))
    return [word for one in kinds if get_origin(one) is Literal for word in get_args(one)]


def _in_python(value: object) -> str:
    """Return a value on one line; of a long one, such as a network or a tensor, its type."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"<{type(value).__name__}>"


def _written(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return shortened(value) if value != "" else "''"
