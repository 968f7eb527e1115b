"""`localrank reproduce`: parses its options and hands over."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from localrank_cli.cli.command import Debug, Quiet
from localrank_cli.errors import UsageError


class ExperimentName(StrEnum):
    """What can be reproduced."""

    gaussian = "gaussian"
    mnist = "mnist"
    vib = "vib"
    patel2024 = "patel2024"


_Experiment = Annotated[
    ExperimentName,
    typer.Argument(
        metavar="EXPERIMENT",
        help="gaussian: a linear teacher of rank 3; mnist: digits; both with and without weight"
        " decay. vib: the variational information bottleneck on Gaussian variables, over beta."
        " patel2024: the published training on digits, compared with its published end values.",
        show_default=False,
    ),
]
_Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        readable=False,
        help="Folder for checkpoints, ranks.csv, verdict.txt and picture.png. Default:"
        " reproduce_EXPERIMENT.",
    ),
]
_Quick = Annotated[
    bool, typer.Option("--quick", help="Train for fewer steps, with the same claims.")
]
_Seeds = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Networks of each kind to train. Default: 3 for gaussian, else 1."
    ),
]
_Mnist = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        readable=False,
        help="The digits for mnist and patel2024: an .npz archive (images and labels, or Keras's),"
        " or the original train-images-idx3-ubyte, gzipped or not, with the file of"
        " labels in the same folder.",
    ),
]
_Steps = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Steps of patel2024 to train. Default: the published 1,000,000.",
    ),
]


def reproduce(
    experiment: _Experiment,
    out: _Out = None,
    quick: _Quick = False,
    seeds: _Seeds = None,
    mnist: _Mnist = None,
    steps: _Steps = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train small networks with a known or published answer, and check that it is found.

    Prints the verdict. Exit status 4 when a claim does not hold.
    """
    del debug  # read by the program itself
    if seeds is not None and seeds < 1:
        raise UsageError(f"--seeds {seeds}: must be at least 1.")
    if mnist is not None and experiment not in (ExperimentName.mnist, ExperimentName.patel2024):
        raise UsageError(
            "--mnist is for `localrank reproduce mnist` and `patel2024`.", "Leave it out."
        )
    if steps is not None and (experiment is not ExperimentName.patel2024 or quick):
        raise UsageError(
            "--steps is for `localrank reproduce patel2024` without --quick.", "Leave it out."
        )
    if steps is not None and steps < 1:
        raise UsageError(f"--steps {steps}: must be at least 1.")
    # Imported late: help, version and usage errors do not need torch.
    from localrank_cli.cli.run_reproduce import run_reproduction
    from localrank_cli.experiments.reproduce import ReproduceOptions

    options = ReproduceOptions(
        experiment=experiment.value,
        out=out or Path(f"reproduce_{experiment.value}"),
        quick=quick,
        seeds=seeds,
        mnist=mnist,
        steps=steps,
    )
    raise typer.Exit(run_reproduction(options, quiet=quiet))
