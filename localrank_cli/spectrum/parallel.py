"""Small independent pieces of linear algebra on all cores."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def thread_map(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """Maps over items, as many at a time as torch has threads, each on one thread.

    One thread a matrix beats all threads on one matrix where matrices are small; torch lets other
    threads run while LAPACK works.

    Args:
        work: Must not depend on other items.
        items: What to work on.

    Returns:
        The results in order; the first error, if there is one, is raised.
    """
    listed = list(items)
    threads = torch.get_num_threads()
    workers = min(threads, len(listed))
    if workers < 2:
        return [work(item) for item in listed]
    try:
        torch.set_num_threads(1)
        # In the workers too: the number of threads is kept for each thread.
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, listed))
    finally:
        torch.set_num_threads(threads)
