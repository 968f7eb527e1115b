"""Compress one checkpoint: measure every budget beside the baselines, and write what was found."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from localrank_cli.compress.eligible import Layers, find_layers
from localrank_cli.compress.matrix import shape_of
from localrank_cli.compress.methods import BASELINES, METHODS, OURS
from localrank_cli.compress.score import Batch, Difference, Kind, Scores, kind_of
from localrank_cli.compress.search import FEW, Compressor, Data, Outcome, halves, split, verdict
from localrank_cli.compress.state import effective_rank_of
from localrank_cli.errors import LocalrankError, ModelError, Note, SettingsError
from localrank_cli.layers.select import LEFT_OUT
from localrank_cli.layers.setting import analysis_setting
from localrank_cli.layers.survey import TokensError
from localrank_cli.machine import versions
from localrank_cli.model.build import WholeLayer
from localrank_cli.model.fill import fill_model
from localrank_cli.options.parse import LossLimit
from localrank_cli.options.resolve import Settings
from localrank_cli.options.table import AnalyzeOptions, CompressOptions
from localrank_cli.points.source import DataSource, load_points
from localrank_cli.results.compressed import (
    BUDGETS_NAME,
    LAYERS_NAME,
    begin_results,
    prepare_folder,
    write_facts,
    write_rows,
)
from localrank_cli.run.compress_save import Saver, forward
from localrank_cli.run.compute import hash_of
from localrank_cli.run.headers import load_state
from localrank_cli.run.plan import Plan, SeriesPlan, make_plan
from localrank_cli.run.samples import read_labels

_BATCH = 64  # points that pass through the network at once
_DRAWN = 1024  # points of a distribution
_FEW_NATS = 0.01  # a share of a smaller loss is less than it can be measured to
_TIMED = 20  # forward passes of one point
_UNITS: dict[Kind, str] = {
    "classes": "nats", "tokens": "nats", "outputs": "nats", "targets": "squared error"
}  # fmt: skip

Row = dict[str, object]


@dataclass(frozen=True)
class Compressed:
    """What was found, for the terminal."""

    budgets: tuple[Row, ...]
    layers: tuple[Row, ...]
    verdicts: tuple[str, ...]
    folder: Path
    hf_folders: tuple[Path, ...]  # that `from_pretrained` loads
    keeps_limit: bool  # whether the report slice agrees with the limit


@dataclass(frozen=True)
class _Rows:
    """Points, and their labels where there are any, as they are stored."""

    points: Any  # a tensor, or rows of a file
    labels: Tensor | None
    scale: float | None
    device: torch.device
    dtype: torch.dtype

    def batches(self, indices: Tensor) -> list[Batch]:
        """Return the points of sorted indices, ready for the network."""
        return [self._batch(part) for part in indices.split(_BATCH)]

    def _batch(self, indices: Tensor) -> Batch:
        rows: Tensor = self.points[indices]
        if self.scale is not None:
            rows = rows.to(torch.float64) * self.scale
        rows = rows.to(self.dtype if rows.is_floating_point() else torch.int64)
        return rows.to(self.device), None if self.labels is None else self.labels[indices]


def compress(options: AnalyzeOptions, how: CompressOptions, note: Note) -> Compressed:
    """Compress one checkpoint, write the results, and return them.

    Raises:
        LocalrankError: If it cannot be compressed as asked.
    """
    assert how.out is not None
    prepare_folder(how.out, overwrite=how.replaces)  # before what takes long
    plan = _plan(replace(options, dtype="float32"), note)
    series = _one_checkpoint(plan)
    inputs = _inputs(series, options, how)
    prepare_folder(how.out, inputs, overwrite=how.replaces)
    work = _Work(plan, series, how, note)
    with analysis_setting(series.model, series.settings.dtype):
        work.begin()
        outcomes = work.outcomes()
        return work.written(outcomes)


def _plan(options: AnalyzeOptions, note: Note) -> Plan:
    noted: set[str] = set()

    def once(text: str) -> None:
        # Which layers analyze would measure is beside the point.
        if text not in noted and not text.startswith(LEFT_OUT):
            noted.add(text)
            note(text)

    try:
        return make_plan(options, once, refuses=False)
    except TokensError as error:
        # Nothing is differentiated with respect to the input here, but a plan is of that.
        return make_plan(replace(options, wrt=error.embedding), once, refuses=False)


def _one_checkpoint(plan: Plan) -> SeriesPlan:
    if len(plan.series) != 1 or plan.n_checkpoints != 1:
        raise SettingsError(
            f"compress takes one checkpoint, and {plan.n_checkpoints} were named.",
            "Name one file.",
        )
    series = plan.series[0]
    if isinstance(series.model, WholeLayer):
        raise ModelError(
            "the network is a single layer, which has no name to be replaced by.",
            "Wrap it in an nn.Sequential, and its weights with it.",
        )
    return series


def _inputs(series: SeriesPlan, options: AnalyzeOptions, how: CompressOptions) -> list[Path]:
    """Return the files that are read, which results must not replace."""
    source = series.settings.source
    sources = [source] if how.eval_data is None else [source, replace(source, text=how.eval_data)]
    code = [
        str(text).rpartition(":")[0] for text in (options.model, *(one.text for one in sources))
    ]
    return [
        series.checkpoints[0].file.path,
        *(one.path for one in sources if one.path is not None),
        *(Path(name) for name in code if name.endswith(".py")),
    ]


def _is_same(first: DataSource, second: DataSource) -> bool:
    """Return whether two sources give the same points."""
    one, other = first.path, second.path
    if one is None or other is None or not (one.exists() and other.exists()):
        return first.text == second.text
    return one.samefile(other)


class _Work:
    def __init__(self, plan: Plan, series: SeriesPlan, how: CompressOptions, note: Note) -> None:
        self._plan, self._series, self._how, self._note = plan, series, how, note
        checkpoint = series.checkpoints[0]
        self._stored = load_state(checkpoint, plan.trust_pickle)
        fill_model(series.model, series.expected, self._stored, checkpoint.place)
        settings = series.settings
        self._data = self._rows(settings)
        self._seed = settings.source.seed
        self._held_out = self._data
        if how.eval_data is not None:
            source = replace(settings.source, text=how.eval_data)
            if _is_same(source, settings.source):
                raise SettingsError(
                    f"--eval-data {how.eval_data}: is what --data names, and data that calibrate"
                    " cannot be held out.",
                    "Leave out --eval-data, and --data is split into disjoint parts.",
                )
            self._held_out = self._rows(replace(settings, source=source))

    def _rows(self, settings: Settings) -> _Rows:
        count = _DRAWN if settings.source.is_drawn else None
        points, _ = load_points(replace(settings.source, keep=True, count=count))
        everything = points.tensor if points.everything is None else points.everything
        keyed = bool(settings.sampling.labels_key)
        labels = read_labels(settings, points, self._plan.memory) if keyed else None
        scale = None if points.everything is None else points.scale
        return _Rows(everything, labels, scale, self._plan.device, settings.dtype)

    def begin(self) -> None:
        """Split the data, find the layers, and factor them by every method."""
        how, model = self._how, self._series.model
        n_data = int(self._data.points.shape[0])
        if how.eval_data is None:
            slices = split(n_data, self._seed)
            calibrate, pick, report = slices.calibrate, slices.pick, slices.report
        else:
            calibrate = torch.arange(n_data)
            pick, report = halves(int(self._held_out.points.shape[0]), self._seed)
        self._sizes = {"calibrate": len(calibrate), "pick": len(pick), "report": len(report)}
        if len(calibrate) < FEW:
            self._note(
                f"{len(calibrate)} points calibrate: covariances of so few are rough; give"
                f" {FEW} or more"
            )
        data = Data(
            lambda: [points for points, _ in self._data.batches(calibrate)],
            lambda: self._held_out.batches(pick),
            lambda: self._held_out.batches(report),
        )
        first, labels = data.pick()[0]
        layers = find_layers(model, first, forward, how.keep)
        with torch.no_grad():
            output = forward(model, first)
        if labels is not None and not labels.is_floating_point():
            labels = self._held_out.labels  # any of which may be out of range
        self.kind = kind_of(output, first, labels)
        self.point = first[:1]
        self.work = Compressor(model, layers, data, forward, self.kind)
        self._note(f"calibrating {len(layers.chosen)} layers on {len(calibrate)} points")
        is_dense = how.dense or self._series.settings.model.is_hf
        self.work.calibrate(self._seed, self._plan.memory, adds_biases=not is_dense)

    @property
    def layers(self) -> Layers:
        """The layers of the network."""
        return self.work.layers

    @property
    def _names(self) -> tuple[str, ...]:
        metric = self._how.metric or "auto"
        return tuple(OURS) if metric == "auto" else (metric,)

    def outcomes(self) -> dict[float, Outcome]:
        """Return what is chosen for every budget, or for the limit, by the share of weights."""
        limit = self._how.max_loss_increase
        if limit is None:
            budgets = {share: self.work.weights_of(share) for share in self._how.budget}
            return {share: self._measured(budget) for share, budget in budgets.items()}
        bound = self._bound(limit)
        found = self.work.smallest(bound, self._names)
        if found is None:
            raise LocalrankError(
                f"--max-loss-increase {limit}: no budget keeps to it on the {self._sizes['pick']}"
                " points that pick.",
                "Allow a larger increase, or give more data: the limit holds with 1.65 standard"
                " errors.",
            )
        return {round(found.budget / self.work.total, 2): found}

    def _measured(self, budget: int) -> Outcome:
        self._note(f"measuring {budget / self.work.total:.0%} of the weights")
        return self.work.best(budget, self._names)

    def _bound(self, limit: LossLimit) -> float:
        """Return a limit in the unit of the loss."""
        if not limit.is_share:
            return limit.value
        loss = float(self.work.original.loss.mean())
        if self.kind == "outputs" or loss < _FEW_NATS:
            why = (
                "there are no labels, and the divergence from the original has no loss to be a"
                " share of"
                if self.kind == "outputs"
                else f"the original's loss is {loss:.2g}, too small for a share of it"
            )
            raise SettingsError(
                f"--max-loss-increase {limit}: {why}.", "Give nats: --max-loss-increase 0.02nats."
            )
        return limit.value * loss

    def written(self, outcomes: Mapping[float, Outcome]) -> Compressed:
        """Measure on the report slice, write everything, and load it back."""
        folder, model = self._how.out, self._series.model
        assert folder is not None
        original = self.work.report(model)
        begin_results(folder)
        saver = Saver(self._series, self._stored, self.point, folder, dense=self._how.dense)
        rows, layer_rows, verdicts, folders, keeps = [], [], [], [], True
        rows.append(self._row("original", 1.0, self.work.total, self.work.original, original))
        for share, chosen in outcomes.items():
            compressed = self.work.build(chosen.name, chosen.ranks)
            folders += saver.save(share, compressed)
            ours = self.work.report(compressed)
            row = self._row(chosen.name, share, chosen.weights, chosen.scores, ours, original)
            row |= {"predicted": chosen.predicted} | self._latency(compressed)
            rows.append(row)
            baselines: dict[str, Scores] = {}
            others = self.work.baselines(chosen.budget)
            for other in sorted(others, key=lambda one: float(one.scores.loss.mean())):
                found = self.work.report(self.work.build(other.name, other.ranks))
                baselines[other.name] = found
                rows.append(
                    self._row(other.name, share, other.weights, other.scores, found, original)
                )
            verdicts.append(verdict(ours, baselines, _UNITS[self.kind], share))
            layer_rows += self._layer_rows(share, chosen)
            text = self._breach(Difference.of(ours.loss, original.loss), original)
            keeps &= not text
            verdicts += [text] if text else []
        rows[0] |= self._latency(model)
        keys = list(dict.fromkeys(key for row in rows for key in row))
        rows = [{key: row.get(key) for key in keys} for row in rows]
        write_rows(folder / BUDGETS_NAME, rows)
        write_rows(folder / LAYERS_NAME, layer_rows)
        write_facts(folder, self._facts(rows, layer_rows, verdicts))
        return Compressed(
            tuple(rows), tuple(layer_rows), tuple(verdicts), folder, tuple(folders), keeps
        )

    def _breach(self, increase: Difference, original: Scores) -> str:
        """Return how the report slice breaks the limit; empty if it does not."""
        limit = self._how.max_loss_increase
        if limit is None:
            return ""
        bound = limit.value * (float(original.loss.mean()) if limit.is_share else 1.0)
        if increase.mean < bound:
            return ""
        return (
            f"The limit {limit} is broken on the data that report: the loss increases by"
            f" {increase.mean:.4g} +- {increase.error:.2g} {_UNITS[self.kind]}."
        )

    def _row(
        self,
        name: str,
        share: float,
        weights: int,
        pick: Scores,
        report: Scores,
        original: Scores | None = None,
    ) -> Row:
        increase = None if original is None else Difference.of(report.loss, original.loss)
        return {
            "method": name,
            "budget": share,
            "weights": weights,
            "loss_pick": float(pick.loss.mean()),
            "loss": float(report.loss.mean()),
            "loss_increase": None if increase is None else increase.mean,
            "loss_increase_se": None if increase is None else increase.error,
            "divergence": float(report.divergence.mean()),
            "accuracy": report.accuracy,
        }

    def _layer_rows(self, share: float, chosen: Outcome) -> list[Row]:
        rows: list[Row] = []
        for name, module in self._series.model.named_modules():
            if name not in self.layers.chosen and name not in self.layers.dense:
                continue
            rank = chosen.ranks.get(name)
            row: Row = {"budget": share, "layer": name, "n_out": None, "n_in": None}
            row |= {"rank": rank, "weights_before": None, "weights_after": None}
            row |= {"effective_rank_of_weight": None, "why_dense": self.layers.dense.get(name, "")}
            if name in self.layers.chosen:
                shape = shape_of(module)
                row |= {
                    "n_out": shape.n_out,
                    "n_in": shape.n_in,
                    "weights_before": shape.weights,
                    "weights_after": shape.cost(rank),
                    "effective_rank_of_weight": effective_rank_of(module),
                    "why_dense": "" if rank else "chosen by the allocation",
                }
            rows.append(row)
        return rows

    def _latency(self, model: nn.Module) -> Row:
        """Return the median time of one point: fewer weights need not be faster."""
        times = []
        with torch.no_grad():
            for _ in range(_TIMED):
                began = time.perf_counter()
                forward(model, self.point).sum().item()  # waits for a GPU
                times.append(time.perf_counter() - began)
        return {"milliseconds_at_batch_1": round(1000 * statistics.median(times), 4)}

    def _facts(
        self, rows: Sequence[Row], layers: Sequence[Row], verdicts: Sequence[str]
    ) -> dict[str, object]:
        checkpoint = self._series.checkpoints[0]
        limit = self._how.max_loss_increase
        return {
            "step": checkpoint.step,
            "sha256_of_tensors": hash_of(self._stored),
            "model": self._series.settings.model.description,
            **self._series.model_facts,
            **self._series.data_facts,
            "points": self._sizes,
            "seed": self._seed,
            "loss": self.kind,
            "max_loss_increase": None if limit is None else str(limit),
            "methods": {name: METHODS[name].title for name in (*OURS, *BASELINES)},
            "weights": self.work.total,
            "budgets": list(rows),
            "layers": list(layers),
            "verdicts": list(verdicts),
            "versions": versions(),
        }
