"""Time pictures and pages of long runs: python benchmarks/pictures.py [STEPS [LAYERS]]."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

COMMAND = [sys.executable, "-m", "localrank_cli"]
JOBS = {
    "plot": ["plot", "--kind", "ranks"],
    "plot .svg": ["plot", "-o", "out.svg"],
    "plot --kind heatmap": ["plot", "--kind", "heatmap"],
    "plot --kind depth": ["plot", "--kind", "depth"],
    "show": ["show"],
    "report": ["report"],
}


def long_table(steps: int, layers: int) -> pd.DataFrame:
    """Return a table with all columns that are drawn."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({
        "run": "run",
        "step": np.repeat(np.arange(steps), layers),
        "layer": [f"layers.{index}" for index in range(layers)] * steps,
        "layer_index": np.tile(np.arange(layers), steps),
        "n_in": 784, "n_out": 100, "max_rank": 100, "n_points": 64,
        "tolerance": "atol=0.01",
        "status": "ok",
    })  # fmt: skip
    for name in ("local_rank", "effective_rank", "stable_rank", "jacobian_norm"):
        frame[name] = 50 + 30 * np.sin(frame["step"] / steps * 6) + rng.normal(size=len(frame))
        frame[f"{name}_se"] = 0.5
    return frame


def main() -> None:
    """Run each command once and print its seconds and the size of what it wrote."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    layers = int(sys.argv[2]) if len(sys.argv) > 2 else 8
    print(f"{steps} steps, {layers} layers\n\n| command | seconds | MB |\n| --- | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        long_table(steps, layers).to_csv(Path(folder) / "ranks.csv", index=False)
        before = {"ranks.csv"}
        for name, words in JOBS.items():
            started = time.perf_counter()
            command = [*COMMAND, words[0], "ranks.csv", *words[1:], "-q"]
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - started
            new = {path for path in Path(folder).iterdir() if path.name not in before}
            size = sum(path.stat().st_size for path in new) / 1e6
            before |= {path.name for path in new}
            print(
                f"| {name} | {seconds:.1f} | {size:.2f} |"
                if new
                else f"| {name} | {seconds:.1f} | |"
            )


if __name__ == "__main__":
    main()
