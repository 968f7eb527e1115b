"""The number of threads that compute."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def n_threads(number: int) -> Iterator[None]:
    """Compute with a number of threads."""
    threads = torch.get_num_threads()
    if number == threads:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def one_thread(when: bool = True) -> Iterator[None]:
    """Compute with one thread, if `when` is true.

    Threads that wait for one another spin unless OMP_WAIT_POLICY says otherwise. If another process
    occupies a core, a product of small matrices takes milliseconds instead of microseconds, and two
    threads are no faster for it even if all cores are free.
    """
    with n_threads(1 if when else torch.get_num_threads()):
        yield
