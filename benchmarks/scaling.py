"""What several workers give, and what merging many shards costs."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import networks
import torch

SHARDS = 5000


def scaling(workers: int = 2, checkpoints: int = 24, points: int = 64) -> dict[str, Any]:
    """One worker of one thread against two of one thread.

    Args:
        workers: How many.
        checkpoints: How much work there is: at least a minute for one worker.
        points: At each checkpoint.

    Returns:
        A line of the table.
    """
    from safetensors.torch import save_file

    folder = Path(tempfile.mkdtemp(prefix="localrank-bench-"))
    seconds: dict[int, float] = {}
    try:
        series = folder / "series"
        series.mkdir()
        for step in range(checkpoints):
            torch.manual_seed(step)
            save_file(networks.mlp(1024).state_dict(), series / f"step_{step}.safetensors")
        for count in (1, workers):
            command = [sys.executable, "-m", "localrank_cli", "submit", str(series), "-q"]
            command += ["--data", "normal:784", "--points", str(points), "--device", "cpu"]
            command += ["--workers", str(count), "-o", str(folder / f"{count}.csv")]
            threads = {"OMP_NUM_THREADS": str(count)}  # one for each worker
            started = time.perf_counter()
            subprocess.run(command, check=True, env=os.environ | threads)
            seconds[count] = time.perf_counter() - started
    finally:
        shutil.rmtree(folder)
    return {
        "case": f"{workers} workers of one thread, {checkpoints} checkpoints",
        "against": "one worker of one thread",
        "localrank_seconds": seconds[workers],
        "baseline_seconds": seconds[1],
        "ratio": seconds[1] / seconds[workers],
        "target": 1.8,
    }


_MERGE = """
import json, sys, time
from pathlib import Path
from localrank_cli.pipeline.merge import collect, find_journals
from localrank_cli.pipeline.merged import write_merged
def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
base = memory("VmRSS")
started = time.perf_counter()
write_merged(collect(find_journals([Path(sys.argv[1])])), Path(sys.argv[2]), [], overwrite=False)
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "more": memory("VmHWM") - base}))
"""


def merging(shards: int = SHARDS) -> list[dict[str, Any]]:
    """Merges the tables of many shards, and of a tenth of them.

    Args:
        shards: How many.

    Returns:
        Two lines of the table; memory is what the merge took above the imports.
    """
    answers = {count: _merge(count) for count in (shards // 10, shards)}
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
        }
        for count, answer in answers.items()
    ]


def _merge(count: int) -> dict[str, Any]:
    """Makes tables as shards of one checkpoint each would, and merges them in a fresh process."""
    from safetensors.torch import save_file

    from localrank_cli.pipeline.division import take_shard
    from localrank_cli.pipeline.options import AnalyzeOptions
    from localrank_cli.pipeline.output import Output
    from localrank_cli.pipeline.plan import make_plan
    from localrank_cli.pipeline.run import run_plan
    from localrank_cli.pipeline.shard import Shard

    folder = Path(tempfile.mkdtemp(prefix="localrank-bench-"))
    try:
        series, parts = folder / "series", folder / "parts"
        series.mkdir()
        parts.mkdir()
        for step in range(count):
            torch.manual_seed(step)
            state = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 4)).state_dict()
            save_file(state, series / f"step_{step}.safetensors")
        options = AnalyzeOptions((series,), data="normal:8", points=64, device="cpu")
        plan = make_plan(options, lambda _: None)
        for index in range(count):
            shard = Shard(index, count)
            own, division = take_shard(plan, shard)
            target = parts / f"{shard.file_name}.csv"
            with Output(target, overwrite=False, command=[]) as output:
                output.begin(own, lambda _: None, None, division)
                for record in run_plan(own, lambda _: None):
                    output.add(record)
                output.commit()
        command = [sys.executable, "-c", _MERGE, str(parts), str(folder / "ranks.csv")]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer
    finally:
        shutil.rmtree(folder)
