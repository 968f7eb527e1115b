"""Thousands of small checkpoints in one folder: `python many.py COUNT`, a process for each.

Prints, as JSON, the seconds to plan and to resume with nothing left, and the peak over what
torch and the tool hold before they look at a file.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from memory import status
from safetensors.torch import save_file

from localrank_cli.options.table import AnalyzeOptions
from localrank_cli.run.compute import run_plan
from localrank_cli.run.output import RunOutput
from localrank_cli.run.plan import make_plan


def _save(folder: Path, count: int) -> None:
    folder.mkdir()
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    for step in range(count):
        with torch.no_grad():
            model[0].bias.fill_(float(step))
        save_file(model.state_dict(), folder / f"step_{step}.safetensors")


def _timed(deed: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = deed()
    return time.perf_counter() - started, result


def _ignore(note: str) -> None:
    del note


def _whole(options: AnalyzeOptions, target: Path) -> int:
    """Analyze as `analyze -o` does, with its files; return how many checkpoints were computed."""
    with RunOutput(target, overwrite=False, command=[]) as output:
        going_on = output.begin(make_plan(options, _ignore), _ignore)
        computed = 0
        for record in run_plan(going_on.plan, _ignore, going_on.history):
            output.add(record)
            computed += 1
        output.commit()
    return computed


def main() -> None:
    """Run once."""
    count = int(sys.argv[1])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="localrank-many-") as name:
        place = Path(name)
        _save(place / "warm", 2)
        _save(place / "run", count)
        options = [
            AnalyzeOptions((place / folder,), data="normal:4", points=2, device="cpu", memory=2**30)
            for folder in ("warm", "run")
        ]
        for _ in range(2):
            _whole(options[0], place / "warm.csv")
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        planning, _ = _timed(lambda: make_plan(options[1], _ignore))
        computing, computed = _timed(lambda: _whole(options[1], place / "ranks.csv"))
        going_on, again = _timed(lambda: _whole(options[1], place / "ranks.csv"))
        assert (computed, again) == (count, 0)
        answer = {
            "count": count,
            "planning_seconds": planning,
            "computing_seconds": computing,
            "going_on_seconds": going_on,
            "peak": status("VmHWM") - before,
            "journal_bytes": (place / "ranks.csv.journal").stat().st_size,
        }
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
