"""Whole commands: a series of checkpoints, many checkpoints in one folder, and the start."""

import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import networks
import torch
from sides import THREADS

HERE = Path(__file__).parent


def timed(words: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run a command to its end.

    Args:
        words: The command.
        environment: Added to this process's, whose settings of OpenMP are left out.

    Returns:
        Seconds, processor seconds of all its processes, and what it wrote to stdout.
    """
    plain = {key: value for key, value in os.environ.items() if "OMP_" not in key}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(
        words, check=True, stdout=subprocess.PIPE, text=True, env=plain | environment
    )
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "processor": processor, "output": done.stdout}


def whole_command(runs: int = 3) -> list[dict[str, Any]]:
    """Time the command on 12 checkpoints against a script of vmap(jacrev), start-up included.

    Args:
        runs: How many of each.

    Returns:
        A line of the table for each dtype of the script.
    """
    with tempfile.TemporaryDirectory(prefix="localrank-bench-") as name:
        series = save_series(Path(name) / "series", 12)
        script = [sys.executable, str(HERE / "script.py"), str(series)]
        ours = [sys.executable, "-m", "localrank_cli", "analyze", str(series), "-q", "-o", "-"]
        commands: dict[tuple[str, int], tuple[list[str], dict[str, str]]] = {
            ("localrank", 0): (ours, {})  # as it is: of torch's own number of threads
        }
        for threads in THREADS:
            environment = {"OMP_NUM_THREADS": str(threads)}
            commands["localrank", threads] = ours, environment
            for dtype in ("float32", "float64"):
                commands[dtype, threads] = [*script, dtype], environment
        found: dict[tuple[str, int], list[dict[str, Any]]] = {key: [] for key in commands}
        for _ in range(runs):
            for key, (words, environment) in commands.items():
                found[key].append(timed(words, environment))
    best = {
        label: min(
            (runs for (other, _), runs in found.items() if other == label),
            key=lambda runs: statistics.median(run["seconds"] for run in runs),
        )
        for label in ("localrank", "float32", "float64")
    }
    medians = {
        label: {
            key: statistics.median(run[key] for run in runs) for key in ("seconds", "processor")
        }
        for label, runs in best.items()
    }
    sums = {label: rank_sums(runs[0]["output"]) for label, runs in best.items()}
    return [
        {
            "case": "12 checkpoints of the first case, whole command",
            "baseline": f"script of jacrev, {dtype}",
            "localrank": medians["localrank"],
            "as_command": {
                key: statistics.median(run[key] for run in found["localrank", 0])
                for key in ("seconds", "processor")
            },
            "theirs": medians[dtype],
            "target": 5.0,
            # By step and layer: the sum over the 64 points.
            "differing": sum(sums[dtype][key] != count for key, count in sums["localrank"].items()),
            "matrices": len(sums["localrank"]),
        }
        for dtype in ("float32", "float64")
    ]


def rank_sums(output: str, points: int = 64) -> dict[tuple[str, str], int]:
    """Return the sums of ranks over points, by step and layer.

    Args:
        output: CSV with columns step, layer and local_rank.
        points: Of each mean.

    Returns:
        The sums.
    """
    rows = csv.DictReader(output.splitlines())
    return {(row["step"], row["layer"]): round(float(row["local_rank"]) * points) for row in rows}


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


def start_up(runs: int = 5) -> list[dict[str, Any]]:
    """Time the help of localrank and of analyze against importing torch, in turn.

    Args:
        runs: How many.

    Returns:
        Lines of the table.
    """
    helps = {"localrank --help": ["--help"], "localrank analyze --help": ["analyze", "--help"]}
    commands = {
        name: [sys.executable, "-m", "localrank_cli", *words] for name, words in helps.items()
    }
    commands["import torch"] = [sys.executable, "-c", "import torch"]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, words in commands.items():
            found[name].append(timed(words, {}))
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in ("seconds", "processor")}
        for name, runs in found.items()
    }
    theirs = medians.pop("import torch")
    return [
        {
            "case": name,
            "baseline": "import torch",
            "target": 4.0,
            "localrank": ours,
            "theirs": theirs,
        }
        for name, ours in medians.items()
    ]
