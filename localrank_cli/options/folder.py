"""`localrank.toml`, the settings that lie in a series' folder. Reading it never runs code."""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localrank_cli.errors import SettingsError, UsageError, one_line
from localrank_cli.layers.slices import parse_slice
from localrank_cli.options.parse import Preset, parse_preset
from localrank_cli.options.table import (
    check_numbers,
    check_sampling,
    check_tolerances,
    check_words,
    parse_rtol,
)
from localrank_cli.results.columns import COLUMNS, OPTIONAL

# A cell must be a number that pandas and JSON readers hold exactly.
_LARGEST_INTEGER = 2**63 - 1

FILE_NAME = "localrank.toml"


@dataclass(frozen=True)
class FolderSettings:
    """A series' own defaults; None or empty where it says nothing."""

    path: Path | None = None
    model: str | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    activation: str | None = None
    data: str | None = None
    data_key: str | None = None
    data_scale: float | None = None
    points: int | None = None
    seed: int | None = None
    layers: tuple[str, ...] = ()
    wrt: str | None = None
    atol: tuple[float, ...] = ()
    rtol: tuple[float | None, ...] = ()
    input_metric: str | None = None
    noise: float | None = None
    dtype: str | None = None
    columns: dict[str, str | int | float] = field(default_factory=dict)
    preset: Preset | None = None
    hidden: bool = False  # by a preset alone
    input_slice: str | None = None
    output_slice: str | None = None
    sigma_1: str | None = None
    information: bool | None = None
    information_points: int | None = None
    information_noise: float | None = None
    labels_key: str | None = None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text")
    return value


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("an integer")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError("a number")
    try:
        return float(value)
    except OverflowError:
        raise TypeError("a number") from None


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("true or false")
    return value


def _preset(value: Any) -> Preset:
    return parse_preset(_text(value))


def _slice(option: str) -> Callable[[Any], str]:
    def checked(value: Any) -> str:
        parse_slice(_text(value), option)
        return _text(value)

    return checked


def _texts(value: Any) -> tuple[str, ...]:
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in items):
        raise TypeError("a text or a list of texts")
    return tuple(part.strip() for item in items for part in item.split(",") if part.strip())


def _numbers(value: Any) -> tuple[float, ...]:
    items = value if isinstance(value, list) else [value]
    return tuple(_number(item) for item in items)


def _relative(value: Any) -> tuple[float | None, ...]:
    items = value if isinstance(value, list) else [value]
    return tuple(parse_rtol(item) if isinstance(item, str) else _number(item) for item in items)


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("a table")
    return value


def _constants(value: Any) -> dict[str, str | int | float]:
    table = _table(value)
    for name, cell in table.items():
        taken = name in COLUMNS or (name in OPTIONAL and name != "epoch")  # which the file may know
        if taken or not name.isprintable() or not name.strip():
            raise TypeError(f"names other than {name!r}, which is taken or no name")
        if isinstance(cell, bool) or not isinstance(cell, (str, int, float)):
            raise TypeError("a table of texts and numbers")
        if isinstance(cell, int) and abs(cell) > _LARGEST_INTEGER:
            raise TypeError("integers of 64 bits")
    return table


_KEYS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "model": ("model", _text),
    "model-arg": ("model_args", _table),
    "activation": ("activation", _text),
    "data": ("data", _text),
    "data-key": ("data_key", _text),
    "data-scale": ("data_scale", _number),
    "points": ("points", _integer),
    "seed": ("seed", _integer),
    "layers": ("layers", _texts),
    "wrt": ("wrt", _text),
    "atol": ("atol", _numbers),
    "rtol": ("rtol", _relative),
    "input-metric": ("input_metric", _text),
    "noise": ("noise", _number),
    "dtype": ("dtype", _text),
    "columns": ("columns", _constants),
    "preset": ("preset", _preset),
    "input-slice": ("input_slice", _slice("--input-slice")),
    "output-slice": ("output_slice", _slice("--output-slice")),
    "sigma-1": ("sigma_1", _text),
    "information": ("information", _truth),
    "information-points": ("information_points", _integer),
    "information-noise": ("information_noise", _number),
    "labels-key": ("labels_key", _text),
}


def read_folder_settings(folder: Path) -> FolderSettings:
    """Reads a series' own settings.

    Args:
        folder: The series.

    Returns:
        The settings; empty when there is no file.

    Raises:
        SettingsError: If it cannot be read, or holds a key or value that is not allowed.
    """
    path = folder / FILE_NAME
    try:
        if not path.is_file():
            if path.exists() or path.is_symlink():  # to pass over it would change the numbers
                raise SettingsError(f"{path}: is no file that can be read.", "Mend or remove it.")
            return FolderSettings()
        loaded = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot be read ({error.strerror}).",
            "Check the permissions of the folder and of the file.",
        ) from error
    except (ValueError, RecursionError) as error:  # ValueError: of UTF-8 and of TOML
        raise SettingsError(
            f"{path}: cannot be read ({one_line(error)}).", "Mend or remove it."
        ) from error
    values: dict[str, Any] = {}
    for key, value in loaded.items():
        if key not in _KEYS:
            raise SettingsError(f"{path}: unknown key {key!r}.", f"Known are {', '.join(_KEYS)}.")
        name, convert = _KEYS[key]
        try:
            values[name] = convert(value)
        except TypeError as error:
            raise SettingsError(
                f"{path}: {key} = {value!r}, expected {error}.", "Mend the file."
            ) from error
        except UsageError as error:
            raise SettingsError(f"{path}: {error.what}", error.advice) from error
    settings = FolderSettings(path=path, **values)
    _check_values(settings, path)
    return settings


def inside(folder: Path, text: str, key: str) -> Path:
    """Resolves a path of a settings file, which may not leave its folder.

    Args:
        folder: The series.
        text: The path as written.
        key: For messages.

    Returns:
        The resolved path.

    Raises:
        SettingsError: If it leaves the folder, by `..`, an absolute path or a link, or is none.
    """
    try:
        path = (folder / text).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a NUL
        raise SettingsError(
            f"{folder / FILE_NAME}: {key} = {text!r} is no path ({error}).", "Mend the file."
        ) from error
    if not path.is_relative_to(folder.resolve()):
        raise SettingsError(
            f"{folder / FILE_NAME}: {key} = {text!r} leads out of the folder.",
            f"Put the file into the folder, or name it with --{key}.",
        )
    return path


def _check_values(settings: FolderSettings, path: Path) -> None:
    try:
        check_tolerances(settings.atol, settings.rtol)
        check_numbers(settings.noise, settings.points, settings.seed, settings.data_scale)
        check_words(settings.dtype, settings.input_metric, settings.sigma_1)
        check_sampling(settings.information_points, settings.information_noise)
    except UsageError as error:
        raise SettingsError(f"{path}: {error.what}", error.advice) from error
