"""The sides of a comparison: a method at a number of threads, and the best of each method."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cases import CASES
from methods import COUNTS, FLOAT64_ONLY
from worker import Work

HERE = Path(__file__).parent
THREADS = (1, 2)
# Seconds that each side may run after its first run; it runs at least once and MOST_RUNS times.
SHARE = 4.0
MOST_RUNS = 5
# A side that is slower than another number of threads by this factor is not run again.
HOPELESS = 1.3


@dataclass(frozen=True)
class Setting:
    """How a method is run."""

    method: str
    dtype: str
    threads: int
    # OMP_WAIT_POLICY is left as a user has it, except where the command localrank sets it.
    is_command: bool = False

    @property
    def label(self) -> str:
        """What the setting is called in the table."""
        if self.is_command:
            return "localrank, as its command runs"
        return self.method if self.method in FLOAT64_ONLY else f"{self.method}, {self.dtype}"


class Worker(Protocol):
    """What runs a method."""

    def run(self, n_points: int, n_layers: int) -> dict[str, Any]:
        """Run once, as `Work.run`."""

    def stop(self) -> None:
        """Free what it holds."""


class Process:
    """A worker in a process of its own."""

    def __init__(self, case: str, setting: Setting) -> None:
        words = [case, setting.method, setting.dtype, str(setting.threads)]
        environment = {key: value for key, value in os.environ.items() if "OMP_" not in key}
        if setting.is_command:
            environment |= command_environment()
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, n_points: int, n_layers: int) -> dict[str, Any]:
        """Run once."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{n_points} {n_layers}\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def stop(self) -> None:
        """End the process."""
        self._process.communicate()


class Inline:
    """A worker in this process: for a quick look whether everything runs."""

    def __init__(self, case: str, setting: Setting) -> None:
        self._work = Work(case, setting.method, setting.dtype, setting.threads)

    def run(self, n_points: int, n_layers: int) -> dict[str, Any]:
        """Run once."""
        return self._work.run(n_points, n_layers)

    def stop(self) -> None:
        """Do nothing."""


def command_environment() -> dict[str, str]:
    """Return the variables that the command localrank sets for itself."""
    from localrank_cli.cli.command import do_not_spin

    before = dict(os.environ)
    os.environ.pop("OMP_WAIT_POLICY", None)
    do_not_spin()
    found = {key: value for key, value in os.environ.items() if "OMP_" in key}
    os.environ.clear()
    os.environ.update(before)
    return {key: value for key, value in found.items() if before.get(key) != value}


@dataclass
class Side:
    """A setting and what its runs answered."""

    setting: Setting
    worker: Worker
    answers: list[dict[str, Any]] = field(default_factory=list)
    is_done: bool = False

    def run(self, n_points: int) -> None:
        """Run on some points, 0: all; and keep the answer."""
        self.answers.append(self.worker.run(n_points, 0))
        spent = sum(answer["seconds"] for answer in self.answers)
        self.is_done = len(self.answers) == MOST_RUNS or spent > SHARE

    def median(self, key: str) -> float:
        """Return the median of a number."""
        return statistics.median(answer[key] for answer in self.answers)


def settings(case: str, *, quick: bool = False) -> list[Setting]:
    """Return all settings of a case's methods."""
    threads = THREADS[:1] if quick else THREADS
    found = [Setting("localrank", "float64", count) for count in threads]
    found.append(Setting("localrank", "float64", THREADS[-1], is_command=True))
    baselines = [*CASES[case].baselines, *([COUNTS] if CASES[case].counts else [])]
    for method in baselines:
        for dtype in ("float64",) if method in FLOAT64_ONLY else ("float32", "float64"):
            found += [Setting(method, dtype, count) for count in threads]
    return found


def best_sides(case: str, *, quick: bool = False) -> list[Side]:
    """Run all settings of a case in turn; return each method's best number of threads."""
    worker: type[Inline | Process] = Inline if quick else Process
    chosen = settings(case, quick=quick)
    sides = [Side(setting, worker(case, setting)) for setting in chosen]
    if quick:
        for side in sides:
            side.run(2)
    elif CASES[case].is_long:
        sides = _run_once(sides)
    else:
        _run_in_turn(sides)
    for side in sides:
        side.worker.stop()
    return _best(sides)


def _run_once(sides: Sequence[Side]) -> list[Side]:
    """Run each method once, with the better number of threads for the deepest layer alone."""
    for side in sides:
        side.answers.append(side.worker.run(1, 1))
    kept = _best(sides)
    for side in sides:
        if side not in kept:
            side.worker.stop()
    for side in kept:
        side.answers.clear()
        side.run(0)
    return kept


def _run_in_turn(sides: Sequence[Side]) -> None:
    for side in sides:  # what torch loads at its first use does not count
        side.worker.run(1, 0)
    while running := [side for side in sides if not side.is_done]:
        for side in running:
            side.run(0)
        _give_up(running)


def _give_up(sides: Sequence[Side]) -> None:
    for side in sides:
        others = [one for one in sides if one.setting.label == side.setting.label]
        fastest = min(one.median("seconds") for one in others)
        side.is_done |= side.median("seconds") > HOPELESS * fastest


def _best(sides: Sequence[Side]) -> list[Side]:
    labels = dict.fromkeys(side.setting.label for side in sides)
    return [
        min(
            (side for side in sides if side.setting.label == label),
            key=lambda side: side.median("seconds"),
        )
        for label in labels
    ]
