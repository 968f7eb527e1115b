"""Matplotlib without the settings that it reads from the current folder and from the user's."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

# A backend opens windows, of which we have none, and an unknown one stops the import.
_IGNORED = {"MPLBACKEND": None}
_FOLDERS = ("MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")  # looked up at the import


def import_matplotlib() -> None:
    """Import matplotlib with its own defaults; for a program, not for a library.

    At its import it reads `matplotlibrc` in the current folder, which may be anyone's, then the
    user's. Such a file can hang (a pipe) or stop the import. Figures are drawn in a style of their
    own in any case.

    Raises:
        ImportError: If it is not installed.
    """
    if sys.modules.get("matplotlib") is not None:  # None: it may not be imported
        return
    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise ImportError("No module named 'matplotlib'", name="matplotlib")
    folder = Path(spec.origin).parent / "mpl-data"
    places = {
        name: str(Path(os.environ[name]).absolute()) for name in _FOLDERS if name in os.environ
    }
    changes = _IGNORED | places | {"MATPLOTLIBRC": str(folder)}
    with _environment(changes), _in(folder):
        import matplotlib.style  # noqa: F401  # slow, and an extra


@contextmanager
def own_style(settings: Mapping[str, Any] = MappingProxyType({})) -> Iterator[None]:
    """Draw and save with matplotlib's defaults, but for some settings (`rcParams`)."""
    from matplotlib import rc_context, style

    changes: Any = dict(settings)  # its keys are a type of matplotlib's
    with style.context("default"), rc_context(changes):
        yield


@contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    before = {name: os.environ.pop(name, None) for name in changes}
    os.environ.update({name: value for name, value in changes.items() if value is not None})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _in(folder: Path) -> Iterator[None]:
    """Work in another folder for a moment; the current one may have been removed by now."""
    with suppress(OSError):
        here = os.open(os.curdir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.chdir(folder)
            yield
        finally:
            os.fchdir(here)
            os.close(here)
        return
    yield
