"""What the operations of each case take at this machine's own rates: `bounds.py [--only CASE...]`.

Counts the eigenvalue problems, factorizations, products, and large elementwise operations and
copies of one run of localrank, and times one of each size and layout alone on one thread (processor
seconds, the least of several). The checks that run the network before any Jacobian is computed are
timed as a whole, since no second thread shares them. Prints their time plus the sum of the
operations over the number of cores: no implementation of the same operations and checks is faster,
whatever it does about everything else. The last column is the same with two factorizations L D L^T
in place of each eigenvalue problem, which is what counts alone would need.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from cases import CASES
from methods import METHODS
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from localrank_cli.jacobian import engine, guards
from localrank_cli.spectrum import layer

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
    instead: Callable[[Tensor], object] | None = None  # for counts alone


def inertia(matrix: Tensor) -> None:
    """Factorize a matrix twice as L D L^T: below and above the tolerance."""
    for _ in range(2):
        torch.linalg.ldl_factor(matrix)


ROUTINES = {
    "_linalg_eigh": Routine("eigenvalues", torch.linalg.eigvalsh, True, inertia),
    "_linalg_svd": Routine("SVD", torch.linalg.svdvals),
    "linalg_qr": Routine("QR", lambda matrix: torch.linalg.qr(matrix, mode="r")),
    "linalg_cholesky_ex": Routine("Cholesky", torch.linalg.cholesky_ex, True),
}

# What runs the network before any Jacobian is computed.
CHECKS = (
    (layer, "examine"),
    (guards, "checked_values"),
    (guards, "lay_out"),
    (guards, "points_are_separate"),
    (engine, "chain_of"),
)


@contextmanager
def around_checks(wrapped: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Wrap the checks, each by itself; none of them calls another."""
    with ExitStack() as stack:
        for module, name in CHECKS:
            stack.enter_context(mock.patch.object(module, name, wrapped(getattr(module, name))))
        yield


class Operations(TorchDispatchMode):
    """Counts calls of LAPACK by size, and other operations by what they are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = True
        self.calls: dict[str, Counter[Size]] = {name: Counter() for name in ROUTINES}
        self.products: Counter[Key] = Counter()
        self.others: Counter[Key] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count a call and make it."""
        del types
        out = func(*args, **(kwargs or {}))
        if not self.counts:
            return out
        name = str(func.overloadpacket).removeprefix("aten.")
        if name in self.calls:
            *batch, rows, columns = args[0].shape
            self.calls[name][_rounded(rows), _rounded(columns)] += int(torch.Size(batch).numel())
        elif func.overloadpacket in flop_registry:
            self.products[func, _described((args, kwargs or {}))] += 1
        elif isinstance(out, Tensor) and out.numel() >= LARGE and not func.is_view:
            self.others[func, _described((args, kwargs or {}))] += 1
        return out

    def without(self, check: Callable[..., Any]) -> Callable[..., Any]:
        """Return a check whose operations do not count, since it is timed as a whole."""

        def uncounted(*args: Any, **kwargs: Any) -> Any:
            self.counts = False
            try:
                return check(*args, **kwargs)
            finally:
                self.counts = True

        return uncounted


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


def count(case: str) -> tuple[Operations, float]:
    """Return the operations of a case, and the seconds of its checks, after a run on one point."""
    model, points = CASES[case].make()
    model, points = model.double(), points.double()
    run = partial(METHODS["localrank"], model, layers=CASES[case].layers)
    run(points=points[:1])
    operations = Operations()
    with around_checks(operations.without), operations:
        run(points=points)
    return operations, min(_in_checks(partial(run, points=points)) for _ in range(RUNS))


def _in_checks(run: Callable[[], object]) -> float:
    """Return the processor seconds of a run that are spent in checks."""
    found = 0.0

    def timed(check: Callable[..., Any]) -> Callable[..., Any]:
        def with_time(*args: Any, **kwargs: Any) -> Any:
            nonlocal found
            started = time.process_time()
            try:
                return check(*args, **kwargs)
            finally:
                found += time.process_time() - started

        return with_time

    with around_checks(timed):
        run()
    return found


def seconds(operations: Operations) -> tuple[dict[str, float], float]:
    """Return what the operations take on one thread, by kind; and what counts alone would spare."""
    found, spared = {}, 0.0
    for name, routine in ROUTINES.items():
        total = 0.0
        for size, times in operations.calls[name].items():
            matrix = torch.randn(*size, dtype=torch.float64)
            if routine.is_symmetric:
                matrix = matrix @ matrix.mT
            alone = least(partial(routine.run, matrix))
            total += times * alone
            if routine.instead is not None:
                spared += times * max(0.0, alone - least(partial(routine.instead, matrix)))
        found[routine.column] = total
    for column, calls in (("products", operations.products), ("elementwise", operations.others)):
        found[column] = sum(times * _alone(key) for key, times in calls.items())
    return found, spared


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
    names = (*(routine.column for routine in ROUTINES.values()), "products", "elementwise")
    sums = (f"sum / {CORES}", "checks", "bound", "counts")
    table = Table("case", *(f"{name} s" for name in (*names, *sums)))
    lines = []
    for case in options.only:
        operations, checks = count(case)
        parts, spared = seconds(operations)
        share = sum(parts.values()) / CORES
        bound = checks + share
        numbers = (*(parts[name] for name in names), share, checks, bound, bound - spared / CORES)
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
