"""One method on one case, in a process of its own: `worker.py CASE METHOD DTYPE THREADS`.

Each line on stdin is one run: how many points, and how many of the last layers (0: all).
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from cases import CASES
from methods import METHODS


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


class Work:
    """A method on the network of a case, which is built once."""

    def __init__(self, case: str, method: str, dtype: str, threads: int) -> None:
        torch.set_num_threads(1)  # all sides must train the same weights, to the last bit
        self._layers, self._method = CASES[case].layers, METHODS[method]
        model, points = CASES[case].make()
        torch.set_num_threads(threads)
        precision: torch.dtype = getattr(torch, dtype)
        self._model, self._points = model.to(precision), points.to(precision)
        # What building and training took does not count.
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status("VmRSS")

    def run(self, n_points: int, n_layers: int) -> dict[str, Any]:
        """Run once.

        Args:
            n_points: The first of the points; 0: all.
            n_layers: The last of the layers; 0: all.

        Returns:
            Seconds, processor seconds, counts and the peak memory so far.
        """
        points, layers = self._points[: n_points or None], self._layers[-n_layers:]
        processor, started = time.process_time(), time.perf_counter()
        counts = self._method(self._model, points, layers)
        return {
            "seconds": time.perf_counter() - started,
            "processor": time.process_time() - processor,
            "counts": counts,
            "peak": _status("VmHWM") - self._before,
        }


def main() -> None:
    """Answer each line with a line of JSON."""
    case, method, dtype, threads = sys.argv[1:]
    work = Work(case, method, dtype, int(threads))
    for line in sys.stdin:
        n_points, n_layers = (int(word) for word in line.split())
        print(json.dumps(work.run(n_points, n_layers)), flush=True)


if __name__ == "__main__":
    main()
