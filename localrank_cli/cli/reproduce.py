"""`localrank reproduce`: train networks whose ranks are known."""

import sys
from typing import TYPE_CHECKING

import typer

from localrank_cli.cli.command import with_options
from localrank_cli.errors import LocalrankError, UsageError
from localrank_cli.options.table import ReproduceOptions
from localrank_cli.searchpath import program_words

if TYPE_CHECKING:
    from localrank_cli.cli.screen import Screen
    from localrank_cli.cli.signals import SignalHandler

_DOES_NOT_HOLD = 4


@with_options(ReproduceOptions, example="localrank reproduce gaussian --quick")
def reproduce(_context: typer.Context, options: ReproduceOptions) -> None:
    """Train small networks with known or published results, and check that they are reproduced.

    Prints the verdict. The exit status is 4 if a claim does not hold.
    """
    _check(options)
    raise typer.Exit(_run(options))


def _check(options: ReproduceOptions) -> None:
    sweeps = options.experiment == "generalization"
    if options.mnist is not None and options.experiment not in ("mnist", "patel2024"):
        raise UsageError(
            "--mnist is for `localrank reproduce mnist` and `patel2024`.", "Leave it out."
        )
    if options.steps is not None and (options.experiment != "patel2024" or options.quick):
        raise UsageError(
            "--steps is for `localrank reproduce patel2024` without --quick.", "Leave it out."
        )
    for name in ("workers", "shard"):
        if getattr(options, name) is not None and not sweeps:
            raise UsageError(
                f"--{name} is for `localrank reproduce generalization`.", "Leave it out."
            )
    if options.workers is not None and options.shard is not None:
        raise UsageError("--workers with --shard: a part has one process.", "Give one of them.")
    if options.full and (options.experiment != "compression" or options.quick):
        raise UsageError(
            "--full is for `localrank reproduce compression` without --quick.", "Leave it out."
        )


def _run(options: ReproduceOptions) -> int:
    """Train, analyze, judge and print the verdict; return 0 if every claim holds, else 4."""
    # Imported late: help, version and usage errors do not need torch.
    from localrank_cli.cli.screen import Screen
    from localrank_cli.cli.signals import signal_handler
    from localrank_cli.experiments.reproduce import (
        PICTURE,
        RANKS,
        analyze,
        conclude,
        prepare,
        train,
    )

    screen, out = Screen(quiet=options.quiet, verbose=False), options.folder
    experiment = prepare(options)
    with signal_handler() as handler:
        count = options.workers or 1
        if count > 1:
            _train_by_workers(options, count, screen, handler)
        with handler.interruptible(), screen.progress(experiment.n_checkpoints) as steps:
            for text in train(experiment, out):
                steps.done(text)
        if options.shard is not None:
            return 0
        with handler.interruptible():
            frame = analyze(experiment, out, sys.argv, screen.detail)
            verdict = conclude(experiment, out, frame, screen.note)
    written = [out / RANKS, out / PICTURE]
    screen.note(f"wrote {', '.join(str(path) for path in written if path.exists())}")
    sys.stdout.write(verdict.text)
    sys.stdout.flush()
    return 0 if verdict.holds else _DOES_NOT_HOLD


def _train_by_workers(
    options: ReproduceOptions, count: int, screen: "Screen", handler: "SignalHandler"
) -> None:
    """Train the networks of a sweep in several processes, each a part; finished ones are kept.

    Raises:
        LocalrankError: If a process fails.
    """
    from localrank_cli.divide.workers import Job, Workers

    words = [*program_words(sys.executable), "reproduce", options.experiment, "-q"]
    words += ["--out", str(options.folder), *(["--quick"] if options.quick else [])]
    words += [] if options.seeds is None else ["--seeds", str(options.seeds)]
    jobs = [Job([*words, "--shard", f"{index}/{count}"], {}) for index in range(count)]
    workers = Workers(jobs)
    handler.on_exit(workers.kill)
    bad = None
    try:
        with handler.interruptible():
            workers.start()
            while workers.are_running and bad is None:
                for line in workers.lines():
                    screen.plain(line)
                bad = workers.first_bad
    finally:
        workers.kill()
        workers.wait()
    bad = bad or workers.first_bad
    if bad is not None:
        raise LocalrankError(
            bad.error or f"a worker ended with status {bad.process.returncode}.",
            "" if bad.error else "Rerun the same command to resume, with fewer --workers.",
        )
