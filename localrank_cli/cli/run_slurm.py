"""Submit an analysis to Slurm, or print the script that would."""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from localrank_cli.cli.screen import Screen, stdout_for_data
from localrank_cli.cli.signals import Interrupted, signal_handler
from localrank_cli.divide.folder import Progress, ShardFolder, kept_heads
from localrank_cli.divide.slurm import (
    Jobs,
    check_log_folder,
    check_sbatch,
    jobs_alive,
    longest_array,
    recorded_jobs,
    submission_script,
    submit_jobs,
)
from localrank_cli.errors import INCOMPLETE, LocalrankError, SettingsError
from localrank_cli.options.table import AnalyzeOptions, SubmitOptions
from localrank_cli.remote.places import downloads
from localrank_cli.results.journal import Journal, journal_path
from localrank_cli.results.lock import OutputLock
from localrank_cli.results.plan_file import PlanFile
from localrank_cli.results.record import KIND
from localrank_cli.results.write import check_suffix, real_target
from localrank_cli.run.compute import run_plan
from localrank_cli.run.plan import Plan, make_plan

_POLL = 2.0  # seconds; other users need the scheduler too


def run_slurm(options: AnalyzeOptions, words: Sequence[str], division: SubmitOptions) -> int:
    """Submit the script, or print it, and return the exit status.

    `words` is the command line of analyze without what differs between tasks.
    """
    assert options.output is not None
    check_suffix(options.output)
    folder = ShardFolder(real_target(options.output))
    check_log_folder(folder)
    if not division.dry_run:
        check_sbatch()
    screen = Screen(quiet=options.quiet, verbose=options.verbose)
    with (
        signal_handler() as handler,
        downloads(),
        stdout_for_data(screen) as data,
        handler.interruptible(),
    ):
        with OutputLock(folder.path):
            _refuse_while_at_work(folder)
            plan = make_plan(replace(options, device="cpu"), screen.note, is_here=False)
            left = plan if options.overwrite else folder.left(plan, screen.note)
            tasks = _tasks(left, division, screen) if left.n_checkpoints else 1
            prepare = folder.preview if division.dry_run else folder.prepare
            plan_file = prepare(plan, tasks, words, screen.note, overwrite=options.overwrite)
            script = submission_script(plan_file, folder, division, overwrite=options.overwrite)
            if division.dry_run:
                data.write(script)
                data.flush()
                return 0
            if not plan_file.n_units:
                return 0 if folder.finish(plan_file, sys.argv) else INCOMPLETE
            # A signal waits until the ids of all jobs that were accepted are known.
            with handler.uninterruptible():
                jobs = submit_jobs(script, plan_file, folder, screen.note)
                screen.note(
                    f"array job {jobs.array} of {plan_file.shards} tasks for"
                    f" {plan_file.n_units} units, merge job {jobs.merge}; watch them with"
                    f" squeue -j {jobs.array},{jobs.merge},"
                    f" logs are in {folder.logs}"
                )
        return _wait(jobs, plan_file, folder, screen) if division.wait else 0


def _refuse_while_at_work(folder: ShardFolder) -> None:
    if (jobs := recorded_jobs(folder)) and (alive := jobs_alive(jobs)):
        raise SettingsError(
            f"{folder.path}: Slurm jobs {', '.join(alive)} are still queued or running.",
            f"Wait for them, or stop them with scancel {' '.join(alive)}.",
        )


def _tasks(plan: Plan, division: SubmitOptions, screen: Screen) -> int:
    most = min(division.max_tasks, longest_array())
    if division.minutes_per_task is None:
        return max(1, min(plan.n_checkpoints, most))
    seconds = _seconds_per_checkpoint(plan)
    per_task = max(1, math.floor(division.minutes_per_task * 60 / max(seconds, 1e-3)))
    tasks = max(1, min(math.ceil(plan.n_checkpoints / per_task), most))
    screen.note(
        f"a checkpoint takes about {seconds:.3g} s here: {tasks} tasks of about"
        f" {seconds * plan.n_checkpoints / tasks / 60:.3g} minutes"
    )
    return tasks


def _seconds_per_checkpoint(plan: Plan) -> float:
    """Measure with one point and with several, after a first call as a warm-up."""
    series = next((one for one in plan.series if one.checkpoints), None)
    if series is None:  # none of the remaining checkpoints can be read
        return 0.0
    n_points = len(series.points.indices)

    def seconds(points: int) -> float:
        """Measure how long the first checkpoint takes with so many points."""
        first = replace(series.checkpoints[0], points=(0, points))
        one = replace(plan, series=(replace(series, checkpoints=(first,), failures=()),))
        started = time.perf_counter()
        for _ in run_plan(one, lambda _: None):
            pass
        return time.perf_counter() - started

    several = min(4, n_points)
    seconds(1)
    base, more = seconds(1), seconds(several)
    return base + (n_points - 1) * max(0.0, more - base) / max(1, several - 1)


def _wait(jobs: Jobs, plan_file: PlanFile, folder: ShardFolder, screen: Screen) -> int:
    progress = Progress(folder.path)
    progress.new()
    try:
        with screen.progress(plan_file.n_units, done=len(kept_heads(folder.path))) as steps:
            while _are_alive(jobs):
                for head in progress.new():
                    steps.done(f"{head['run']} step {head['step']}")
                time.sleep(_POLL)
    except Interrupted:
        screen.note(
            f"array job {jobs.array} and merge job {jobs.merge} keep running; stop them with"
            f" scancel {jobs.array} {jobs.merge}"
        )
        raise
    return _status(plan_file, folder)


def _are_alive(jobs: Jobs) -> bool:
    try:
        return bool(jobs_alive([jobs.array, jobs.merge]))
    except SettingsError:  # Slurm is too busy to answer; the jobs do not depend on it
        return True


def _status(plan_file: PlanFile, folder: ShardFolder) -> int:
    if folder.plan.exists():  # the merge removes it when all is there
        raise LocalrankError(
            f"{folder.path}: the jobs have ended, and some units are missing.",
            f"See {folder.logs} for the reason; rerun the same command to resume.",
        )
    with Journal(journal_path(Path(plan_file.output)), read_only=True) as journal:
        is_finite = all(entry.head["finite"] for entry in journal.entries(KIND))
    return 0 if is_finite else INCOMPLETE
