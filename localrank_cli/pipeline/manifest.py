"""What stands beside a table: all that decided its numbers, and what it cost."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime

import torch

from localrank_cli.pipeline.machine import peak_memory, versions
from localrank_cli.pipeline.plan import Plan, SeriesPlan

FORMAT = 1


def make_manifest(
    plan: Plan, command: Sequence[str], checkpoints: Sequence[dict[str, object]], seconds: float
) -> dict[str, object]:
    """Describes a finished run.

    Args:
        plan: What was run.
        command: The command line, or what stands for it.
        checkpoints: The facts of each result.
        seconds: From start to end.

    Returns:
        Anything that JSON can hold.
    """
    device = plan.device
    return {
        "localrank_manifest": FORMAT,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "versions": versions(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "memory_budget_bytes": plan.memory,
        "peak_memory_bytes": peak_memory(),
        "seconds": round(seconds, 3),
        "series": [_series(series) for series in plan.series],
        "checkpoints": list(checkpoints),
    }


def _series(series: SeriesPlan) -> dict[str, object]:
    settings = series.settings
    return {
        "run": series.run,
        "folder": str(series.series.folder),
        "model": settings.model.description,
        "model_arguments": {key: repr(value) for key, value in settings.model.arguments.items()},
        **series.model_facts,
        **series.data_facts,
        "data_scale": settings.source.scale,
        "seed": settings.source.seed,
        "point_indices": list(series.points.indices),
        "n_data": series.points.n_data,
        "wrt": settings.selection.wrt,
        "input_metric": settings.input_metric,
        "n_cov": series.metric.n_cov,
        "slices": settings.slices,
        "labels_key": settings.labels_key,
        "information_point_indices": (
            list(series.samples.drawn.indices) if series.samples.drawn is not None else None
        ),
        "dtype": settings.dtype_name,
        "tolerances": [tolerance.label for tolerance in settings.tolerances],
        "noise": settings.noise,
        "layers": [
            asdict(record.call) | {"module": record.module, "shape": list(record.shape)}
            for record in series.examination.records
        ],
    }
