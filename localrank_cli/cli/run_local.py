"""Run one analysis by several workers on this machine, and merge their results."""

import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

from localrank_cli.cli.chart import Summary
from localrank_cli.cli.run_analyze import LONG_NOTE, console_for
from localrank_cli.cli.screen import LINE_EVERY, PROGRESS, Screen, Steps, stdout_for_data
from localrank_cli.cli.signals import GRACE, Interrupted, signal_handler
from localrank_cli.divide.folder import Progress, ShardFolder, kept_heads
from localrank_cli.divide.share import Machine, Share, available_cores, divide
from localrank_cli.divide.workers import Job, Worker, Workers
from localrank_cli.errors import INCOMPLETE, LocalrankError, OutputError, UsageError
from localrank_cli.machine import check_memory, count_gpus, memory_budget, pick_device
from localrank_cli.options.table import AnalyzeOptions
from localrank_cli.remote.places import downloads
from localrank_cli.results.journal import Journal, journal_path
from localrank_cli.results.lock import OutputLock, lock_path
from localrank_cli.results.plan_file import PlanFile
from localrank_cli.results.record import KIND, CheckpointRecord
from localrank_cli.results.write import check_suffix, real_target, written
from localrank_cli.run.plan import Plan, make_plan
from localrank_cli.searchpath import program_words

# A worker that is stuck in one call ends itself after its own grace, and must have time to write.
_PATIENCE = 2.5 * GRACE
# Notes of a worker about its own file, or that this process has printed already.
_WORKER_NOTES = ("note: wrote ", "note: resuming: ", "note: shard ", "stopped by ")
_PREFIX, _TABLE = "localrank-", "ranks.csv"  # of a temporary folder
_KEPT = re.compile(r"\d finished checkpoints? (is|are) kept")


def run_local(options: AnalyzeOptions, words: Sequence[str], workers: int | None = None) -> int:
    """Analyze by several processes, write the merged results, and return the exit status.

    The status is 0, or 3 when some checkpoints failed or gave values that are not finite.

    Args:
        options: Without an output file the result goes to stdout.
        words: The command line of analyze, without what differs between workers.
        workers: The number of processes; None for one per GPU, or one per core without GPUs.
    """
    output = options.output
    with ExitStack() as stack:
        if output is None or output == Path("-"):
            if options.overwrite:
                raise UsageError(
                    "--overwrite: there is no file to discard.", "Name one with -o FILE."
                )
            _remove_left_behind()
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=_PREFIX))
            target = Path(folder) / _TABLE
        else:
            check_suffix(output)
            target = real_target(output)
        is_kept = output is not None and output != Path("-")
        return _LocalRun(options, words, workers, target, is_kept).run()


