"""`localrank reproduce`: train networks whose ranks are known."""

import sys

import typer

from localrank_cli.cli.command import with_options
from localrank_cli.errors import UsageError
from localrank_cli.options.table import ReproduceOptions

_DOES_NOT_HOLD = 4


@with_options(ReproduceOptions, example="localrank reproduce gaussian --quick")
def reproduce(_context: typer.Context, options: ReproduceOptions) -> None:
    """Train small networks with a known or published answer, and check that it is found.

    Prints the verdict. Exit status 4 when a claim does not hold.
    """
    if options.mnist is not None and options.experiment not in ("mnist", "patel2024"):
        raise UsageError(
            "--mnist is for `localrank reproduce mnist` and `patel2024`.", "Leave it out."
        )
    if options.steps is not None and (options.experiment != "patel2024" or options.quick):
        raise UsageError(
            "--steps is for `localrank reproduce patel2024` without --quick.", "Leave it out."
        )
    if options.full and (options.experiment != "compression" or options.quick):
        raise UsageError(
            "--full is for `localrank reproduce compression` without --quick.", "Leave it out."
        )
    raise typer.Exit(_run(options))


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
        with handler.interruptible(), screen.progress(experiment.n_checkpoints) as steps:
            for text in train(experiment, out):
                steps.done(text)
        with handler.interruptible():
            frame = analyze(experiment, out, sys.argv, screen.detail)
            verdict = conclude(experiment, out, frame, screen.note)
    written = [out / RANKS, out / PICTURE]
    screen.note(f"wrote {', '.join(str(path) for path in written if path.exists())}")
    sys.stdout.write(verdict.text)
    sys.stdout.flush()
    return 0 if verdict.holds else _DOES_NOT_HOLD
