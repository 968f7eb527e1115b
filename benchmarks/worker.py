"""One method on one case, in a process of its own; each line on stdin is one run."""

import json
import sys
import time
from pathlib import Path

import torch
from cases import CASES
from methods import METHODS


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    """Answer each line with the seconds, the counts and the peak memory so far."""
    case, method = CASES[sys.argv[1]], METHODS[sys.argv[2]]
    torch.set_num_threads(int(sys.argv[3]))
    model, points = case.make()
    # What building and training took does not count.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    for _ in sys.stdin:
        started = time.perf_counter()
        counts = method(model, points, case.layers)
        seconds = time.perf_counter() - started
        answer = {"seconds": seconds, "counts": counts, "peak": _status("VmHWM") - before}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