def _remove_left_behind() -> None:
    """Remove temporary folders of runs that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        shards = ShardFolder(folder / _TABLE).path
        with suppress(OSError, OutputError):  # it is another user's, or its run is at work
            about = folder.lstat()
            if about.st_uid != os.geteuid() or not stat.S_ISDIR(about.st_mode):
                continue
            if lock_path(shards).is_file():
                with OutputLock(shards):
                    shutil.rmtree(folder)


@dataclass
class _LocalRun:
    options: AnalyzeOptions
    words: Sequence[str]
    n_workers: int | None
    target: Path
    is_kept: bool  # whether the target is the user's, not a temporary file for stdout
    screen: Screen = field(init=False)
    printed: set[str] = field(default_factory=set)
    progress_at: float = -LINE_EVERY  # when a line of a worker was last shown

    def __post_init__(self) -> None:
        self.screen = Screen(quiet=self.options.quiet, verbose=self.options.verbose)
        self.folder = ShardFolder(self.target)

    def run(self) -> int:
        """Plan, run the workers, merge their results, and return the exit status."""
        is_terminal = sys.stdout.isatty()
        with signal_handler(_PATIENCE) as handler, downloads(), ExitStack() as stack:
            data = stack.enter_context(stdout_for_data(self.screen))
            stack.enter_context(OutputLock(self.folder.path))
            with handler.interruptible():
                plan, shares = self._plan()
                plan_file = self.folder.prepare(
                    plan,
                    len(shares),
                    self.words,
                    self.screen.note,
                    overwrite=self.options.overwrite,
                )
            workers = Workers([self._job(*one, plan_file) for one in enumerate(shares)])
            handler.on_exit(workers.kill)
            if plan_file.n_units:
                try:
                    with handler.interruptible():
                        workers.start()
                        self._follow(workers, plan_file)
                except BaseException as error:  # a signal too; raised again
                    self._stop(workers, error, plan_file)
                    raise
            is_finite = self.folder.finish(plan_file, sys.argv)
            if self.is_kept:
                assert self.options.output is not None
                self.screen.note(written(self.options.output))
            self._show(data, is_terminal=is_terminal)
        return 0 if is_finite else INCOMPLETE

    def _plan(self) -> tuple[Plan, list[Share]]:
        options = self.options
        machine = Machine(
            available_cores(os.environ), memory_budget(pick_device("cpu")), count_gpus()
        )
        device = options.device or "auto"
        shares = divide(self.n_workers, device, options.memory, machine, os.environ)
        # Plan on the CPU, which leaves the GPUs to the workers: it takes one forward pass.
        is_cpu = all(share.device == "cpu" for share in shares)
        if is_cpu:
            check_memory(options.memory, pick_device("cpu"))
        least = min((one.memory for one in shares if one.memory is not None), default=None)
        planned = replace(options, device="cpu", memory=least)
        plan = make_plan(planned, self.screen.note, is_here=is_cpu, refuses=is_cpu)
        if (
            options.spectra is not None
        ):  # a file of singular values holds all points of a checkpoint
            shares = shares[: max(1, plan.n_checkpoints)]
        return plan, shares

    def _job(self, index: int, share: Share, plan_file: PlanFile) -> Job:
        own = ["--plan", str(self.folder.plan), "--shard", f"{index}/{plan_file.shards}"]
        own += ["-o", str(self.folder.path), "--device", share.device]
        if share.memory is not None:
            own += ["--memory", str(share.memory)]
        own += ["-q"] if self.options.quiet else ["-v"] if self.options.verbose else []
        command = [*program_words(sys.executable), "analyze", *plan_file.words, *own]
        return Job(command, share.environment)

    def _follow(self, workers: Workers, plan_file: PlanFile) -> None:
        progress = Progress(self.folder.path)
        progress.new()
        done = len(kept_heads(self.folder.path))
        with self.screen.progress(plan_file.n_units, done=done) as steps:
            while workers.are_running:
                self._relay(workers)
                _advance(steps, progress)
                if workers.first_bad is not None:
                    break
            if workers.first_bad is None:
                workers.wait()
            self._relay(workers)
        if (worker := workers.first_bad) is not None:
            raise _failure(worker, workers)

    def _relay(self, workers: Workers) -> None:
        for line in workers.lines():
            mark, ours, text = line.partition("localrank: ")
            if not ours or mark:  # from the user's code, or a traceback of --debug
                self.screen.plain(line)
            elif text.startswith(_WORKER_NOTES) or _KEPT.search(text):
                continue
            elif text.startswith((PROGRESS, f"note: {LONG_NOTE}")):
                self._relay_some(text)
            elif text.startswith("note: "):
                self.screen.note(text.removeprefix("note: "))
            elif text not in self.printed:
                self.printed.add(text)
                self.screen.warn(text)

    def _relay_some(self, text: str) -> None:
        """Print the progress of every worker, one worker at a time."""
        if text.startswith("note: "):
            if LONG_NOTE not in self.printed:
                self.printed.add(LONG_NOTE)
                self.screen.note(text.removeprefix("note: "))
        elif time.monotonic() - self.progress_at >= LINE_EVERY and not self.options.quiet:
            self.progress_at = time.monotonic()
            self.screen.warn(text)

    def _stop(self, workers: Workers, error: BaseException, plan_file: PlanFile) -> None:
        name = error.name if isinstance(error, Interrupted) else "SIGTERM"
        workers.signal(signal.Signals[name])
        workers.wait()
        self._relay(workers)
        kept = len(kept_heads(self.folder.path))
        if kept and self.is_kept:
            self.screen.note(
                f"{kept} finished units are kept in {self.folder.path.name}/,"
                f" {plan_file.n_units - kept} are left: rerun the same command to resume"
            )

    def _show(self, data: TextIO, *, is_terminal: bool) -> None:
        if not self.is_kept and (self.options.output is not None or not is_terminal):
            data.write(self.target.read_text(encoding="utf-8"))
        elif is_terminal:
            summary = Summary()
            with Journal(journal_path(self.target), read_only=True) as journal:
                for entry in journal.entries(KIND):
                    summary.add(CheckpointRecord.from_json(entry.head, journal.body(entry)).rows)
            summary.show(console_for(data))
        data.flush()


def _advance(steps: Steps, progress: Progress) -> None:
    for head in progress.new():
        steps.done(f"{head['run']} step {head['step']}")


def _failure(worker: Worker, workers: Workers) -> LocalrankError:
    number = workers.workers.index(worker)
    status = worker.process.returncode
    if worker.error:
        error = LocalrankError(worker.error)
    else:
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        error = LocalrankError(
            f"worker {number} of {len(workers.workers)} ended {how}.",
            "Rerun the same command to resume; if memory ran out, give fewer --workers or less"
            " --memory.",
        )
    error.exit_code = status if status in (2, 70) else 1
    return error
