"""Opening files that may be anything: a pipe would wait for ever, and a device never end."""

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
