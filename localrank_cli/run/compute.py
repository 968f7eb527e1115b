"""Run a plan: yield results, one checkpoint at a time."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest

import torch
from torch import Tensor

from localrank_cli.checkpoints.reading import Footprint, footprint_of
from localrank_cli.checkpoints.series import CheckpointFile
from localrank_cli.errors import LocalrankError, Note, UnreadableError
from localrank_cli.intervals.layer import LayerEvidence, Purpose, layer_evidence
from localrank_cli.jacobian.engine import Modes
from localrank_cli.jacobian.progress import Step
from localrank_cli.layers.plain import choose_precision
from localrank_cli.measures.intervals import interval_measures
from localrank_cli.measures.points import point_measures
from localrank_cli.measures.table import demand_of
from localrank_cli.model.fill import fill_model
from localrank_cli.remote.places import addressed
from localrank_cli.results.columns import Cell
from localrank_cli.results.pooled import with_pooled
from localrank_cli.results.record import CheckpointRecord, LayerFacts, LayerRecord, unsaved_message
from localrank_cli.run.headers import PlannedCheckpoint, failed_record, load_state
from localrank_cli.run.keeping import KeptValuesError, Loads
from localrank_cli.run.missing import Parts
from localrank_cli.run.plan import Plan, SeriesPlan, place_points
from localrank_cli.spectrum.layer import LayerSpectrum, Request, layer_spectra

Cells = dict[str, Cell]
# Receives a checkpoint's run and step, the share of it that is done, and what is computed.
Watcher = Callable[[str, float, str], None]
KeepSpectra = Callable[[CheckpointRecord, list[LayerSpectrum]], None]


@dataclass
class History:
    """The weights of all checkpoints so far, in this run and in those that it resumes."""

    # (run, hash of the tensors) -> name and step of the first that held them
    weights: dict[tuple[str, str], str] = field(default_factory=dict)
    loads: Loads = field(default_factory=Loads)


def run_plan(
    plan: Plan,
    note: Note,
    history: History | None = None,
    keep: KeepSpectra | None = None,
    watcher: Watcher | None = None,
) -> Iterator[CheckpointRecord]:
    """Yield the results of a plan by run and step, and update the history.

    `keep` receives the singular values of each checkpoint before its record is yielded, `watcher`
    what is done of it meanwhile.
    """
    for series in plan.series:
        runner = _Runner(plan, series, note, history or History(), keep)
        runner.watcher = watcher
        yield from runner.results()


class _Runner:
    """The points of one series and the routes for its model, shared by its checkpoints."""

    def __init__(
        self, plan: Plan, series: SeriesPlan, note: Note, history: History, keep: KeepSpectra | None
    ) -> None:
        self._plan, self._series = plan, series
        self._note, self._history, self._keep = note, history, keep
        settings = series.settings
        self._points = place_points(series.points, plan.device, settings.dtype)
        # Kept singular values must serve any tolerance, so certificates for some do not suffice.
        names = settings.averaged
        demand = demand_of(None if keep else settings.tolerances, settings.noise, names)
        memory = plan.memory - series.metric.n_bytes
        self._request = Request(
            settings.selection,
            settings.dtype,
            memory,
            demand,
            scaled_by_whole=settings.by_whole,
            pooled=settings.pooled,
            is_chosen=True,
        )
        self._modes = Modes()
        self._n_noted = 0
        self.watcher: Watcher | None = None
        self._following: PlannedCheckpoint | CheckpointRecord | None = None

    def results(self) -> Iterator[CheckpointRecord]:
        """Yield a record for each checkpoint, by step; failed ones included."""
        every = self._series.in_order
        for planned, following in zip_longest(every, every[1:]):
            self._following = following
            if not isinstance(planned, PlannedCheckpoint):
                yield planned
                continue
            try:
                yield self._compute(planned)
            except LocalrankError as error:
                # Values kept from one checkpoint affect all later ones, not only this one.
                if not self._plan.skips_errors or isinstance(error, KeptValuesError):
                    raise
                yield failed_record(self._series.run, planned.file.name, planned.step, error)

    @addressed()
    def _compute(self, checkpoint: PlannedCheckpoint) -> CheckpointRecord:
        started = time.perf_counter()
        before = footprint_of(checkpoint.file)
        state = load_state(checkpoint, self._plan.trust_pickle)
        self._fetch_ahead()
        digest = hash_of(state)
        self._compare(checkpoint, digest)
        fill_model(self._series.model, self._series.expected, state, checkpoint.place)
        self._choose_precision()
        if checkpoint.missing:
            # With these weights, parts may run that did not run in the plan (experts, say).
            calls = [record.call for record in self._series.examination.records]
            parts = Parts(self._series.model, calls, self._points)
            parts.check(checkpoint.missing, checkpoint.place)
        loaded = (digest, state)
        self._history.loads.check(
            self._series, checkpoint, loaded, self._points[:1].clone(), self._note
        )
        del state, loaded
        try:
            measured = self._measure(checkpoint)
        except LocalrankError as error:
            raise type(error)(f"{checkpoint.place}: {error.what}", error.advice) from error
        for text in self._modes.notes[self._n_noted :]:
            self._note(text)
        self._n_noted = len(self._modes.notes)
        if footprint_of(checkpoint.file) != before:
            raise UnreadableError(
                f"{checkpoint.place}: changed while it was read.",
                "Run again when nothing writes to it, or watch the folder with --follow.",
            )
        record = CheckpointRecord(
            run=self._series.run,
            checkpoint=checkpoint.file.name,
            step=checkpoint.step,
            layers=tuple(self._layer(checkpoint, found, cells) for found, cells in measured),
            facts={
                "bytes": before.size,
                "mtime_ns": before.mtime_ns,
                **_origin(checkpoint.file, before),
                "sha256_of_tensors": digest,
                "seconds": round(time.perf_counter() - started, 4),
                "routes": list(self._modes.routes),
                **self._series.scheme.epoch_facts(checkpoint.file),
            },
            points=checkpoint.points,
            message=unsaved_message(self._series.unsaved),
        )
        if self._keep is not None:
            self._keep(record, [one for one, _ in measured if isinstance(one, LayerSpectrum)])
        return record

    def _fetch_ahead(self) -> None:
        """Let the next checkpoint arrive from another machine while this one is computed."""
        following = self._following
        if isinstance(following, PlannedCheckpoint) and following.file.source is not None:
            following.file.source.prefetch()

    def _choose_precision(self) -> None:
        """Choose by all points of the series, so that shards of a checkpoint choose alike."""
        series, settings = self._series, self._series.settings
        calls = [record.call for record in series.examination.records]
        wrt = series.examination.views[0].source
        reason = choose_precision(series.model, self._points, calls, wrt, settings.dtype)
        if reason and reason not in self._modes.notes:
            self._modes.notes.append(reason)

    def _measure(
        self, checkpoint: PlannedCheckpoint
    ) -> list[tuple[LayerSpectrum | LayerEvidence, Cells]]:
        """Return what is known of each layer, and cells from samples; the model has its weights."""
        plan, series = self._plan, self._series
        metrics = series.metric.at(series.model, plan.device, series.settings.dtype)
        span = slice(*(checkpoint.points or (None,)))
        points, indices = self._points[span], series.points.indices[span]
        request = replace(
            self._request,
            metrics=metrics,
            seed=series.settings.source.seed,
            indices=indices,
            is_part=checkpoint.points is not None,
        )
        if self.watcher is not None:
            name = f"{series.run} step {checkpoint.step}"
            self._modes.progress.observer = partial(_watch, self.watcher, name)
        found: Sequence[LayerSpectrum | LayerEvidence]
        if series.settings.bounds is None:
            found = layer_spectra(series.model, points, request, self._modes)
        else:
            purpose = Purpose(
                series.run,
                checkpoint.step,
                len(series.points.indices),
                series.settings.bounds,
                series.settings.tolerances,
                series.settings.noise,
            )
            found = layer_evidence(series.model, points, request, purpose, self._modes)
        samples = series.samples.at(series.model, plan.device, self._points[:1])
        return [(one, samples[one.layer_index]) for one in found]

    def _layer(
        self,
        checkpoint: PlannedCheckpoint,
        found: LayerSpectrum | LayerEvidence,
        samples: Cells,
    ) -> LayerRecord:
        series, settings = self._series, self._series.settings
        selection = settings.selection
        cells: Cells = {
            "epoch": checkpoint.epoch,
            "n_cov": series.metric.n_cov,
            "positions": str(selection.positions),
            "n_positions": found.n_positions if isinstance(found, LayerSpectrum) else 1,
            "jacobian": "J-1" if selection.residual else "J",
            **samples,
            **settings.slices,
            **settings.columns,
        }
        facts = LayerFacts(
            run=series.run,
            checkpoint=checkpoint.file.name,
            step=checkpoint.step,
            layer=found.layer,
            layer_index=found.layer_index,
            module=found.module,
            n_in=found.n_varied or found.n_in,
            n_out=found.n_out,
            wrt=selection.wrt if selection.has_one_source else found.wrt,
            input_metric=settings.input_metric,
            dtype=settings.dtype_name,
            method=found.method,
        )
        optional = {name: cells.get(name) for name in self._plan.extra_columns}
        if isinstance(found, LayerEvidence):
            return LayerRecord(facts, interval_measures(found, settings.tolerances), optional)
        names = settings.averaged
        points = point_measures(found, settings.tolerances, settings.noise, names)
        layer = LayerRecord(facts, points, optional, blocks=found.blocks)
        return with_pooled(layer, found.pooled)

    def _compare(self, checkpoint: PlannedCheckpoint, digest: str) -> None:
        this = f"{checkpoint.file.name} (step {checkpoint.step})"
        other = self._history.weights.setdefault((self._series.run, digest), this)
        if other != this:
            prefix = f"{self._series.run}: " if len(self._plan.series) > 1 else ""
            self._note(f"{prefix}{this} holds the same weights as {other}")


def _origin(file: CheckpointFile, before: Footprint) -> dict[str, object]:
    """Return where a checkpoint on another machine is from, and which version it is."""
    return {} if file.source is None else {"pin": before.pin, "origin": dict(file.source.facts)}


def _watch(watcher: Watcher, checkpoint: str, step: Step) -> None:
    first, last = step.points
    points = f"point {first}" if first == last else f"points {first} to {last}"
    watcher(checkpoint, step.done, f"layer {step.layer}, {points} of {step.n_points}")


def hash_of(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors: their names, dtypes, shapes and bytes, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().resolve_conj().resolve_neg().contiguous()
        digest.update(
            f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode(errors="surrogatepass")
        )
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
