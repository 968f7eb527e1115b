"""`localrank analyze`: parses, and hands over."""

import json
import os
from dataclasses import dataclass
from typing import Any

import typer

from localrank_cli.cli.arguments import (
    Activation,
    Atol,
    Checkpoints,
    DataKey,
    DataScale,
    DataSpec,
    Debug,
    DeviceName,
    Dtype,
    Every,
    Exclude,
    InputMetric,
    Last,
    Layers,
    Memory,
    ModelArg,
    ModelSpec,
    Noise,
    OnError,
    OutputFile,
    Overwrite,
    Pattern,
    PlanFile,
    Points,
    Quiet,
    Rtol,
    Seed,
    Shard,
    Spectra,
    StepFrom,
    StepRegex,
    Steps,
    TrustModel,
    TrustPickle,
    Verbose,
    Weights,
    Wrt,
)
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
from localrank_cli.cli.words import names_of, taking, words_of
from localrank_cli.cluster.share import is_several
from localrank_cli.errors import UsageError
from localrank_cli.pipeline.frozen import read_frozen
from localrank_cli.pipeline.options import AnalyzeOptions, check_options, parse_rtol, parse_size
from localrank_cli.pipeline.part import Part, parse_steps
from localrank_cli.pipeline.shard import parse_shard


@dataclass(frozen=True)
class Parsed:
    """What a command that analyses was given."""

    options: AnalyzeOptions
    quiet: bool
    verbose: bool


def parse_options(
    checkpoints: Checkpoints,
    model: ModelSpec = None,
    model_arg: ModelArg = None,
    activation: Activation = None,
    data: DataSpec = None,
    data_key: DataKey = None,
    data_scale: DataScale = None,
    points: Points = None,
    seed: Seed = None,
    layers: Layers = None,
    exclude: Exclude = None,
    wrt: Wrt = None,
    atol: Atol = None,
    rtol: Rtol = None,
    input_metric: InputMetric = None,
    allow_small_cov: AllowSmallCov = False,
    noise: Noise = None,
    preset: PresetName = None,
    input_slice: InputSlice = "",
    output_slice: OutputSlice = "",
    information: Information = False,
    information_points: InformationPoints = None,
    information_noise: InformationNoise = None,
    labels_key: LabelsKey = "",
    device: DeviceName = "auto",
    memory: Memory = None,
    dtype: Dtype = None,
    pattern: Pattern = "",
    steps: Steps = None,
    every: Every = 1,
    last: Last = None,
    weights: Weights = "raw",
    step_regex: StepRegex = None,
    step_from: StepFrom = None,
    output: OutputFile = None,
    overwrite: Overwrite = False,
    spectra: Spectra = None,
    on_error: OnError = "stop",
    shard: Shard = None,
    plan: PlanFile = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
    trust_model: TrustModel = False,
    trust_pickle: TrustPickle = False,
) -> Parsed:
    """Read the arguments of a command that analyses."""
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
        part=Part(parse_steps(steps) if steps is not None else None, every, last),
        weights=weights,
        step_regex=step_regex,
        step_from=step_from,
        output=output,
        overwrite=overwrite,
        spectra=spectra,
        on_error=on_error,
        shard=parse_shard(shard, os.environ) if shard is not None else None,
        frozen=read_frozen(plan) if plan is not None else None,
        trust_model=trust_model,
        trust_pickle=trust_pickle,
    )
    check_options(options)
    return Parsed(options, quiet, verbose)


@taking(parse_options)
def analyze(context: typer.Context, **given: Any) -> None:
    """Compute the local rank of every layer at every checkpoint."""
    parsed = parse_options(**given)
    do_not_spin()
    # torch is imported only now: help, version and usage errors answer without it.
    if is_several(parsed.options.device):
        check_divisible(parsed.options)
        from localrank_cli.cli.several import Asked, run_several

        words = tuple(words_of(context, shared_words()))
        asked = Asked(parsed.options, words, None, parsed.quiet, parsed.verbose)
        raise typer.Exit(run_several(asked))
    from localrank_cli.cli.analysis import run_analysis

    raise typer.Exit(run_analysis(parsed.options, quiet=parsed.quiet, verbose=parsed.verbose))


def do_not_spin() -> None:
    """Lets threads that wait sleep; for this process and those that it starts."""
    # Threads that wait by spinning take the cores that others work on: on a busy machine the demo
    # took 20 s so and takes 6 s with threads that sleep. OpenMP reads it when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def check_divisible(options: AnalyzeOptions) -> None:
    """Refuses what cannot be asked of several workers.

    Args:
        options: As given.

    Raises:
        UsageError: If the work is a part already.
    """
    if options.shard is not None or options.frozen is not None:
        raise UsageError(
            "--shard: the work is divided among several workers here.",
            "Give --shard to localrank analyze on one device.",
        )
    if options.follow is not None:
        raise UsageError("--follow: does not go with several workers.", "Give one --device.")


def shared_words() -> set[str]:
    """The parameters that all workers of one analysis have in common.

    Returns:
        Names; the plan file says which checkpoints, and each worker has its own place.
    """
    own = {"device", "memory", "output", "overwrite", "shard", "plan", "quiet", "verbose"}
    return names_of(parse_options) - own - {"steps", "every", "last"}


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
