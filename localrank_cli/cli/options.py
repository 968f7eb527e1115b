"""Options of `localrank analyze` for metrics, slices and what is estimated from samples."""

from typing import Annotated

import typer

from localrank_cli.options.parse import Preset

AllowSmallCov = Annotated[
    bool,
    typer.Option(
        "--allow-small-cov",
        help="Let --input-metric data go on with no more points than directions.",
    ),
]

AllowUnsaved = Annotated[
    bool,
    typer.Option(
        "--allow-unsaved",
        help="Analyse a network although parts of it (random features, masks) are drawn when it is"
        " built and are in no checkpoint: they come from a fixed seed, and column message names"
        " them.",
    ),
]

PresetName = Annotated[
    Preset | None,
    typer.Option(
        metavar="NAME",
        help="Rules of published work, where no flag says otherwise: patel2024 (atol 0.01,"
        " hidden layers, 128 points), feng2022 (a 16 x 16 patch in the middle of the image,"
        " rtol 0.0096), numpy (rtol eps).",
    ),
]

InputSlice = Annotated[
    str | None,
    typer.Option(
        metavar="INDEX",
        help="Vary only this part of a point, in numpy's notation (':,8:24,8:24'), or center:16.",
    ),
]

OutputSlice = Annotated[
    str | None,
    typer.Option(metavar="INDEX", help="Only this part of each output: '-1,:' is the last token."),
]

Sigma1 = Annotated[
    str | None,
    typer.Option(
        "--sigma-1",
        metavar="NAME",
        help="Whose largest singular value --rtol refers to under a slice: slice, the slice's own"
        " (the default), or full, that of the whole Jacobian, which is then computed too.",
    ),
]

Information = Annotated[
    bool | None,
    typer.Option(
        "--information/--no-information",
        help="Add bounds on I(X;T) for each layer, in nats, and with labels on I(T;Y).",
    ),
]

InformationPoints = Annotated[
    int | None,
    typer.Option(metavar="N", help="Points for --information. Default: 1000, or all."),
]

InformationNoise = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Noise variance of T for --information, as a share of tr Cov(T). Default: the"
        " square of --noise.",
    ),
]

LabelsKey = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Array of labels in the data file: adds loss and accuracy at each checkpoint.",
    ),
]
