"""The work of `reproduce`: progress on stderr, the verdict on stdout."""

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
    """Train, analyse, judge and print the verdict; return 0 if every claim holds, else 4."""
    screen = Screen(quiet=quiet, verbose=False)
    experiment = prepare(options)
    with hearing() as ears:
        with ears.listening(), screen.progress(experiment.n_checkpoints) as steps:
            for text in train(experiment, options.out):
                steps.done(text)
        with ears.listening():
            frame = analyse(experiment, options.out, sys.argv, screen.detail)
            verdict = conclude(experiment, options.out, frame, screen.note)
    written = [options.out / RANKS, options.out / PICTURE]
    screen.note(f"wrote {', '.join(str(path) for path in written if path.exists())}")
    sys.stdout.write(verdict.text)
    sys.stdout.flush()
    return 0 if verdict.holds else _DOES_NOT_HOLD
