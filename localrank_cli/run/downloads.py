"""What a call from Python has downloaded."""

from collections.abc import Iterator
from contextlib import contextmanager

from localrank_cli.remote.places import release


@contextmanager
def downloads() -> Iterator[None]:
    """Remove at the end what was downloaded, so that a later call lists addresses anew."""
    try:
        yield
    finally:
        release()
