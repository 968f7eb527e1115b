"""Tables with known numbers for the tests of figures."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

STEPS = (0, 10, 100, 1000)


def row(run: str, step: int, index: int, **changes: Any) -> dict[str, Any]:
    """Return one row; the rank is 10 (layer + 1) + log10(step + 1)."""
    rank = 10.0 * (index + 1) + float(np.log10(step + 1))
    return {
        "run": run,
        "checkpoint": f"step_{step}.pt",
        "step": step,
        "layer": f"layer{index}",
        "layer_index": index,
        "module": "Linear",
        "n_in": 50,
        "n_out": 40,
        "max_rank": 40,
        "n_points": 64,
        "n_failed": 0,
        "wrt": "",
        "input_metric": "identity",
        "dtype": "float64",
        "tolerance": "atol=0.01",
        "atol": 0.01,
        "rtol": 0.0,
        "local_rank": rank,
        "local_rank_se": 0.5,
        "effective_rank": rank / 2,
        "effective_rank_se": 0.25,
        "jacobian_norm": 10.0 ** (index - 1),
        "jacobian_norm_se": 0.0,
        "method": "exact",
        "status": "ok",
        "message": "",
    } | changes


def table(
    layers: int = 3,
    steps: Iterable[int] = STEPS,
    runs: Sequence[str] = ("run",),
    tolerances: Sequence[str] = ("atol=0.01",),
) -> pd.DataFrame:
    """Return a table; each further run is 2 higher, each further tolerance 1 lower."""
    rows = []
    for shift, run in enumerate(runs):
        for step in steps:
            for index in range(layers):
                for lower, tolerance in enumerate(tolerances):
                    one = row(run, step, index, tolerance=tolerance)
                    rows.append(one | {"local_rank": one["local_rank"] + 2 * shift - lower})
    return pd.DataFrame(rows)


def many(layers: int, steps: int) -> pd.DataFrame:
    """Return a large table, built quickly."""
    frame = pd.DataFrame(
        {
            "step": np.repeat(np.arange(steps), layers),
            "layer_index": np.tile(np.arange(layers), steps),
        }
    )
    rank = 10 + frame["layer_index"] + np.sin(frame["step"] / 50) * 5
    return frame.assign(
        run="run",
        layer=[f"blocks.{index}.mlp" for index in frame["layer_index"]],
        tolerance="atol=0.01",
        max_rank=300,
        n_points=8,
        local_rank=rank,
        local_rank_se=0.3,
        status="ok",
    )


def save_spectra(
    path: Path,
    runs: Sequence[str] = ("run",),
    steps: Sequence[int] = STEPS,
    layers: int = 2,
    values: Any = None,
) -> Path:
    """Write singular values 1, 0.1, 0.01, ... at every point, halved from layer to layer."""
    entries, tensors = [], {}
    for run in runs:
        for step in steps:
            for index in range(layers):
                base = np.tile(10.0 ** -np.arange(5.0), (3, 1)) if values is None else values
                name = f"layer{index}"
                tensors[f"{run}\t{step}\t{name}"] = np.ascontiguousarray(base / 2**index)
                entries.append(
                    {
                        "run": run,
                        "checkpoint": f"step_{step}.pt",
                        "step": step,
                        "layer": name,
                        "layer_index": index,
                        "n_in": 6,
                        "n_out": 5,
                    }
                )
    described = {"format": 1, "entries": entries, "point_indices": {run: [0, 1, 2] for run in runs}}
    save_file(tensors, path, {"localrank_spectra": json.dumps(described)})
    return path


def budgets() -> pd.DataFrame:
    """Return a table as `localrank compress` writes it; at 0.2 uniform has no ranks."""

    def of(method: str, budget: float, loss: float | None, **more: object) -> dict[str, object]:
        weights = None if loss is None else int(1000 * budget)
        cells = {"method": method, "budget": budget, "weights": weights, "loss": loss}
        return cells | {"loss_increase_se": None if loss is None else 0.01, "note": ""} | more

    return pd.DataFrame(
        [
            of("original", 1.0, 0.3, loss_increase_se=None),
            of("fisher", 0.5, 0.31),
            of("energy", 0.5, 0.34),
            of("uniform", 0.5, 0.33),
            of("logit", 0.2, 0.4),
            of("energy", 0.2, 0.6),
            of("uniform", 0.2, None, note="no ranks: the last layer stays dense"),
        ]
    )
