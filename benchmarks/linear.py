"""Time and peak memory by the number of checkpoints and of points: `python linear.py`.

One process for each line; the network is the first case's. Seconds are those of the computing
itself, without start-up; the peak is over the process with torch, weights and points.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from cases import CASES
from memory import status
from methods import ATOL
from torch import nn

from localrank_cli.layers.select import Selection
from localrank_cli.measures.table import demand_of
from localrank_cli.spectrum.layer import Request, layer_spectra
from localrank_cli.spectrum.tolerance import Tolerance

COUNTS = (1, 10, 100)


def _worker(checkpoints: int, points: int) -> None:
    torch.set_num_threads(2)
    model, _ = CASES["mlp200"].make()
    model = model.double()
    inputs = torch.rand(points, 784, dtype=torch.float64)
    request = Request(Selection(), demand=demand_of((Tolerance(atol=ATOL),)))
    layer_spectra(model, inputs[:1], request)  # what is loaded once does not count
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    started = time.perf_counter()
    for seed in range(checkpoints):
        torch.manual_seed(seed)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
        layer_spectra(model, inputs, request)
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "peak": status("VmHWM") - before}))


def main() -> None:
    """Print a line for each number of checkpoints (at 10 points) and of points (at one)."""
    if len(sys.argv) > 1:
        _worker(int(sys.argv[1]), int(sys.argv[2]))
        return
    for checkpoints, points in [(n, 10) for n in COUNTS] + [(1, n) for n in COUNTS]:
        words = [sys.executable, __file__, str(checkpoints), str(points)]
        answer = json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout)
        print(
            f"{checkpoints:4} checkpoints, {points:4} points: {answer['seconds']:8.3f} s,"
            f" {answer['peak'] / 2**20:6.1f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
