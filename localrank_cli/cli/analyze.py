"""`localrank analyze`: parses, and hands over."""

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
    FollowRun,
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
    Until,
    Verbose,
    Weights,
    Wrt,
)
from localrank_cli.cli.command import names_of, taking, words_of
from localrank_cli.cli.given import do_not_spin, options_from
from localrank_cli.cli.options import (
    AllowSmallCov,
    AllowUnsaved,
    Information,
    InformationNoise,
    InformationPoints,
    InputSlice,
    LabelsKey,
    OutputSlice,
    PresetName,
    Sigma1,
)
from localrank_cli.divide.share import is_several
from localrank_cli.errors import UsageError
from localrank_cli.options.table import AnalyzeOptions


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
    allow_unsaved: AllowUnsaved = False,
    noise: Noise = None,
    preset: PresetName = None,
    input_slice: InputSlice = None,
    output_slice: OutputSlice = None,
    sigma_1: Sigma1 = None,
    information: Information = None,
    information_points: InformationPoints = None,
    information_noise: InformationNoise = None,
    labels_key: LabelsKey = None,
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
    follow: FollowRun = False,
    until: Until = None,
    plan: PlanFile = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,  # seen by the program itself
    trust_model: TrustModel = False,
    trust_pickle: TrustPickle = False,
) -> Parsed:
    """Read the arguments of a command that analyses."""
    return Parsed(options_from(locals()), quiet, verbose)


@taking(parse_options)
def analyze(context: typer.Context, **given: Any) -> None:
    """Compute the local rank of every layer at every checkpoint."""
    parsed = parse_options(**given)
    do_not_spin()
    # torch is imported only now: help, version and usage errors answer without it.
    if is_several(parsed.options.device):
        check_divisible(parsed.options)
        from localrank_cli.cli.run_local import Asked, run_several

        words = tuple(words_of(context, shared_words()))
        asked = Asked(parsed.options, words, None, parsed.quiet, parsed.verbose)
        raise typer.Exit(run_several(asked))
    from localrank_cli.cli.run_analyze import run_analysis

    raise typer.Exit(run_analysis(parsed.options, quiet=parsed.quiet, verbose=parsed.verbose))


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
    return names_of(parse_options) - own - {"steps", "every", "last", "follow", "until"}
