"""How many threads compute."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def one_thread(when: bool = True) -> Iterator[None]:
    """Compute with one thread, if `when` is true.

    Threads that wait for one another spin unless OMP_WAIT_POLICY says otherwise. If another process
    occupies a core, a product of small matrices takes milliseconds instead of microseconds, and two
    threads are no faster for it even if all cores are free.
    """
    threads = torch.get_num_threads()
    if not when or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
