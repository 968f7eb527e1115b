"""Compress one checkpoint: measure every budget beside the baselines, and write what was found."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from localrank_cli.compress.eligible import Layers, find_layers
from localrank_cli.compress.methods import BASELINES, METHODS, OURS, candidates, factor_work
from localrank_cli.compress.moments import Metric
from localrank_cli.compress.replace import norm_layers
from localrank_cli.compress.score import Difference, Kind, Scores, kind_of
from localrank_cli.compress.search import FEW, Compressor, Outcome, least_divergent, verdict
from localrank_cli.compress.state import effective_rank_of, factored_layers
from localrank_cli.errors import LocalrankError, ModelError, Note, SettingsError, duration
from localrank_cli.layers.select import LEFT_OUT
from localrank_cli.layers.setting import analysis_setting
from localrank_cli.layers.survey import TokensError
from localrank_cli.machine import versions
from localrank_cli.model.build import WholeLayer
from localrank_cli.model.fill import fill_model
from localrank_cli.model.hf import CONFIG
from localrank_cli.model.hf_weights import HfExpected
from localrank_cli.options.parse import LossLimit
from localrank_cli.options.table import AnalyzeOptions, CompressOptions
from localrank_cli.remote.places import addressed, brought, shown
from localrank_cli.results.compressed import (
    BUDGETS_NAME,
    LAYERS_NAME,
    Found,
    Unfinished,
    has_unfinished,
    prepare_folder,
    write_facts,
    write_loader,
    write_rows,
)
from localrank_cli.run.compress_data import Sliced, activation_bytes
from localrank_cli.run.compress_progress import Progress, Watcher, Work
from localrank_cli.run.compress_rows import (
    EFFECTIVE_RANK,
    Row,
    aligned,
    budget_row,
    latency,
    layer_rows,
    missing_row,
    original_row,
)
from localrank_cli.run.compress_save import Saver, forward
from localrank_cli.run.compute import hash_of, run_plan
from localrank_cli.run.estimate import long_time
from localrank_cli.run.headers import load_state
from localrank_cli.run.plan import Plan, SeriesPlan, located, make_plan

_FEW_NATS = 0.01  # a share of a smaller loss is less than it can be measured to
_BISECTIONS = 7  # of a hundred budgets
_COPIES = 4  # of a batch's intermediate results: graph, gradients, rows of inputs and of gradients
_LONG = 20.0  # seconds that local ranks may take beside the rest
# The kind of work that a pass over each split is, and the words for it.
_OF_SLICE: dict[str, tuple[Work, str]] = {
    "calibrate": ("calibrate", "calibrating"),
    "pick": ("measure", "measuring"),
    "report": ("measure", "measuring for the report"),
}
_UNITS: dict[Kind, str] = {
    "classes": "nats", "tokens": "nats", "outputs": "nats", "targets": "squared error"
}  # fmt: skip


@dataclass(frozen=True)
class Compressed:
    """What was found, for the terminal."""

    budgets: tuple[Row, ...]
    layers: tuple[Row, ...]
    verdicts: tuple[str, ...]
    folder: Path
    hf_folders: tuple[Path, ...]  # that `from_pretrained` loads
    keeps_limit: bool  # whether the limit also holds on the reporting split


def compress(
    options: AnalyzeOptions,
    how: CompressOptions,
    note: Note,
    watcher: Watcher = lambda *_: None,
) -> Compressed:
    """Compress one checkpoint, write the results, and return them.

    Raises:
        LocalrankError: If it cannot be compressed as asked.
    """
    out = how.out
    assert out is not None
    if not has_unfinished(out):
        prepare_folder(out, overwrite=how.replaces)  # before what takes long
    plan = _plan(replace(options, dtype="float32"), note)
    series = _one_checkpoint(plan)
    how = _with_held_out(how, options, note)
    inputs = _inputs(series, options, how)
    work = _Work(plan, series, how, note, watcher)
    with analysis_setting(series.model, series.settings.dtype):
        unfinished = Unfinished.at(out, work.key, overwrite=how.replaces)
        prepare_folder(out, inputs, overwrite=how.replaces, is_unfinished=unfinished.is_resumed)
        work.begin()
        ranks = _local_ranks(options, note)
        try:
            return work.written(work.results(unfinished, ranks), unfinished)
        except BaseException:  # a signal too
            if unfinished.n_kept:
                kept = "budget is" if unfinished.n_kept == 1 else "budgets are"
                note(f"{unfinished.n_kept} finished {kept} kept: rerun the same command to resume")
            raise


def _plan(options: AnalyzeOptions, note: Note, *, refuses: bool = False) -> Plan:
    noted: set[str] = set()

    def once(text: str) -> None:
        """Pass a note on, unless it was given before or is on the choice of layers."""
        # Which layers analyze would measure is beside the point.
        if text not in noted and not text.startswith(LEFT_OUT):
            noted.add(text)
            note(text)

    try:
        return make_plan(options, once, refuses=refuses)
    except TokensError as error:
        # Nothing is differentiated with respect to the input here, but a plan is of that.
        return make_plan(replace(options, wrt=error.embedding), once, refuses=refuses)


def _local_ranks(options: AnalyzeOptions, note: Note) -> dict[str, float]:
    """Return each layer's local rank as `localrank analyze` measures it by default.

    Empty, with a note, where that takes long or does not fit.
    """
    try:
        plan = _plan(options, lambda _: None, refuses=True)
        long = long_time(plan, _LONG)
        if long is not None:
            note(
                f"local ranks are left out: they take about {duration(long.seconds)}; localrank"
                " analyze measures them"
            )
            return {}
        (record,) = run_plan(plan, note)
    except LocalrankError as error:
        note(f"local ranks are left out: {error.what}")
        return {}
    return {
        str(row["layer"]): float(row["local_rank"])
        for row in record.rows
        if row["local_rank"] is not None
    }


def _one_checkpoint(plan: Plan) -> SeriesPlan:
    if len(plan.series) != 1 or plan.n_checkpoints != 1:
        raise SettingsError(
            f"compress takes one checkpoint, but {plan.n_checkpoints} were named.",
            "Name one file.",
        )
    series = plan.series[0]
    if isinstance(series.model, WholeLayer):
        raise ModelError(
            "the network is a single layer, which has no name under which it could be replaced.",
            "Wrap it in an nn.Sequential, and its weights with it.",
        )
    if factored_layers(series.model):
        raise ModelError(
            f"{series.checkpoints[0].file.path}: its layers are already factored.",
            "Compress the original to the smaller budget.",
        )
    return series


def _with_held_out(how: CompressOptions, options: AnalyzeOptions, note: Note) -> CompressOptions:
    """Return options with a path on this machine in place of the address of held-out data."""
    if how.eval_data is None:
        return how
    data = str(located(replace(options, data=how.eval_data), note).data)
    with addressed():
        brought(Path(data))
    return replace(how, eval_data=data)


def _inputs(series: SeriesPlan, options: AnalyzeOptions, how: CompressOptions) -> list[Path]:
    """Return the files that are read, which results must not replace."""
    source = series.settings.source
    sources = [source] if how.eval_data is None else [source, replace(source, text=how.eval_data)]
    code = [
        str(text).rpartition(":")[0] for text in (options.model, *(one.text for one in sources))
    ]
    expected = series.expected
    return [
        series.checkpoints[0].file.path,
        *(one.path for one in sources if one.path is not None),
        *(Path(name) for name in code if name.endswith(".py")),
        *([expected.source.folder / CONFIG] if isinstance(expected, HfExpected) else []),
    ]


@dataclass
class _Work:
    plan: Plan
    series: SeriesPlan
    how: CompressOptions
    note: Note
    watcher: Watcher
    key: dict[str, object] = field(init=False)  # what resuming compares
    _is_calibrated: bool = False

    def __post_init__(self) -> None:
        checkpoint = self.series.checkpoints[0]
        self._stored = load_state(checkpoint, self.plan.trust_pickle)
        fill_model(self.series.model, self.series.expected, self._stored, checkpoint.place)
        with addressed():
            self._sliced = Sliced.of(self.plan, self.series, self.how.eval_data)
        self._seed = self.series.settings.source.seed
        self._progress = Progress(self.watcher)
        limit = self.how.max_loss_increase
        self.key = {
            "checkpoint": checkpoint.place,
            "sha256_of_tensors": hash_of(self._stored),
            "model": self.series.settings.model.description,
            **self.series.model_facts,
            **self.series.data_facts,
            "--labels-key": self.series.settings.sampling.labels_key,
            "--eval-data": self._eval_facts,
            "--data-scale": self.series.settings.source.scale,
            "--data-shape": self.series.settings.source.shape,
            "--model-arg": {
                name: repr(value) for name, value in self.series.settings.model.arguments.items()
            },
            "points": self._sliced.sizes,
            "--seed": self._seed,
            "--keep": list(self.how.keep),
            "--metric": self.how.metric or "auto",
            "--dense": self.how.dense,
            "--max-loss-increase": None if limit is None else str(limit),
            "versions": versions(),
        }

    @property
    def _eval_facts(self) -> dict[str, object] | None:
        """What the held-out data are, with a hash; None if they are a part of the data."""
        if self.how.eval_data is None:
            return None
        facts = self._sliced.held_out.facts
        return {**facts, "data": shown(str(facts["data"]))} if "data" in facts else dict(facts)

    def begin(self) -> None:
        """Find the layers and check the settings, before anything that takes long."""
        how, model, sizes = self.how, self.series.model, self._sliced.sizes
        if sizes["calibrate"] < FEW:
            self.note(
                f"{sizes['calibrate']} points for calibration: covariances of so few are rough;"
                f" give {FEW} or more"
            )
        repeated = self._sliced.repeated()
        if repeated:
            count = sizes["pick"] + sizes["report"]
            self.note(
                f"{repeated} of {count} held-out points are also used for calibration, so the"
                " reported results may be too good; remove them from the data"
            )
        data = self._sliced.watched(self._done)
        first, labels = next(iter(data.pick()))
        layers = find_layers(model, first, forward, how.keep)
        with torch.no_grad():
            output = forward(model, first)
        if labels is not None and not labels.is_floating_point():
            labels = self._sliced.held_out.labels  # any of which may be out of range
        self.kind = kind_of(output, first, labels)
        self.point = first[:1]
        dtypes = {name: value.dtype for name, value in self._stored.items()}
        self._progress.expect({})
        self.work = Compressor(model, layers, data, forward, self.kind, dtypes)
        self._budgets = {share: self.work.weights_of(share) for share in how.budget}
        self._limit = None if how.max_loss_increase is None else self._bound(how.max_loss_increase)
        self._batch = _COPIES * self._sliced.data.size * activation_bytes(self.series)
        self._groups = len(self.work.groups(self.plan.memory, self._batch))

    def _done(self, name: str) -> None:
        """Count a batch of a split."""
        work: Work = "norms" if name == "calibrate" and self._is_calibrated else _OF_SLICE[name][0]
        text = _OF_SLICE[name][1] if work != "norms" else "estimating BatchNorm again"
        self._progress.done(work, text)

    @property
    def layers(self) -> Layers:
        """The layers of the network."""
        return self.work.layers

    @cached_property
    def _effective_ranks(self) -> dict[str, float]:
        """The effective rank of each layer's weight, which takes an SVD."""
        return {name: effective_rank_of(module) for name, module in self.layers.chosen.items()}

    @property
    def _names(self) -> tuple[str, ...]:
        return candidates(self._metric)

    @property
    def _metric(self) -> Metric | None:
        """The metric that was asked for; None if any is."""
        metric = self.how.metric
        return None if metric is None or metric == "auto" else metric

    def results(
        self, unfinished: Unfinished, local_ranks: dict[str, float]
    ) -> Iterator[tuple[float, Found]]:
        """Yield what was found for each budget by its share; those of an unfinished run first."""
        saver = self._saver(unfinished.folder)
        left = {}
        for share, budget in self._budgets.items():
            found = unfinished.found(share)
            if found is None:
                left[share] = budget
            elif saver.files(share) == found.files:
                self.note(f"{100 * share:g}% of the weights: kept from the run before")
                yield share, found
            else:
                self.note(
                    f"{100 * share:g}% of the weights: computed again because its files changed"
                )
                left[share] = budget
        if not left and self._limit is None:
            return
        self._calibrate(left)
        original = self.work.report(self.series.model)
        for share, chosen in self._outcomes(left):
            unfinished.begin()
            found = self._found(share, chosen, original, saver, local_ranks)
            unfinished.keep(share, found)
            yield share, found

    def _saver(self, folder: Path) -> Saver:
        return Saver(self.series, self._stored, self.point, folder, dense=self.how.dense)

    def _calibrate(self, budgets: dict[float, int]) -> None:
        layers, sizes = self.layers.chosen, self._sliced
        tried = list(budgets.values()) or [self.work.total // 2] * _BISECTIONS
        work = {name: factor_work(module) for name, module in layers.items()}
        ahead: dict[Work, float] = {
            "calibrate": sizes.n_batches("calibrate") * self._groups,
            "factor": sum(work.values()),
        }
        self._expect(len(budgets), len(tried) * len(self._names), ahead)
        self.note(
            f"calibrating {len(layers)} layers on {sizes.sizes['calibrate']} points"
            + (f", in {self._groups} passes" if self._groups > 1 else "")
        )
        self.work.calibrate(
            self._seed,
            self.plan.memory,
            taken=self._batch,
            adds_biases=not (self.how.dense or self.series.settings.model.is_hf),
            done=lambda name: self._progress.done("factor", f"factored {name}", work[name]),
        )
        # Some methods agree, which their factors tell.
        self._is_calibrated = True
        distinct = [one for budget in tried for one in self.work.distinct(budget, self._names)]
        self._expect(len(budgets), len(distinct), {})

    def _expect(self, n_budgets: int, tries: int, ahead: dict[Work, float]) -> None:
        """Set the work that is left, by the networks that are tried to choose."""
        sizes, n_ends = self._sliced, max(n_budgets, 1)
        picked, reported = tries + len(BASELINES) * n_ends, (len(BASELINES) + 1) * n_ends
        norms = sizes.n_batches("calibrate") if norm_layers(self.series.model) else 0
        measured = picked * sizes.n_batches("pick") + reported * sizes.n_batches("report")
        self._progress.expect({**ahead, "measure": measured, "norms": (picked + reported) * norms})

    def _outcomes(self, budgets: dict[float, int]) -> Iterator[tuple[float, Outcome]]:
        """Yield what is chosen for every budget, or for the limit."""
        for share, budget in budgets.items():
            yield share, self.work.best(budget, self._names)
        if self._limit is None:
            return
        found = self.work.smallest(self._limit, self._names)
        if found is None:
            raise LocalrankError(
                f"--max-loss-increase {self.how.max_loss_increase}: no budget stays within it on"
                f" the {self._sliced.sizes['pick']} points of the selection split.",
                "Allow a larger increase, or give more data: the limit includes 1.65 standard"
                " errors.",
            )
        yield round(found.budget / self.work.total, 2), found

    def _bound(self, limit: LossLimit) -> float:
        """Return a limit in the unit of the loss."""
        if not limit.is_share:
            return limit.value
        loss = float(self.work.original.loss.mean())
        if self.kind == "outputs" or loss < _FEW_NATS:
            why = (
                "there are no labels, so there is no loss of the original to take a percentage of"
                if self.kind == "outputs"
                else f"the original's loss is {loss:.2g}, too small to take a percentage of"
            )
            raise SettingsError(
                f"--max-loss-increase {limit}: {why}.", "Give nats: --max-loss-increase 0.02nats."
            )
        return limit.value * loss

    def _found(
        self,
        share: float,
        chosen: Outcome,
        original: Scores,
        saver: Saver,
        local_ranks: dict[str, float],
    ) -> Found:
        """Save what was chosen, and measure it and the baselines on the reporting split."""
        outcomes, missing = self.work.baselines(chosen.budget)
        chosen = self._best_of(chosen, outcomes)
        compressed = self.work.build(chosen.name, chosen.ranks)
        saver.save(share, compressed)
        ours = self.work.report(compressed)
        rows = [budget_row(chosen, share, ours, original) | latency(compressed, self.point)]
        baselines: dict[str, Scores] = {}
        for other in sorted(outcomes, key=lambda one: float(one.scores.loss.mean())):
            found = self.work.report(self.work.build(other.name, other.ranks))
            baselines[other.name] = found
            if other.name != chosen.name:
                rows.append(budget_row(other, share, found, original))
        rows += [missing_row(name, share, why) for name, why in missing.items()]
        text = self._breach(Difference.of(ours.loss, original.loss), original)
        return Found(
            budgets=tuple(rows),
            layers=tuple(
                layer_rows(
                    self.series.model,
                    self.layers,
                    share,
                    chosen.ranks,
                    {"local_rank": local_ranks, EFFECTIVE_RANK: self._effective_ranks},
                )
            ),
            verdicts=(
                verdict(chosen.name, ours, baselines, _UNITS[self.kind], share),
                *((text,) if text else ()),
            ),
            files=saver.files(share),
            keeps_limit=not text,
        )

    def _best_of(self, chosen: Outcome, baselines: Sequence[Outcome]) -> Outcome:
        """Return what diverges least on the selection split, of what was chosen and baselines.

        A baseline must keep to the limit, and --metric excludes them all.
        """
        if self._metric is not None:
            return chosen
        limit = math.inf if self._limit is None else self._limit
        kept = [one for one in baselines if self.work.increase(one).bound < limit]
        return least_divergent([chosen, *kept])

    def _breach(self, increase: Difference, original: Scores) -> str:
        """Return how the reporting split breaks the limit; empty if it does not."""
        limit = self.how.max_loss_increase
        if limit is None:
            return ""
        bound = limit.value * (float(original.loss.mean()) if limit.is_share else 1.0)
        if increase.mean < bound:
            return ""
        return (
            f"The limit {limit} is exceeded on the reporting split: the loss increases by"
            f" {increase.mean:.4g} +- {increase.error:.2g} {_UNITS[self.kind]}."
        )

    def written(self, results: Iterator[tuple[float, Found]], unfinished: Unfinished) -> Compressed:
        """Write the tables once everything is measured, in the order in which it was asked for."""
        by_share = dict(results)
        order = [share for share in self.how.budget if share in by_share] or list(by_share)
        every = [by_share[share] for share in order]
        model, folder = self.series.model, unfinished.folder
        saver = self._saver(folder)
        first = original_row(self.work.total, self.work.original, self.work.report(model))
        first |= latency(model, self.point)
        rows = aligned([first, *(row for one in every for row in one.budgets)])
        layers = [row for one in every for row in one.layers]
        verdicts = [text for one in every for text in one.verdicts]
        write_loader(folder)  # again: what an earlier run left may have been changed
        write_rows(folder / BUDGETS_NAME, rows)
        write_rows(folder / LAYERS_NAME, layers)
        write_facts(folder, self._facts(rows, layers, verdicts))
        unfinished.end()
        return Compressed(
            tuple(rows),
            tuple(layers),
            tuple(verdicts),
            folder,
            tuple(path for share in order for path in saver.hf_folders(share)),
            all(one.keeps_limit for one in every),
        )

    def _facts(
        self, rows: Sequence[Row], layers: Sequence[Row], verdicts: Sequence[str]
    ) -> dict[str, object]:
        checkpoint = self.series.checkpoints[0]
        limit = self.how.max_loss_increase
        return {
            "step": checkpoint.step,
            "sha256_of_tensors": self.key["sha256_of_tensors"],
            "model": self.series.settings.model.description,
            **self.series.model_facts,
            **self.series.data_facts,
            "eval_data": self._eval_facts,
            "points": self._sliced.sizes,
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
