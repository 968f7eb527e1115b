"""Arguments of the commands that analyse a series: what each means, and its help."""

from pathlib import Path
from typing import Annotated

import typer

from localrank_cli.cli.command import factor

_DANGER = "Dangerous options"

Checkpoints = Annotated[
    list[Path],
    typer.Argument(
        metavar="CHECKPOINTS",
        readable=False,  # what cannot be read is found out when it is read
        help="Folders of checkpoints (each is a series), or single checkpoint files.",
        show_default=False,
    ),
]

ModelSpec = Annotated[
    str | None,
    typer.Option(
        metavar="SPEC",
        help="The network's code: path/to/file.py:name or package.module:name, an nn.Module"
        " class or a function that returns a module; or hf: built by transformers from the"
        " config.json beside the weights. Without it: a plain MLP, inferred from the weights.",
    ),
]

ModelArg = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="A keyword argument for --model, its value as JSON, else as text; repeat.",
    ),
]

Activation = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Activation of an inferred MLP: relu, tanh, gelu, ... Default: relu.",
    ),
]

DataSpec = Annotated[
    str | None,
    typer.Option(
        metavar="SPEC",
        help="Where the points come from: a .safetensors, .npz, .npy or .pt file;"
        " file.py:name; normal:3x32x32 or uniform:784 (the shape of one point).",
    ),
]

DataKey = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Which array of the data file. Default: the only one, else x, inputs or images.",
    ),
]

DataScale = Annotated[
    float | None,
    typer.Option(metavar="X", parser=factor, help="A factor for the data: 1/255 for pixels."),
]

Points = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="How many points, drawn without replacement, the same at every checkpoint."
        " Default: 64.",
    ),
]

Seed = Annotated[int | None, typer.Option(metavar="S", help="Seed of the draw. Default: 0.")]

Layers = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        help="Modules by qualified name, comma separated, * crosses dots, !GLOB leaves out;"
        " repeat. Default: every Linear, Bilinear, Conv and ConvTranspose that runs.",
    ),
]

Exclude = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Modules to leave out, comma separated; repeat."),
]

Wrt = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Differentiate with respect to this module's output (an embedding, say)."
        " Default: the network's input.",
    ),
]

Atol = Annotated[
    list[float] | None,
    typer.Option(
        metavar="X",
        help="Absolute tolerance: singular values above X count; repeat. Default: 0.01.",
    ),
]

Rtol = Annotated[
    list[str] | None,
    typer.Option(
        metavar="X",
        help="Relative tolerance: singular values above X times the largest count, or eps:"
        " max(n_out, n_in) times the float32 epsilon; repeat.",
    ),
]

InputMetric = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Metric of the varied tensor: identity (the default), or data: its covariance over"
        " the whole data.",
    ),
]

Noise = Annotated[
    float | None,
    typer.Option(metavar="S", help="Standard deviation for gaussian_information. Default: 1."),
]

DeviceName = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="auto, cpu, cuda or cuda:K; several with commas, or all GPUs, each with a process of"
        " its own.",
    ),
]

Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory to work in beside the weights and points, such as 2GiB. Default: a"
        " quarter of what is free.",
    ),
]

Dtype = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Of the Jacobian: float64 (the default) or float32."),
]

Pattern = Annotated[str, typer.Option(metavar="GLOB", help="Only checkpoints whose name matches.")]

Steps = Annotated[
    str | None,
    typer.Option(
        metavar="A:B[:C]",
        help="Only steps from A to B, ends included; with C every C steps from A on.",
    ),
]

Every = Annotated[
    int, typer.Option(metavar="K", help="Only every K-th checkpoint.", show_default=False)
]

Last = Annotated[int | None, typer.Option(metavar="K", help="Only the last K checkpoints.")]

Weights = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Which of several sets of weights in one file: raw (those that training goes on"
        " with), ema (their average), or a key of the file.",
    ),
]

StepRegex = Annotated[
    str | None,
    typer.Option(
        metavar="REGEX",
        help="How a name tells the step: a regular expression whose one group, or group named"
        " step, is the number.",
    ),
]

StepFrom = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        help="Where steps are taken from: contents, name or epoch. Default: what is in the"
        " file, else beside it, else its name.",
    ),
]

OutputFile = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        readable=False,
        help="A .csv, .tsv, .jsonl or .parquet file (with --shard also a folder); - is CSV on"
        " stdout. Default: a table on a terminal, CSV in a pipe.",
    ),
]

Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Discard what FILE holds. Without it the same command goes on where it stopped.",
    ),
]

Spectra = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        readable=False,
        help="Keep the singular values of every point too, a file for each checkpoint; they"
        " then come from the SVD of every matrix, so that they serve any tolerance.",
    ),
]

OnError = Annotated[
    str,
    typer.Option(
        metavar="WHAT",
        help="At a checkpoint that cannot be read or run: stop, or skip it (its row says why).",
    ),
]

Shard = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        help="Only the I-th of N parts of the work, I from 0 to N-1; auto asks Slurm or"
        " RANK and WORLD_SIZE. Put the parts together with localrank merge.",
    ),
]

PlanFile = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        metavar="FILE",
        help="Only the checkpoints that a plan file of localrank submit lists, as they were then.",
    ),
]

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notes and no progress bar.")]

Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say how each layer is computed, and how long.")
]

Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]

TrustModel = Annotated[
    bool,
    typer.Option(
        "--trust-model",
        help="Run the code that a series' own localrank.toml names. Dangerous in a folder"
        " that is not yours.",
        rich_help_panel=_DANGER,
    ),
]

TrustPickle = Annotated[
    bool,
    typer.Option(
        "--trust-pickle",
        help="Load pickles that run code. Dangerous: such a file can do anything you can.",
        rich_help_panel=_DANGER,
    ),
]

FollowRun = Annotated[
    bool,
    typer.Option(
        "--follow",
        help="Watch a run in progress: analyse checkpoints as they appear and are whole, until"
        " --until or Ctrl-C.",
    ),
]

Until = Annotated[
    int | None,
    typer.Option(
        metavar="STEP", help="With --follow: stop when this step is done in every series."
    ),
]
