"""Writes a file that may be made again, such as a picture: whole, or not at all."""

import os
from pathlib import Path

from localrank_cli.errors import OutputError
from localrank_cli.table.write import cannot_write, replacing


def check_replaceable(target: Path) -> None:
    """Checks, before any work, that a file can be written or written again.

    Args:
        target: The output file.

    Raises:
        OutputError: If its folder is missing or closed, or something else has its name.
    """
    if target.exists() and not target.is_file():
        raise OutputError(f"{target}: is not a file.", "Choose another name with -o.")
    if not target.parent.is_dir():
        raise cannot_write(target, FileNotFoundError(2, "No such file or directory"))
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise cannot_write(target, PermissionError(13, "Permission denied"))


def write_whole(target: Path, content: bytes) -> None:
    """Writes a file beside its target and gives it the target's name when it is whole.

    Args:
        target: The output file; what it held before is replaced.
        content: All of it.

    Raises:
        OutputError: If it cannot be written; what was there stays.
    """
    # Through a link, so that the link stays one.
    with replacing(target.resolve(), binary=True) as stream:
        stream.write(content)
