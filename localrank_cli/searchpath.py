"""Keep modules in the current folder, which may be anyone's, from hiding real ones.

`python -m` puts the current folder first on `sys.path`: a `numpy.py` beside the checkpoints would
then run in place of numpy. Only modules that Python itself loads at its start are imported here.
"""

import os
import sys

_NAME = "localrank_cli"


def current_folder_last() -> None:
    """Move entries of `sys.path` that mean the current folder to its end."""
    mine = [entry for entry in sys.path if _is_current_folder(entry)]
    sys.path[:] = [entry for entry in sys.path if entry not in mine] + mine


def is_program() -> bool:
    """Return whether this is `python -m localrank_cli`, still looking the package up.

    A package that another program imports must leave that program's `sys.path` alone.
    """
    words = " ".join(sys.orig_argv)
    return sys.argv[:1] == ["-m"] and (f" -m {_NAME}" in words or f" -m{_NAME}" in words)


def program_words(interpreter: str) -> list[str]:
    """Return the command that starts this very package in another process.

    `-P` keeps the current folder off the path. `-I`, `-E` and `-s` would do so too, but would lose
    PYTHONPATH and packages that are installed for one user.
    """
    from importlib.machinery import PathFinder  # loaded only once the search path is safe

    package = os.path.dirname(os.path.abspath(__file__))
    elsewhere = [entry for entry in sys.path if not _is_current_folder(entry)]
    found = PathFinder.find_spec(_NAME, elsewhere)
    if found is not None and found.origin == os.path.join(package, "__init__.py"):
        return [interpreter, "-P", "-m", _NAME]
    # If the current folder is a checkout, only the package itself is imported from it first.
    root = os.path.dirname(package)
    start = (
        f"import sys; sys.path.insert(0, {root!r}); import {_NAME};"
        f" sys.path.append(sys.path.pop(0)); from {_NAME}.__main__ import main; main()"
    )
    return [interpreter, "-P", "-c", start]


def _is_current_folder(entry: str) -> bool:
    try:
        return os.path.realpath(entry or os.curdir) == os.path.realpath(os.getcwd())
    except OSError:  # the current folder was removed
        return False
