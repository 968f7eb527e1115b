"""The speed of several workers, and the cost of merging many shards."""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import networks
import torch

SHARDS = 5000


@dataclass(frozen=True)
class Run:
    """The cost of one run of a command."""

    seconds: float
    processor: float  # seconds of all its processes
    load: float  # of the machine, before it


def scaling(
    workers: int = 2, checkpoints: int = 12, points: int = 64, runs: int = 3
) -> list[dict[str, Any]]:
    """Compare one worker of one thread with two of one thread, in turn.

    Args:
        workers: How many.
        checkpoints: How much work there is: at least a minute for one worker.
        points: At each checkpoint.
        runs: How many of each.

    Returns:
        A line; the ratio is the median of those of neighbours.
    """
    from safetensors.torch import save_file

    folder = Path(tempfile.mkdtemp(prefix="localrank-bench-"))
    found: dict[int, list[Run]] = {1: [], workers: []}
    try:
        series = folder / "series"
        series.mkdir()
        for step in range(checkpoints):
            torch.manual_seed(step)
            save_file(networks.mlp(1024).state_dict(), series / f"step_{step}.safetensors")
        for _ in range(runs):
            for count, of_count in found.items():
                target = folder / f"{count}.csv"
                words = [str(series), "-q", "--data", "normal:784", "--points", str(points)]
                words += ["--device", "cpu", "--workers", str(count), "-o", str(target)]
                of_count.append(_timed(["submit", *words, "--overwrite"], threads=count))
                print(count, "workers:", of_count[-1], flush=True)
        tables = {(folder / f"{count}.csv").read_bytes() for count in found}
        assert len(tables) == 1
    finally:
        shutil.rmtree(folder)
    ratios = [one.seconds / more.seconds for one, more in zip(*found.values(), strict=True)]
    seconds = {count: statistics.median(run.seconds for run in found[count]) for count in found}
    return [
        {
            "case": f"{workers} workers of one thread, {checkpoints} checkpoints",
            "against": "one worker of one thread",
            "localrank_seconds": seconds[workers],
            "baseline_seconds": seconds[1],
            "ratio": statistics.median(ratios),
            "target": 1.8,
            "ratios": ratios,
            "runs": {count: [asdict(run) for run in found[count]] for count in found},
        }
    ]


def _timed(words: list[str], threads: int) -> Run:
    load = os.getloadavg()[0]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    surroundings = os.environ | {"OMP_NUM_THREADS": str(threads)}  # one for each worker
    subprocess.run([sys.executable, "-m", "localrank_cli", *words], check=True, env=surroundings)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(seconds, processor, load)


_MERGE = """
import json, sys, time
from pathlib import Path
from localrank_cli.divide.merge import collect, find_journals
from localrank_cli.divide.merge import write_merge
def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
base = memory("VmRSS")
started, processor = time.perf_counter(), time.process_time()
write_merge(collect(find_journals([Path(sys.argv[1])])), Path(sys.argv[2]), [], overwrite=False)
answer = {"seconds": time.perf_counter() - started, "processor": time.process_time() - processor}
print(json.dumps(answer | {"more": memory("VmHWM") - base}))
"""


def merging(shards: int = SHARDS) -> list[dict[str, Any]]:
    """Merge the tables of many shards, of a fifth and of a tenth of them.

    Args:
        shards: How many.

    Returns:
        A line for each; memory is what the merge took above the imports.
    """
    answers = {count: _merge(count) for count in (shards // 10, shards // 5, shards)}
    return [
        {
            "case": f"merge of {count} shards",
            "against": "20 s",
            "localrank_seconds": answer["seconds"],
            "baseline_seconds": 20.0,
            "ratio": 20.0 / answer["seconds"],
            "target": 1,
            "localrank_peak": answer["more"],
            "baseline_peak": answers[shards // 10]["more"],
            "processor_seconds": answer["processor"],
            "load": answer["load"],
        }
        for count, answer in answers.items()
    ]


def _merge(count: int) -> dict[str, Any]:
    """Merge the tables of so many shards, of one checkpoint each, in a fresh process."""
    folder = Path(tempfile.mkdtemp(prefix="localrank-bench-"))
    try:
        parts, target = folder / "parts", folder / "ranks.csv"
        rows = _write_shards(folder / "series", parts, count)
        command = [sys.executable, "-c", _MERGE, str(parts), str(target)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        with target.open(encoding="utf-8") as lines:
            assert sum(1 for _ in lines) == 1 + rows
        assert json.loads(Path(f"{target}.json").read_text(encoding="utf-8"))["complete"]
        answer: dict[str, Any] = json.loads(done.stdout) | {"load": os.getloadavg()[0]}
        print(count, "shards:", answer, flush=True)
        return answer
    finally:
        shutil.rmtree(folder)


def _write_shards(series: Path, parts: Path, count: int) -> int:
    """Compute one shard, and write it under the names of all.

    All of 5,000 would take an hour: each plans the whole series, and brings its files to the disk.

    Returns:
        How many rows they have together.
    """
    from safetensors.torch import save_file

    from localrank_cli.options.parse import Shard
    from localrank_cli.options.table import AnalyzeOptions
    from localrank_cli.results.journal import Journal
    from localrank_cli.run.compute import run_plan
    from localrank_cli.run.plan import make_plan
    from localrank_cli.run.resume import record_settings
    from localrank_cli.run.units import take_shard

    for made in (series, parts):
        made.mkdir()
    first = series / "step_0.safetensors"
    save_file(networks.mlp(16).state_dict(), first)
    for step in range(1, count):
        (series / f"step_{step}.safetensors").hardlink_to(first)
    options = AnalyzeOptions((series,), data="normal:784", points=64, device="cpu")
    plan = make_plan(options, lambda _: None)
    own, division = take_shard(plan, Shard(0, count))
    (record,) = run_plan(own, lambda _: None)
    with patch("os.fsync"):  # no crash has to be outlived here
        for index, checkpoint in enumerate(plan.series[0].checkpoints):
            shard, name = Shard(index, count), checkpoint.file.name
            this = replace(division, shard=shard, units=((record.run, name, None),))
            with Journal(parts / f"{shard.file_name}.csv.journal") as journal:
                record_settings(own, journal, this)
                journal.append(*replace(record, checkpoint=name, step=checkpoint.step).to_json())
    return len(record.rows) * count
