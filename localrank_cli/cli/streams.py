"""Standard streams that the caller closed."""

import os
import sys


def open_missing_streams() -> None:
    """Puts something in the place of a closed stdin, stdout or stderr (`>&-`).

    Otherwise the first file that is opened takes the free number, and what a library prints ends
    in it. The stand-in for stdout refuses to be written to, as a closed one does: results must not
    vanish without a word.
    """
    for name, descriptor, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is not None or _is_open(descriptor):
            continue
        opened = os.open(os.devnull, os.O_WRONLY if descriptor == 2 else os.O_RDONLY)
        if opened != descriptor:
            os.dup2(opened, descriptor)
            os.close(opened)
        setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", errors="backslashreplace"))


def discard_stdout() -> None:
    """Lets what is left for stdout go nowhere: the interpreter flushes it once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
