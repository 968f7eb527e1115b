"""`localrank analyze`: parses, and hands over."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from localrank_cli.cli.options import (
    AllowSmallCov,
    Information,
    InformationNoise,
    InformationPoints,
    InputSlice,
    LabelsKey,
    OutputSlice,
    PresetName,
)
from localrank_cli.errors import UsageError
from localrank_cli.pipeline.options import (
    AnalyzeOptions,
    check_options,
    parse_rtol,
    parse_size,
)

_DANGER = "Dangerous options"


def analyze(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="CHECKPOINTS",
            readable=False,  # what cannot be read is found out when it is read
            help="Folders of checkpoints (each is a series), or single checkpoint files.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="The network's code: path/to/file.py:name or package.module:name, an nn.Module"
            " class or a function that returns a module. Without it: a plain MLP, inferred from"
            " the weights.",
        ),
    ] = None,
    model_arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="A keyword argument for --model, its value as JSON, else as text; repeat.",
        ),
    ] = None,
    activation: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Activation of an inferred MLP: relu, tanh, gelu, ... Default: relu.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Where the points come from: a .safetensors, .npz, .npy or .pt file;"
            " file.py:name; normal:3x32x32 or uniform:784 (the shape of one point).",
        ),
    ] = None,
    data_key: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Which array of the data file. Default: the only one, else x, inputs or images.",
        ),
    ] = None,
    data_scale: Annotated[
        float | None,
        typer.Option(metavar="X", help="A factor for the data, such as 1/255 for pixels."),
    ] = None,
    points: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="How many points, drawn without replacement, the same at every checkpoint."
            " Default: 64.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="S", help="Seed of the draw. Default: 0.")
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Modules by qualified name, comma separated, * crosses dots, !GLOB leaves out;"
            " repeat. Default: every Linear, Bilinear, Conv and ConvTranspose that runs.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Modules to leave out, comma separated; repeat."),
    ] = None,
    wrt: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Differentiate with respect to this module's output (an embedding, say)."
            " Default: the network's input.",
        ),
    ] = None,
    atol: Annotated[
        list[float] | None,
        typer.Option(
            metavar="X",
            help="Absolute tolerance: singular values above X count; repeat. Default: 0.01.",
        ),
    ] = None,
    rtol: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X",
            help="Relative tolerance: singular values above X times the largest count, or eps:"
            " max(n_out, n_in) times the float32 epsilon; repeat.",
        ),
    ] = None,
    input_metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Metric of the varied tensor: identity (the default), or data: its covariance over"
            " the whole data.",
        ),
    ] = None,
    allow_small_cov: AllowSmallCov = False,
    noise: Annotated[
        float | None,
        typer.Option(metavar="S", help="Standard deviation for gaussian_information. Default: 1."),
    ] = None,
    preset: PresetName = None,
    input_slice: InputSlice = "",
    output_slice: OutputSlice = "",
    information: Information = False,
    information_points: InformationPoints = None,
    information_noise: InformationNoise = None,
    labels_key: LabelsKey = "",
    device: Annotated[
        str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:K.")
    ] = "auto",
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory to work in beside the weights and points, such as 2GiB. Default: a"
            " quarter of what is free.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of the Jacobian: float64 (the default) or float32."),
    ] = None,
    pattern: Annotated[
        str, typer.Option(metavar="GLOB", help="Only checkpoints whose name matches.")
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            readable=False,
            help="A .csv, .tsv or .jsonl file; - is CSV on stdout. Default: a table on a"
            " terminal, CSV in a pipe.",
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No notes and no progress bar.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say how each layer is computed, and how long.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    trust_model: Annotated[
        bool,
        typer.Option(
            "--trust-model",
            help="Run the code that a series' own localrank.toml names. Dangerous in a folder"
            " that is not yours.",
            rich_help_panel=_DANGER,
        ),
    ] = False,
    trust_pickle: Annotated[
        bool,
        typer.Option(
            "--trust-pickle",
            help="Load pickles that run code. Dangerous: such a file can do anything you can.",
            rich_help_panel=_DANGER,
        ),
    ] = False,
) -> None:
    """Compute the local rank of every layer at every checkpoint."""
    del debug  # seen by the program itself
    options = AnalyzeOptions(
        checkpoints=tuple(checkpoints),
        model=model,
        model_args=tuple(_keyword(text) for text in model_arg or []),
        activation=activation,
        data=data,
        data_key=data_key,
        data_scale=data_scale,
        points=points,
        seed=seed,
        layers=_globs(layers, "--layers"),
        exclude=_globs(exclude, "--exclude"),
        wrt=wrt,
        atol=tuple(atol or []),
        rtol=tuple(parse_rtol(text) for text in rtol or []),
        noise=noise,
        dtype=dtype,
        input_metric=input_metric,
        allow_small_cov=allow_small_cov,
        preset=preset,
        input_slice=input_slice,
        output_slice=output_slice,
        information=information,
        information_points=information_points,
        information_noise=information_noise,
        labels_key=labels_key,
        device=device,
        memory=parse_size(memory) if memory is not None else None,
        pattern=pattern,
        output=output,
        trust_model=trust_model,
        trust_pickle=trust_pickle,
    )
    check_options(options)
    # Threads that wait by spinning take the cores that others work on: on a busy machine the demo
    # took 20 s so and takes 6 s with threads that sleep. OpenMP reads it when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # torch is imported only now: help, version and usage errors answer without it.
    from localrank_cli.cli.analysis import run_analysis

    raise typer.Exit(run_analysis(options, quiet=quiet, verbose=verbose))


def _globs(texts: list[str] | None, option: str) -> tuple[str, ...]:
    parts = [part.strip() for text in texts or [] for part in text.split(",")]
    if texts and not any(parts):
        raise UsageError(f"{option}: is empty.", "Give a pattern, or leave the option out.")
    return tuple(part for part in parts if part)


def _keyword(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise UsageError(f"--model-arg {text}: not of the form KEY=VALUE.")
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):  # no JSON, or more than Python reads: a text
        return key, value
