"""What the operations of each case take at this machine's own rates: `bounds.py [--only CASE...]`.

Counts the eigenvalue problems, factorizations and products of one run of localrank, times one of
each size alone on one thread (processor seconds, the least of several), and prints their sum over
the number of cores.
No implementation of the same operations is faster, whatever it does about everything else.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from cases import CASES
from methods import METHODS
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

CORES = 2
# Sizes are timed in steps of this, which is less than matters to LAPACK.
STEP = 16
RUNS = 5
Size = tuple[int, int]


@dataclass(frozen=True)
class Routine:
    """A routine of LAPACK."""

    column: str
    run: Callable[[Tensor], object]
    is_symmetric: bool = False


ROUTINES = {
    "_linalg_eigh": Routine("eigenvalues", torch.linalg.eigvalsh, is_symmetric=True),
    "_linalg_svd": Routine("SVD", torch.linalg.svdvals),
    "linalg_qr": Routine("QR", lambda matrix: torch.linalg.qr(matrix, mode="r")),
    "linalg_cholesky_ex": Routine("Cholesky", torch.linalg.cholesky_ex, is_symmetric=True),
}


class Operations(TorchDispatchMode):
    """Counts calls of LAPACK by size, and the operations of products."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, Counter[Size]] = {name: Counter() for name in ROUTINES}
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count a call and make it."""
        del types
        out = func(*args, **(kwargs or {}))
        name = str(func.overloadpacket).removeprefix("aten.")
        if name in self.calls:
            *batch, rows, columns = args[0].shape
            self.calls[name][_rounded(rows), _rounded(columns)] += int(torch.Size(batch).numel())
        elif func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def _rounded(size: int) -> int:
    return size if size < STEP else -(-size // STEP) * STEP


def least(run: Callable[[], object]) -> float:
    """Time a call; return the least of some runs after a first one."""
    found = []
    for _ in range(RUNS + 1):
        started = time.process_time()
        run()
        found.append(time.process_time() - started)
    return min(found[1:])


def product_rate() -> float:
    """Return operations per second of a product of 512 x 512."""
    matrix = torch.randn(512, 512, dtype=torch.float64)
    return 2 * 512**3 / least(lambda: matrix @ matrix)


def count(case: str) -> Operations:
    """Return the operations of a case, after a run that does not count."""
    model, points = CASES[case].make()
    model, points = model.double(), points.double()
    METHODS["localrank"](model, points[:1], CASES[case].layers)
    with Operations() as operations:
        METHODS["localrank"](model, points, CASES[case].layers)
    return operations


def seconds(operations: Operations, rate: float) -> dict[str, float]:
    """Return what the operations take on one thread, by kind."""
    found = {}
    for name, routine in ROUTINES.items():
        total = 0.0
        for size, times in operations.calls[name].items():
            matrix = torch.randn(*size, dtype=torch.float64)
            if routine.is_symmetric:
                matrix = matrix @ matrix.mT
            total += times * least(partial(routine.run, matrix))
        found[routine.column] = total
    return found | {"products": operations.flops / rate}


def main() -> None:
    """Print a table in Markdown, or for a person."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=tuple(CASES), default=tuple(CASES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rate = product_rate()
    names = (*(routine.column for routine in ROUTINES.values()), "products")
    table = Table("case", *(f"{name} s" for name in names), f"sum / {CORES} s")
    lines = []
    for case in options.only:
        parts = seconds(count(case), rate)
        total = sum(parts.values()) / CORES
        lines.append([CASES[case].name, *(f"{parts[name]:.3f}" for name in names), f"{total:.3f}"])
        table.add_row(*lines[-1])
    console = Console()
    console.print(f"products: {rate / 1e9:.0f} GFLOP/s on one thread")
    if console.is_terminal:
        console.print(table)
        return
    for line in lines:
        print("|", " | ".join(line), "|", flush=True)


if __name__ == "__main__":
    main()
