"""Time two versions of localrank against each other: `versions.py OLD NEW`, two checkouts.

Each needs a `.venv`, its own or a link to one that both share. Runs alternate (A B A B ...), so
that a machine whose speed drifts does so for both; the first run of each is not counted. Seconds
are of the processor, user and system, so that other load on the machine counts less.
"""

import argparse
import os
import resource
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
CASES = ("mlp200", "tanh", "deficient", "normed", "mlp512", "decoder")
COMMANDS = {
    "localrank --help": ("--help",),
    "localrank analyze --help": ("analyze", "--help"),
    "localrank analyze gaussian_teacher": ("analyze", "sample_checkpoints/gaussian_teacher", "-q"),
    "localrank analyze mnist_mlp": ("analyze", "sample_checkpoints/mnist_mlp", "-q"),
}
Run = Callable[[], float]


def environment(tree: Path) -> dict[str, str]:
    """Return the variables under which a tree's own package is imported."""
    return os.environ | {"PYTHONPATH": str(tree)}


def case_run(tree: Path, case: str, threads: int) -> Run:
    """Start a worker of a case; return a function that runs it once and returns its seconds."""
    worker = [str(HERE / "worker.py"), case, "localrank", "float64", str(threads)]
    command = [str(tree / ".venv/bin/python"), *worker]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(tree)
    )

    def run() -> float:
        assert process.stdin is not None
        assert process.stdout is not None
        before = _seconds_of(process.pid)
        process.stdin.write("0 0\n")
        process.stdin.flush()
        process.stdout.readline()
        return _seconds_of(process.pid) - before

    return run


def command_run(tree: Path, words: tuple[str, ...]) -> Run:
    """Return a function that runs a command line and returns its seconds."""

    def run() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [str(tree / ".venv/bin/python"), "-m", "localrank_cli", *words],
            cwd=tree,
            capture_output=True,
            check=True,
            env=environment(tree),
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return run


def _seconds_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trees", nargs=2, type=Path)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cases", nargs="*", default=[*CASES, *COMMANDS])
    options = parser.parse_args()
    trees = [tree.resolve() for tree in options.trees]
    table = Table("case", "old, s", "new, s", "new / old")
    for case in options.cases:
        if case in COMMANDS:
            runs = [command_run(tree, COMMANDS[case]) for tree in trees]
        else:
            runs = [case_run(tree, case, options.threads) for tree in trees]
        seconds: list[list[float]] = [[], []]
        for _ in range(options.runs + 1):
            for kept, run in zip(seconds, runs, strict=True):
                kept.append(run())
        old, new = (statistics.median(kept[1:]) for kept in seconds)
        table.add_row(case, f"{old:.3f}", f"{new:.3f}", f"{new / old:.2f}")
        Console().print(f"{case}: {old:.3f} {new:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
