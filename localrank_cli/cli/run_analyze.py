"""Run `analyze` for a terminal, a pipe or a file."""

import os
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

from rich.console import Console

from localrank_cli.cli.chart import Summary
from localrank_cli.cli.screen import Screen, stdout_for_data
from localrank_cli.cli.signals import SignalHandler, signal_handler
from localrank_cli.errors import INCOMPLETE, LocalrankError, UsageError, duration, shortened
from localrank_cli.machine import keep_freed_memory
from localrank_cli.options.parse import array_size
from localrank_cli.options.table import AnalyzeOptions
from localrank_cli.remote.places import downloads, is_remote
from localrank_cli.results.columns import header, is_formula
from localrank_cli.results.plan_file import PlanFile, read_plan_file
from localrank_cli.results.record import CheckpointRecord
from localrank_cli.results.write import (
    RowWriter,
    cannot_write,
    check_suffix,
    make_folder,
    written,
)
from localrank_cli.run.compute import History, KeepSpectra, run_plan
from localrank_cli.run.estimate import long_time
from localrank_cli.run.follow import Watch
from localrank_cli.run.output import RunOutput, SpectraFolder
from localrank_cli.run.plan import Plan, make_plan
from localrank_cli.run.resume import Resume
from localrank_cli.run.units import Division, apply_plan_file, take_shard

LONG_NOTE = "the analysis takes about "


def run_analysis(options: AnalyzeOptions) -> int:
    """Analyze, write the results, and return the exit status.

    It is 0, or 3 if some checkpoints failed or gave values that are not finite.
    """
    target = _target(options)
    screen = Screen(quiet=options.quiet, verbose=options.verbose)
    is_terminal = sys.stdout.isatty()
    to_stdout = options.output == Path("-") or (target is None and not is_terminal)
    with signal_handler() as handler, downloads(), ExitStack() as stack:
        data = stack.enter_context(stdout_for_data(screen))
        output: RunOutput | None = None
        if target is not None:
            # Opened before any work, so that a path that cannot be written is reported at once.
            output = stack.enter_context(
                RunOutput(target, overwrite=options.overwrite, command=sys.argv)
            )
            handler.on_exit(_FinalCommit(output))
        work = _Work(options, screen, handler, output, data if to_stdout else None)
        try:
            with handler.interruptible():
                work.run()
        except BaseException:  # a signal too; raised again
            work.save_finished()
            raise
        work.save()
        if is_terminal and not to_stdout:
            work.summary.show(console_for(data))
            data.flush()
    return 0 if work.is_finite else INCOMPLETE


def _target(options: AnalyzeOptions) -> Path | None:
    target = options.output if options.output not in (None, Path("-")) else None
    if target is not None:
        if options.shard is not None and (not target.suffix or target.is_dir()):
            make_folder(target)
            return target / f"{options.shard.file_name}.csv"
        check_suffix(target)
    elif options.overwrite:
        raise UsageError("--overwrite: there is no file to discard.", "Name one with -o FILE.")
    elif options.shard is not None:
        raise UsageError(
            "--shard without -o: merge needs the journal next to the table.",
            "Name one with -o FILE or FOLDER.",
        )
    return target


@dataclass(frozen=True)
class _FinalCommit:
    """Write the table while the main thread is stuck, and give up soon."""

    output: RunOutput

    def __call__(self) -> None:
        self.output.commit(timeout=1.0)


