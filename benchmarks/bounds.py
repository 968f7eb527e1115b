"""What the operations of each case take at this machine's own rates: `bounds.py [--only CASE...]`.

Counts the eigenvalue problems, factorizations, products, and large elementwise operations and
copies of one run of localrank, times one of each size and layout alone on one thread (processor
seconds, the least of several), and prints their sums over the number of cores: with and without the
elementwise operations and copies, some of which a fused kernel would spare. No implementation of
the same operations is faster, whatever it does about everything else.
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
# Entries of a result from which on an operation takes more than its call.
LARGE = 2**14
Size = tuple[int, int]
# An operation, and what it was called with: sizes and strides of tensors, everything else as it is.
Key = tuple[Any, tuple[Any, ...]]


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
    """Counts calls of LAPACK by size, and other operations by what they are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, Counter[Size]] = {name: Counter() for name in ROUTINES}
        self.products: Counter[Key] = Counter()
        self.others: Counter[Key] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count a call and make it."""
        del types
        out = func(*args, **(kwargs or {}))
        name = str(func.overloadpacket).removeprefix("aten.")
        if name in self.calls:
            *batch, rows, columns = args[0].shape
            self.calls[name][_rounded(rows), _rounded(columns)] += int(torch.Size(batch).numel())
        elif func.overloadpacket in flop_registry:
            self.products[func, _described((args, kwargs or {}))] += 1
        elif isinstance(out, Tensor) and out.numel() >= LARGE and not func.is_view:
            self.others[func, _described((args, kwargs or {}))] += 1
        return out


def _described(value: Any) -> Any:
    """Return what identifies the arguments of a call, and lets it be made again."""
    if isinstance(value, Tensor):
        return Like(tuple(value.shape), value.stride(), value.dtype)
    if isinstance(value, tuple | list):
        return tuple(_described(one) for one in value)
    if isinstance(value, dict):
        return tuple((key, _described(one)) for key, one in value.items())
    return value


def _made(value: Any) -> Any:
    """Return arguments like those that were described."""
    if isinstance(value, Like):
        return value.make()
    return tuple(_made(one) for one in value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Like:
    """The layout of a tensor."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    def make(self) -> Tensor:
        """Return a tensor of that layout; indices are those of the first entry."""
        last = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if self.dtype.is_floating_point:
            entries = torch.randn(last + 1, dtype=self.dtype)
        else:
            entries = torch.zeros(last + 1, dtype=self.dtype)
        return entries.as_strided(self.shape, self.strides)


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


def count(case: str) -> Operations:
    """Return the operations of a case, after a run that does not count."""
    model, points = CASES[case].make()
    model, points = model.double(), points.double()
    METHODS["localrank"](model, points[:1], CASES[case].layers)
    with Operations() as operations:
        METHODS["localrank"](model, points, CASES[case].layers)
    return operations


def seconds(operations: Operations) -> dict[str, float]:
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
    for column, calls in (("products", operations.products), ("elementwise", operations.others)):
        found[column] = sum(times * _alone(key) for key, times in calls.items())
    return found


def _alone(key: Key) -> float:
    """Time an operation by itself."""
    func, (args, kwargs) = key[0], key[1]
    given, named = _made(args), {name: _made(value) for name, value in kwargs}
    return least(lambda: func(*given, **named))


def main() -> None:
    """Print a table in Markdown, or for a person."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=tuple(CASES), default=tuple(CASES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = (*(routine.column for routine in ROUTINES.values()), "products")
    sums = (f"sum / {CORES}", "elementwise", f"with these / {CORES}")
    table = Table("case", *(f"{name} s" for name in (*names, *sums)))
    lines = []
    for case in options.only:
        parts = seconds(count(case))
        whole = sum(parts.values()) / CORES
        without = whole - parts["elementwise"] / CORES
        numbers = (*(parts[name] for name in names), without, parts["elementwise"], whole)
        lines.append([CASES[case].name, *(f"{number:.3f}" for number in numbers)])
        table.add_row(*lines[-1])
    console = Console()
    if console.is_terminal:
        console.print(table)
        return
    for line in lines:
        print("|", " | ".join(line), "|", flush=True)


if __name__ == "__main__":
    main()
