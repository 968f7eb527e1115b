"""The peak under a budget: `python memory.py CASE BYTES`, a process for each.

Prints the budget, the peak over what the process held before (torch, weights, points), and their
quotient.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from cases import CASES
from methods import ATOL
from torch.func import jvp, vmap

from localrank_cli.layers.select import Selection
from localrank_cli.measures.table import demand_of
from localrank_cli.spectrum.layer import Request, layer_spectra
from localrank_cli.spectrum.tolerance import Tolerance


def status(field: str) -> int:
    """Read a size of this process.

    Args:
        field: Of /proc/self/status, in kB there.

    Returns:
        Bytes; 0 where there is no such field.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    """Run one case once."""
    name, memory = sys.argv[1], int(sys.argv[2])
    case = CASES[name]
    if name == "resnet":  # the widest and the deepest; all six take an hour under 256 MiB
        case = replace(case, layers=("stem", "block2.conv2"))
    model, points = case.make()
    torch.set_num_threads(2)
    points = points[:1].double() if name == "resnet" else points.double()
    model = model.double()
    demand = demand_of((Tolerance(atol=ATOL),))
    request = Request(Selection(case.layers), memory=memory, demand=demand)
    # Torch's own code of forward mode, 100 MB at its first use, is no working memory.
    vmap(lambda v: jvp(torch.sin, (v,), (v,))[1])(torch.ones(2, 2))
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    layer_spectra(model, points, request)
    peak = status("VmHWM") - before
    print(
        f"{name}: budget {memory / 2**20:.0f} MiB, peak {peak / 2**20:.0f} MiB,"
        f" ratio {peak / memory:.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
