"""Read a journal of many checkpoints, as every start on an existing output does.

`python journal.py [COUNT]` prints, as JSON, processor seconds to open it (every head) and to read
every body (once for the table, once more for the chart), and the size of a line.
"""

import json
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import save_file

from localrank_cli.options.table import AnalyzeOptions
from localrank_cli.results.journal import Journal
from localrank_cli.results.record import CheckpointRecord
from localrank_cli.run.compute import run_plan
from localrank_cli.run.plan import make_plan
from localrank_cli.run.resume import record_settings


def _write(folder: Path, path: Path, count: int) -> None:
    """Compute one checkpoint of an MLP, and write it under many names and steps."""
    sizes = (16, 16, 16, 10)
    linear = [torch.nn.Linear(a, b) for a, b in pairwise(sizes)]
    model = torch.nn.Sequential(linear[0], torch.nn.ReLU(), linear[1], torch.nn.ReLU(), linear[2])
    folder.mkdir()
    save_file(model.state_dict(), folder / "step_0.safetensors")
    plan = make_plan(AnalyzeOptions((folder,), data="normal:16", device="cpu"), lambda _: None)
    (record,) = run_plan(plan, lambda _: None)
    with patch("os.fsync"), Journal(path) as journal:  # no crash has to be outlived here
        record_settings(plan, journal, None)
        for step in range(count):
            one = replace(record, checkpoint=f"step_{step}.safetensors", step=step)
            journal.append(*one.to_json())


def main() -> None:
    """Run once."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="localrank-journal-") as name:
        path = Path(name) / "ranks.csv.journal"
        _write(Path(name) / "run", path, count)
        started = time.process_time()
        with Journal(path) as journal:
            opened = time.process_time()
            for entry in journal.entries("checkpoint"):
                CheckpointRecord.from_json(entry.head, journal.body(entry))
            read = time.process_time()
        answer = {
            "checkpoints": count,
            "line_bytes": path.stat().st_size // count,
            "open_seconds": round(opened - started, 2),
            "bodies_seconds": round(read - opened, 2),
        }
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
