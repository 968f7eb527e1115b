"""Read `localrank.toml`, the settings in a series' own folder, without running code."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localrank_cli.checkpoints.names import SETTINGS_FILE
from localrank_cli.errors import SettingsError, one_line, printable, shortened
from localrank_cli.files import read_regular
from localrank_cli.options.read import in_file, nearest, read_values
from localrank_cli.options.setting import options_of
from localrank_cli.options.table import AnalyzeOptions
from localrank_cli.results.columns import COLUMNS, OPTIONAL

FILE_NAME = SETTINGS_FILE
KEYS = {option.key: option for option in options_of(AnalyzeOptions) if option.setting.in_folder}

_COLUMNS = "columns"
_MOST_BYTES = 2**24
_LARGEST_INTEGER = 2**63 - 1  # pandas and JSON readers hold integers of 64 bits

Constant = str | int | float


@dataclass(frozen=True)
class FolderSettings:
    """The content of a localrank.toml."""

    path: Path | None = None  # None: there is no such file
    values: Mapping[str, Any] = field(default_factory=dict)  # by the name of the option
    columns: Mapping[str, Constant] = field(default_factory=dict)  # constants of the table


def read_folder_settings(folder: Path) -> FolderSettings:
    """Read the settings of a series, which are empty without a file.

    Raises:
        SettingsError: If the file cannot be read, or holds a key or value that is not allowed.
    """
    path = folder / FILE_NAME
    try:
        if not path.is_file():
            if path.exists() or path.is_symlink():  # ignoring it could change numbers
                raise SettingsError(f"{path}: is not a regular file.", "Replace or remove it.")
            return FolderSettings()
        loaded = tomllib.loads(read_regular(path, _MOST_BYTES).decode("utf-8"))
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot be read ({error.strerror}).",
            "Check the permissions of the folder and of the file.",
        ) from error
    except (ValueError, RecursionError) as error:  # ValueError: of UTF-8 and of TOML
        raise SettingsError(
            f"{path}: cannot be read ({one_line(error)}).", "Correct or remove it."
        ) from error
    columns = _columns(loaded.pop(_COLUMNS, {}), path)
    for key in loaded:
        if key not in KEYS:
            raise SettingsError(
                f"{path}: unknown key {key!r}{_hint(key)}",
                f"Valid keys are {', '.join([*KEYS, _COLUMNS])}.",
            )
    if not isinstance(loaded.get("data", ""), str):  # in Python numbers are data, too
        raise _refusal(path, "data", loaded["data"], "expected a string")
    texts = {KEYS[key].name: value for key, value in loaded.items()}
    return FolderSettings(path, read_values(AnalyzeOptions, texts, in_file(path)), columns)


def inside(folder: Path, text: str, key: str) -> Path:
    """Resolve a path in a localrank.toml.

    Raises:
        SettingsError: If it leaves the folder, by `..`, an absolute path or a link, or is no path.
    """
    if "://" in text:
        raise SettingsError(
            f"{folder / FILE_NAME}: {key} = {text!r} is an address on another machine, which only"
            " the command line may name.",
            f"Put the file into the folder, or name it with --{key}.",
        )
    try:
        path = (folder / text).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a NUL
        raise SettingsError(
            f"{folder / FILE_NAME}: {key} = {text!r} is not a path ({error}).", "Correct the file."
        ) from error
    if not path.is_relative_to(folder.resolve()):
        raise SettingsError(
            f"{folder / FILE_NAME}: {key} = {text!r} points outside the folder.",
            f"Move the file into the folder, or name it with --{key}.",
        )
    return path


def _hint(key: str) -> str:
    """Return the end of the sentence about an unknown key."""
    if key == "step-regex":
        return ", which is only for the command line; use step-pattern with literal text."
    flags = {one.key: one.flag for one in options_of(AnalyzeOptions) if not one.setting.is_argument}
    if key in flags:
        return f", which is only for the command line: {flags[key]}."
    near = nearest(key, [*KEYS, _COLUMNS])
    return f", did you mean {near[0]}?" if near else "."


def _columns(value: object, path: Path) -> dict[str, Constant]:
    if not isinstance(value, dict):
        raise _refusal(path, "columns", value, "expected a table")
    for name, cell in value.items():
        key = f"columns.{name}"
        # Of the optional columns only epoch may be set: checkpoints need not hold it.
        is_taken = name in COLUMNS or (name in OPTIONAL and name != "epoch")
        if is_taken or not name.isprintable() or not name.strip():
            raise _refusal(path, key, cell, "the name is taken or not valid")
        if isinstance(cell, bool) or not isinstance(cell, str | int | float):
            raise _refusal(path, key, cell, "expected a string or a number")
        if isinstance(cell, int) and abs(cell) > _LARGEST_INTEGER:
            raise _refusal(path, key, cell, "expected an integer of 64 bits")
    return value


def _refusal(path: Path, key: str, value: object, expected: str) -> SettingsError:
    shown = shortened(repr(value))
    return SettingsError(f"{path}: {printable(key)} = {shown}: {expected}.", "Correct the file.")
