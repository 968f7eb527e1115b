"""The work of `reproduce`: progress on stderr, the verdict on stdout."""

import sys

from localrank_cli.cli.screen import Screen
from localrank_cli.cli.signals import signal_handler
from localrank_cli.experiments.reproduce import (
    PICTURE,
    RANKS,
    analyse,
    conclude,
    prepare,
    train,
)
from localrank_cli.options.table import ReproduceOptions

_DOES_NOT_HOLD = 4


def run_reproduction(options: ReproduceOptions) -> int:
    """Train, analyse, judge and print the verdict; return 0 if every claim holds, else 4."""
    screen = Screen(quiet=options.quiet, verbose=False)
    experiment = prepare(options)
    with signal_handler() as handler:
        with handler.interruptible(), screen.progress(experiment.n_checkpoints) as steps:
            for text in train(experiment, options.folder):
                steps.done(text)
        with handler.interruptible():
            frame = analyse(experiment, options.folder, sys.argv, screen.detail)
            verdict = conclude(experiment, options.folder, frame, screen.note)
    written = [options.folder / RANKS, options.folder / PICTURE]
    screen.note(f"wrote {', '.join(str(path) for path in written if path.exists())}")
    sys.stdout.write(verdict.text)
    sys.stdout.flush()
    return 0 if verdict.holds else _DOES_NOT_HOLD
