"""Time localrank against what a user would write today, side by side.

Each method runs in a process of its own, in turn (A B A B ...), so that a machine whose speed
drifts does so for both. The first run of each is not counted. Ratios are of medians.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import networks
import torch
from cases import CASES, Case
from rich.console import Console
from rich.table import Table
from scaling import merging, scaling

HERE = Path(__file__).parent


@dataclass
class Runs:
    """What one method's process answered."""

    process: subprocess.Popen[str]
    answers: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def start(cls, case: str, method: str, threads: int) -> "Runs":
        """Start a worker.

        Args:
            case: Key of CASES.
            method: Key of METHODS.
            threads: Of torch.

        Returns:
            The worker, waiting.
        """
        command = [sys.executable, str(HERE / "worker.py"), case, method, str(threads)]
        # Neither side is given an OMP_WAIT_POLICY: under PASSIVE two threads of a baseline take up
        # to three times as long as a user's.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return cls(process)

    def run(self) -> None:
        """Run once."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        self.answers.append(json.loads(self.process.stdout.readline()))

    def stop(self) -> None:
        """End the worker."""
        self.process.communicate()

    @property
    def seconds(self) -> float:
        """The median, without the first run where there are several."""
        times = [answer["seconds"] for answer in self.answers]
        return statistics.median(times[1:] or times)


def compare(key: str, case: Case, threads: int) -> list[dict[str, Any]]:
    """Time one case against its baselines.

    Args:
        key: Of CASES.
        case: The case.
        threads: Of torch.

    Returns:
        A line of the table for each baseline.
    """
    lines = []
    for baseline, target in case.against.items():
        ours, theirs = (Runs.start(key, method, threads) for method in ("localrank", baseline))
        for _ in range(case.runs + 1 if case.runs > 1 else 1):
            ours.run()
            theirs.run()
        ours.stop()
        theirs.stop()
        lines.append(
            {
                "case": case.name,
                "against": baseline,
                "localrank_seconds": ours.seconds,
                "baseline_seconds": theirs.seconds,
                "ratio": theirs.seconds / ours.seconds,
                "target": target,
                "localrank_peak": ours.answers[0]["peak"],
                "baseline_peak": theirs.answers[0]["peak"],
                "localrank_counts": ours.answers[0]["counts"],
                "baseline_counts": theirs.answers[0]["counts"],
            }
        )
    return lines


def whole_command(threads: int, runs: int = 3) -> dict[str, Any]:
    """Time the command on 12 checkpoints against a script of (b), start-up included.

    Args:
        threads: Of torch, by OMP_NUM_THREADS.
        runs: How many.

    Returns:
        A line of the table.
    """
    folder = Path(tempfile.mkdtemp(prefix="localrank-bench-"))
    try:
        series = save_series(folder / "series", 12)
        ours = [sys.executable, "-m", "localrank_cli", "analyze", str(series), "-q", "-o"]
        script = [sys.executable, str(HERE / "script.py"), str(series)]
        times: tuple[list[float], list[float]] = ([], [])
        for run in range(runs):
            target = folder / f"{run}.csv"
            for seconds, command in zip(times, ([*ours, str(target)], script), strict=True):
                started = time.perf_counter()
                subprocess.run(
                    command,
                    check=True,
                    stdout=subprocess.DEVNULL,
                    env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                )
                seconds.append(time.perf_counter() - started)
        ours_median, theirs_median = (statistics.median(seconds) for seconds in times)
    finally:
        shutil.rmtree(folder)
    return {
        "case": "12 checkpoints of the first case, whole command",
        "against": "script of jacrev",
        "localrank_seconds": ours_median,
        "baseline_seconds": theirs_median,
        "ratio": theirs_median / ours_median,
        "target": 6,
    }


def save_series(folder: Path, count: int) -> Path:
    """Train the first case's network and save checkpoints on the way.

    Args:
        folder: Made here.
        count: How many checkpoints.

    Returns:
        The folder, with its data and its localrank.toml.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = networks.mlp(200)
    every = networks.TRAINING_STEPS // count

    def save(step: int) -> None:
        if step % every == 0:
            save_file(model.state_dict(), folder / f"step_{step}.safetensors")

    networks.train(model, every * count, save)
    save_file({"x": networks.digits(64)[0]}, folder / "data.safetensors")
    (folder / "localrank.toml").write_text('data = "data.safetensors"\n')
    return folder


def many(counts: tuple[int, ...] = (1000, 10_000)) -> list[dict[str, Any]]:
    """Plan, compute and resume with many small checkpoints in one folder.

    Args:
        counts: How many; the growth of memory is that from the first to the last.

    Returns:
        A line for each count: seconds and peak over torch, without a baseline.
    """
    lines: list[dict[str, Any]] = []
    for count in counts:
        command = [sys.executable, str(HERE / "many.py"), str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        lines.append({"case": f"{count} checkpoints in one folder", **json.loads(done.stdout)})
        print(
            "{case}: planned in {planning_seconds:.1f} s, computed in {computing_seconds:.1f} s,"
            " resumed in {going_on_seconds:.1f} s".format_map(lines[-1])
        )
    growth = (lines[-1]["peak"] - lines[0]["peak"]) / (counts[-1] - counts[0])
    print(f"memory: {lines[-1]['peak'] / 2**20:.0f} MiB over torch, {growth:.0f} bytes more each")
    return lines


def start_up(runs: int = 5) -> dict[str, Any]:
    """Time `localrank --help` against importing torch.

    Args:
        runs: How many.

    Returns:
        A line of the table.
    """
    commands = (
        [sys.executable, "-m", "localrank_cli", "--help"],
        [sys.executable, "-c", "import torch"],
    )
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for seconds, command in zip(times, commands, strict=True):
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - started)
    ours, theirs = (statistics.median(seconds) for seconds in times)
    return {
        "case": "localrank --help",
        "against": "import torch",
        "localrank_seconds": ours,
        "baseline_seconds": theirs,
        "ratio": theirs / ours,
        "target": 4,
    }


def show(lines: list[dict[str, Any]]) -> None:
    """Print the table.

    Args:
        lines: From the functions above.
    """
    table = Table(title="seconds, medians; ratio = baseline / localrank")
    for name in ("case", "against", "localrank", "baseline", "ratio", "target", "peak MiB"):
        table.add_column(name)
    for line in lines:
        peaks = ""
        if "localrank_peak" in line:
            peaks = f"{line['localrank_peak'] / 2**20:.0f} / {line['baseline_peak'] / 2**20:.0f}"
        table.add_row(
            line["case"],
            line["against"],
            f"{line['localrank_seconds']:.3f}",
            f"{line['baseline_seconds']:.3f}",
            f"{line['ratio']:.1f}",
            f"{line['target']:g}",
            peaks,
        )
    Console(width=120).print(table)


def main() -> None:
    """Run the selected cases, print the table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[*CASES, "command", "help", "many"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    lines: list[dict[str, Any]] = []
    without_baseline: list[dict[str, Any]] = []
    for key in options.only:
        if key == "command":
            lines.append(whole_command(options.threads))
        elif key == "help":
            lines.append(start_up())
        elif key == "many":
            without_baseline = many()
            continue
        elif key == "scaling":
            lines.append(scaling())
        elif key == "merge5000":
            lines += merging()
        else:
            lines += compare(key, CASES[key], options.threads)
        show(lines[-1:])
    if lines:
        show(lines)
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "threads": options.threads,
        "lines": lines,
        "many": without_baseline,
    }
    options.json.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
