"""Runs `reproduce`: progress on stderr, the verdict on stdout."""

import sys

from localrank_cli.cli.screen import Screen
from localrank_cli.cli.signals import hearing
from localrank_cli.experiments.reproduce import (
    PICTURE,
    RANKS,
    ReproduceOptions,
    analyse,
    conclude,
    prepare,
    train,
)

_DOES_NOT_HOLD = 4


def run_reproduction(options: ReproduceOptions, *, quiet: bool) -> int:
    """Trains, analyses, judges, and prints the verdict.

    Args:
        options: What was asked for.
        quiet: No notes, no progress.

    Returns:
        The exit status: 0 when every claim holds, else 4.
    """
    screen = Screen(quiet=quiet, verbose=False)
    plan = prepare(options)
    with hearing() as ears:
        with ears.listening(), screen.progress(plan.n_checkpoints) as steps:
            for text in train(plan, options.out):
                steps.done(text)
        with ears.listening():
            frame = analyse(plan, options.out, sys.argv, screen.detail)
            verdict = conclude(plan, options.out, frame, screen.note)
    written = [options.out / RANKS, options.out / PICTURE]
    screen.note(f"wrote {', '.join(str(path) for path in written if path.exists())}")
    sys.stdout.write(verdict.text)
    sys.stdout.flush()
    return 0 if verdict.holds else _DOES_NOT_HOLD
