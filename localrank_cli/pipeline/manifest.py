"""What stands beside a table: all that decided its numbers, and what it cost."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch

from localrank_cli.measures.table import AVERAGED
from localrank_cli.pipeline.machine import peak_memory, versions
from localrank_cli.pipeline.plan import Plan, SeriesPlan
from localrank_cli.table.columns import optional_first
from localrank_cli.table.journal_lines import Entry

FORMAT = 1
# Raised when the same command would give other numbers.
DEFINITIONS = 1

# What must be equal for two analyses to be one. Where files lie is none of it.
# Journals of the first release do not name their measures: they hold these.
FIRST_MEASURES = (
    "effective_rank",
    "stable_rank",
    "participation_ratio",
    "spectral_norm",
    "jacobian_norm",
    "gaussian_information",
)

DECISIVE = (
    "definitions",
    "model",
    "model_arguments",
    "model_sha256",
    "data",
    "data_key",
    "data_sha256",
    "data_scale",
    "n_data",
    "point_indices",
    "seed",
    "wrt",
    "layers",
    "tolerances",
    "measures",
    "noise",
    "input_metric",
    "dtype",
    "n_cov",
    "slices",
    "labels_key",
    "information_point_indices",
    "information_noise",
    "columns",
    "counting",
    "optional_columns",
    "weights",
    "step_from",
    "step_regex",
    "unsaved",
)


def make_manifest(
    plan: Plan,
    command: Sequence[str],
    series: Iterable[Mapping[str, Any]],
    checkpoints: Iterable[Mapping[str, Any]],
    *,
    seconds: float,
    complete: bool,
) -> dict[str, object]:
    """Describes a run, finished or not.

    Args:
        plan: What was run last.
        command: The command line, or what stands for it.
        series: The settings of each series in the table.
        checkpoints: The facts of each checkpoint in the table.
        seconds: From start to end.
        complete: Whether everything that was asked for is there.

    Returns:
        Anything that JSON can hold.
    """
    device = plan.device
    return {
        "localrank_manifest": FORMAT,
        "complete": complete,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "versions": versions(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "memory_budget_bytes": plan.memory,
        "peak_memory_bytes": peak_memory(),
        "seconds": round(seconds, 3),
        "series": list(series),
        "checkpoints": list(checkpoints),
    }


def series_settings(series: SeriesPlan) -> dict[str, Any]:
    """Everything that decides the numbers of a series.

    Args:
        series: Planned.

    Returns:
        Anything that JSON can hold; as JSON gives it back.
    """
    settings = series.settings
    regex = series.settled.rule.names.regex
    return {
        "run": series.run,
        "folder": str(series.series.folder),
        "definitions": DEFINITIONS,
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
        "labels_key": settings.sampling.labels_key,
        "information_point_indices": (
            list(series.samples.drawn.indices) if series.samples.drawn is not None else None
        ),
        "information_noise": settings.sampling.noise,
        "dtype": settings.dtype_name,
        "tolerances": [tolerance.label for tolerance in settings.tolerances],
        "measures": list(AVERAGED),
        "noise": settings.noise,
        "columns": dict(settings.columns),
        "optional_columns": list(series.optional_columns),
        "weights": series.weights,
        "counting": series.settled.counting.text,
        "step_from": series.settled.rule.source or None,
        "step_regex": regex.pattern if regex is not None else None,
        "unsaved": list(series.unsaved),
        "layers": [
            asdict(record.call) | {"module": record.module, "shape": list(record.shape)}
            for record in series.examination.records
        ],
    }


def extra_columns(series: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The optional columns of a table.

    Args:
        series: The settings of all series in it.

    Returns:
        Names in order: what was asked for, then constants.
    """
    return optional_first(name for one in series for name in one["optional_columns"])


def checkpoint_facts(entry: Entry) -> dict[str, Any]:
    """What the manifest says of a checkpoint.

    Args:
        entry: Of the journal.

    Returns:
        Run, checkpoint, step, status, and what was noted of it.
    """
    head = entry.head
    named: dict[str, Any] = {key: head[key] for key in ("run", "checkpoint", "step", "status")}
    if head["points"]:
        named["points"] = head["points"]
    return named | dict(head["facts"])


def decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of a series' settings must be equal for two analyses to be one.

    Args:
        settings: From `series_settings`, or from a file that holds them.

    Returns:
        Setting -> value; files are known by their content, not by where they lie.
    """
    found = {key: settings.get(key) for key in DECISIVE}
    found["measures"] = found["measures"] or list(FIRST_MEASURES)
    found["unsaved"] = found["unsaved"] or []  # earlier versions did not write it
    if found["data_sha256"] is not None:
        found["data"] = str(found["data"]).rpartition(":")[2] if ":" in str(found["data"]) else None
    if found["model_sha256"] is not None:
        found["model"] = str(found["model"]).rpartition(":")[2]
    return found