@dataclass
class _Work:
    """An analysis, and where its results go."""

    options: AnalyzeOptions
    screen: Screen
    handler: SignalHandler
    output: RunOutput | None
    stream: TextIO | None  # for CSV, if there is no file
    summary: Summary = field(default_factory=Summary)
    is_finite: bool = True
    has_begun: bool = False  # whether earlier results, if there are any, were accepted
    left: int = 0  # checkpoints still to compute

    def run(self) -> None:
        """Compute the checkpoints that are left, and keep each result at once."""
        watch = Watch(self.options, self.screen.note) if self.options.follow else None
        file = read_plan_file(self.options.plan) if self.options.plan is not None else None
        plan = watch.first_plan() if watch else self._plan(file)
        if file is not None:
            plan = apply_plan_file(plan, file)
        keep_freed_memory(plan.memory)
        _describe(plan, self.screen)
        _note_formulas(plan, self.options, self.screen)
        division: Division | None = None
        if self.options.shard is not None:
            plan, division = take_shard(plan, self.options.shard)
            if not division.units:
                self.screen.note(
                    f"shard {division.shard}: nothing to do, there are {division.n_units} units"
                )
        elif (tasks := array_size(os.environ)) is not None and tasks > 1:
            self.screen.note(
                f"this is one of {tasks} tasks of a Slurm array, but computes everything: --shard"
                " auto divides the work"
            )
        spectra = SpectraFolder(self.options.spectra.absolute()) if self.options.spectra else None
        if spectra is not None:
            spectra.check(plan)  # before an earlier table is discarded
        resume = Resume(plan, plan, History(), 0)
        if self.output is not None:
            resume = self.output.begin(plan, self.screen.note, spectra, division)
            plan = resume.whole
        if spectra is not None:
            spectra.begin(plan)
        writer = _writer(self.stream, plan)
        self.left, self.has_begun = resume.plan.n_checkpoints, True
        keep = spectra.keep if spectra is not None else None
        _announce(resume.plan, self.screen)
        self._compute(resume, keep, writer)
        for more in watch.plans(plan) if watch else ():
            self.left += more.n_checkpoints
            self._compute(replace(resume, plan=more, n_done=0), keep, writer)
        self._conclude()

    def _plan(self, file: PlanFile | None) -> Plan:
        finished = None
        if self.output is not None and any(map(is_remote, self.options.checkpoints)):
            finished = self.output.finished()
        return make_plan(self.options, self.screen.note, file, finished=finished)

    def _compute(self, resume: Resume, keep: KeepSpectra | None, writer: RowWriter | None) -> None:
        """Compute the checkpoints of a plan, and show which of them are done."""
        total = resume.n_done + resume.plan.n_checkpoints
        with self.screen.progress(total, done=resume.n_done) as steps:
            for record in run_plan(
                resume.plan, self.screen.note, resume.history, keep, steps.within
            ):
                self._keep(record, writer)
                steps.done(f"{record.run} step {record.step}")

    def _keep(self, record: CheckpointRecord, writer: RowWriter | None) -> None:
        if self.output is not None:
            with self.handler.uninterruptible():
                self.output.add(record)
        else:
            self.summary.add(record.rows)
        if writer is not None:
            _write(writer, record)
        self.is_finite &= record.is_finite
        self.left -= 1
        _report(record, self.screen)

    def _conclude(self) -> None:
        if self.output is None:
            return
        # Results of earlier runs of the command count too.
        self.is_finite = self.output.is_finite
        for record in self.output.records():
            self.summary.add(record.rows)

    def save(self) -> None:
        """Write the table and its manifest from the finished checkpoints."""
        if self.output is not None and self.output.commit():
            self.screen.note(written(self.output.name))

    def save_finished(self) -> None:
        """Save after something stopped the run, and note how to resume it.

        A rerun that is refused before it begins would be refused again: its error says what to do.
        """
        try:
            self.save()
        except LocalrankError as error:  # reported besides the error that stopped the run
            self.screen.warn(f"warning: {error.what}")
        if self.has_begun and self.output is not None and self.output.n_kept:
            kept = "checkpoint is" if self.output.n_kept == 1 else "checkpoints are"
            self.screen.note(
                f"{self.output.n_kept} finished {kept} kept,"
                f" {self.left} {'is' if self.left == 1 else 'are'} left: rerun the same command"
                " to resume"
            )


def console_for(terminal: TextIO) -> Console:
    """Return a console as wide as the terminal behind a stream."""
    width = None
    if "COLUMNS" not in os.environ:
        # rich asks the standard streams, which may all be redirected by now.
        with suppress(OSError):  # not a terminal: rich's default width
            width = os.get_terminal_size(terminal.fileno()).columns or None
    return Console(file=terminal, highlight=False, force_terminal=True, width=width)


def _writer(stream: TextIO | None, plan: Plan) -> RowWriter | None:
    return RowWriter(stream, header(plan.extra_columns)) if stream is not None else None


def _write(writer: RowWriter, record: CheckpointRecord) -> None:
    try:
        writer.write(record.rows)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise cannot_write(Path("standard output"), error) from error


def _describe(plan: Plan, screen: Screen) -> None:
    for series in plan.series:
        layers = ", ".join(record.call.label for record in series.examination.records)
        screen.detail(
            f"{series.run}: {len(series.checkpoints)} checkpoints,"
            f" {series.points.tensor.shape[0]} points, {plan.device}, layers {layers}"
        )


def _note_formulas(plan: Plan, options: AnalyzeOptions, screen: Screen) -> None:
    """Note a name that a spreadsheet program would run; tables hold names as they are."""
    if options.output is not None and options.output.suffix.lower() in {".jsonl", ".parquet"}:
        return
    names = [series.run for series in plan.series]
    for series in plan.series:
        names += [checkpoint.file.name for checkpoint in series.checkpoints]
        names += [record.call.label for record in series.examination.records]
    name = next(filter(is_formula, names), None)
    if name is not None:
        screen.note(
            f"the name {shortened(repr(name))} begins like a formula: a spreadsheet program may run"
            " it, so import its column as text"
        )


def _announce(plan: Plan, screen: Screen) -> None:
    """Note how long a long analysis takes, before it starts."""
    found = long_time(plan)
    if found is not None:
        screen.note(
            f"{LONG_NOTE}{duration(found.seconds)}, for {found.n_checkpoints}"
            f" {'checkpoint' if found.n_checkpoints == 1 else 'checkpoints'}, judging by a few"
            " timed products; localrank inspect shows the time of each layer"
        )


def _report(record: CheckpointRecord, screen: Screen) -> None:
    if record.is_failed:
        screen.warn(f"warning: {record.flaw}")
        return
    screen.detail(
        f"{record.run} step {record.step}: {record.facts['seconds']} s,"
        f" {'; '.join(record.facts['routes'])}"
    )
    if any(any(ranks.undecided) for layer in record.layers for ranks in layer.points.ranks):
        screen.note(
            f"{record.run}: rounding decides the rank at some points (column n_undecided): a"
            " singular value is closer to the tolerance than the rounding error of the SVD; --rtol"
            " eps is the smallest meaningful tolerance"
        )
    if not record.is_finite:
        screen.warn(f"warning: {record.flaw}")
