"""Opening files that may be anything: a pipe would wait forever, and a device never end."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to be read.

    Raises:
        OSError: If it cannot be opened, or is a pipe, a device, a socket or a folder.
    """
    # O_NONBLOCK: opening a pipe would wait for its other end.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "Not a regular file", str(path))


def read_regular(path: Path, most: int) -> bytes:
    """Return the content of a regular file that a tool writes small.

    Raises:
        OSError: If it cannot be read, is no regular file, or has more than `most` bytes.
    """
    with open_regular(path) as file:
        # Asked before: a file with a hole takes no room on the disk and all of the memory.
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"{size} bytes, expected at most {most}", str(path))
        return file.read()
