"""Runs a plan: a generator of results, one checkpoint at a time."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from localrank_cli.errors import LocalrankError, UnreadableError
from localrank_cli.jacobian.engine import Modes
from localrank_cli.measures.layer import measure
from localrank_cli.model.fill import fill_model
from localrank_cli.pipeline.headers import PlannedCheckpoint, load_state
from localrank_cli.pipeline.plan import Plan, SeriesPlan, place_points
from localrank_cli.spectrum.solve import Demand
from localrank_cli.spectrum.spectra import LayerSpectrum, Request, layer_spectra
from localrank_cli.table.columns import Cell
from localrank_cli.table.rows import LayerFacts, layer_rows

Note = Callable[[str], None]


@dataclass(frozen=True)
class CheckpointResult:
    """The rows of one checkpoint, and what the manifest says of it."""

    run: str
    checkpoint: str
    step: int
    rows: tuple[dict[str, Cell], ...]
    facts: dict[str, object]

    @property
    def is_finite(self) -> bool:
        """Whether every point of every layer was finite."""
        return all(row["status"] == "ok" for row in self.rows)


def run_plan(plan: Plan, note: Note) -> Iterator[CheckpointResult]:
    """Computes one checkpoint after another.

    Args:
        plan: From `make_plan`.
        note: Takes each note for the user.

    Yields:
        Results, by run and step.
    """
    for series in plan.series:
        yield from _run_series(plan, series, note)


def _run_series(plan: Plan, series: SeriesPlan, note: Note) -> Iterator[CheckpointResult]:
    settings = series.settings
    points = place_points(series.points, plan.device, settings.dtype)
    demand = Demand(settings.tolerances, settings.noise)
    memory = plan.memory - series.metric.n_bytes
    request = Request(settings.selection, settings.dtype, memory, demand)
    modes = Modes()
    told = 0
    seen: dict[str, PlannedCheckpoint] = {}
    for checkpoint in series.checkpoints:
        started = time.perf_counter()
        state = load_state(checkpoint, plan.trust_pickle)
        stat = _stat(checkpoint)
        digest = _hash(state)
        if digest in seen:
            note(
                f"{_run_prefix(plan, series)}{checkpoint.file.name} (step {checkpoint.step})"
                " holds the same weights as"
                f" {seen[digest].file.name} (step {seen[digest].step})"
            )
        seen.setdefault(digest, checkpoint)
        fill_model(series.model, series.expected, state, checkpoint.place)
        del state
        try:
            metric = series.metric.at(series.model, plan.device, settings.dtype)
            spectra = layer_spectra(series.model, points, replace(request, metric=metric), modes)
            samples = series.samples.at(series.model, plan.device)
        except LocalrankError as error:
            raise type(error)(f"{checkpoint.place}: {error.what}", error.advice) from error
        for text in modes.notes[told:]:
            note(text)
        told = len(modes.notes)
        yield CheckpointResult(
            run=series.run,
            checkpoint=checkpoint.file.name,
            step=checkpoint.step,
            rows=tuple(_rows(plan, series, checkpoint, list(zip(spectra, samples, strict=True)))),
            facts={
                "run": series.run,
                "checkpoint": checkpoint.file.name,
                "step": checkpoint.step,
                "bytes": stat.st_size,
                "mtime": stat.st_mtime,
                "sha256_of_tensors": digest,
                "seconds": round(time.perf_counter() - started, 4),
                "routes": list(modes.routes),
            },
        )


def _stat(checkpoint: PlannedCheckpoint) -> os.stat_result:
    try:
        return checkpoint.file.path.stat()
    except OSError as error:
        raise UnreadableError(
            f"{checkpoint.place}: cannot be read any more ({error.strerror}).",
            "Run again when nothing writes to the folder.",
        ) from error


def _run_prefix(plan: Plan, series: SeriesPlan) -> str:
    return f"{series.run}: " if len(plan.series) > 1 else ""


def _rows(
    plan: Plan,
    series: SeriesPlan,
    checkpoint: PlannedCheckpoint,
    layers: list[tuple[LayerSpectrum, dict[str, Cell]]],
) -> Iterator[dict[str, Cell]]:
    settings = series.settings
    for index, (spectrum, sampled) in enumerate(layers):
        cells: dict[str, Cell] = {**settings.columns, **sampled, **settings.slices}
        cells["n_cov"] = series.metric.n_cov
        constants = {name: cells.get(name) for name in plan.extra_columns}
        facts = LayerFacts(
            run=series.run,
            checkpoint=checkpoint.file.name,
            step=checkpoint.step,
            layer=spectrum.layer,
            layer_index=index,
            module=spectrum.module,
            n_in=spectrum.n_varied or spectrum.n_in,
            n_out=spectrum.n_out,
            wrt=settings.selection.wrt,
            input_metric=settings.input_metric,
            dtype=settings.dtype_name,
            method=spectrum.method,
        )
        yield from layer_rows(
            facts, measure(spectrum, settings.tolerances, settings.noise), constants
        )


def _hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
