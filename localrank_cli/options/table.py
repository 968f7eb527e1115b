"""The options of the commands that compute tables, each in one entry.

A new option takes one field here, and the code that uses it. None, an empty tuple and False mean
that it is not set; `resolve.py` then uses localrank.toml, a preset and the defaults.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, Le, Lt

from localrank_cli.errors import UsageError
from localrank_cli.measures.table import AVERAGED, CHOICES
from localrank_cli.options import parse
from localrank_cli.options.parse import Part, Preset, Shard, StepRange
from localrank_cli.options.setting import (
    CHECKPOINTS,
    DANGER,
    LAYERS,
    MEASURE,
    MODEL,
    OUTPUT,
    RUNNING,
    Setting,
    options_of,
)
from localrank_cli.points.defaults import DEFAULT_INFORMATION_POINTS, DEFAULT_POINTS

if TYPE_CHECKING:  # torch is not imported where options are only parsed
    from torch import Tensor, nn

_LOCAL = "Workers"
_SLURM = "Slurm"
_COMPRESSION = "Compression"

DEFAULT_CONFIDENCE = 0.95
DEFAULT_PRODUCTS = 600
# The rule in the published code of the paper's first author; used where there is neither --atol nor
# --rtol (`_tolerances` in `resolve.py`).
DEFAULT_ATOL = 0.01
# Bytes. With less, a Jacobian of a few hundred rows is cut into single products.
LEAST_MEMORY = 16 * 2**20
_LARGEST_SEED = 2**63 - 1  # seeds are signed integers of 64 bits

_ROUNDING = (
    "Below the rounding of the SVD every count is noise: with --atol 0 every layer would have full"
    " rank. Use --rtol eps for the smallest meaningful tolerance."
)

Count = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0)]
# Its square must be a float64 that is neither 0 nor infinite.
Noise = Annotated[float, Interval(ge=1e-150, le=1e150)]

Atol = Annotated[
    tuple[Positive, ...],
    Setting(
        help="Count singular values above X. Repeatable.",
        metavar="X",
        default=DEFAULT_ATOL,
        advice=_ROUNDING,
        in_folder=True,
        decides=("tolerances",),
        panel=MEASURE,
        is_common=True,
    ),
]
Rtol = Annotated[
    tuple[Annotated[float, Gt(0), Lt(1)] | None, ...],  # None: eps
    Setting(
        help="Count singular values above X times the largest. Repeatable. The value eps stands for"
        " max(n_out, n_in) times the float32 epsilon.",
        metavar="X",
        read=parse.each(parse.relative),
        advice="A relative tolerance is between 0 and 1. Below the rounding of the SVD every"
        " count is noise: use --rtol eps for the smallest meaningful one.",
        in_folder=True,
        decides=("tolerances",),
        panel=MEASURE,
        is_common=True,
    ),
]
Overwrite = Annotated[bool, Setting(help="Overwrite FILE if it exists.")]
NoNotes = Annotated[bool, Setting(help="Hide notes.", flags=("--quiet", "-q"), in_python=False)]
Debug = Annotated[
    bool,
    Setting(help="Show tracebacks of errors.", in_python=False, is_shared=False),
]


@dataclass(frozen=True)
class AnalyzeOptions:
    """The options of `localrank analyze`, as the user set them."""

    checkpoints: Annotated[
        tuple[Path, ...],
        Setting(
            help="Folders of checkpoints (each is a series), single checkpoint files, or addresses:"
            " s3://BUCKET/RUN, or hf://ORG/NAME@GLOB, whose matching revisions are a series.",
            metavar="CHECKPOINTS",
            is_argument=True,
            read=parse.places,
        ),
    ]
    model: Annotated[
        "str | Callable[..., nn.Module] | None",
        Setting(
            help="The network: file.py:Name, package.module:Name, or hf. The name is that of an"
            " nn.Module class or of a function that returns a module; hf builds the network"
            " with transformers from the config.json next to the weights. Default: a plain"
            " MLP, inferred from the weights.",
            metavar="SPEC",
            read=parse.model,
            in_folder=True,
            decides=("model", "model_sha256"),
            panel=MODEL,
            is_common=True,
        ),
    ] = None
    model_arg: Annotated[
        tuple[tuple[str, Any], ...],
        Setting(
            help="Keyword argument for --model; a value that is not JSON is used as text."
            " Repeatable.",
            metavar="KEY=VALUE",
            read=parse.keywords,
            in_folder=True,
            decides=("model_arguments",),
            panel=MODEL,
        ),
    ] = ()
    activation: Annotated[
        str | None,
        Setting(
            help="Activation of an inferred MLP: relu, tanh, gelu, ...",
            metavar="NAME",
            default="relu",
            in_folder=True,
            decides=("model",),
            panel=MODEL,
        ),
    ] = None
    data: Annotated[
        "str | Tensor | dict[str, Tensor] | None",
        Setting(
            help="The data to draw points from: a .safetensors, .npz, .npy or .pt file (s3:// too),"
            " file.py:name, or normal:3x32x32. For normal: and uniform:, give the shape of one"
            " random point.",
            metavar="SPEC",
            read=parse.data,
            in_folder=True,
            decides=("data", "data_sha256", "data_values_sha256", "n_data"),
            panel=MODEL,
            is_common=True,
        ),
    ] = None
    data_key: Annotated[
        str | None,
        Setting(
            help="Array in the data file, or several (A,B), which are passed by name. Default: the"
            " only array, else x, inputs or images, else every array that the network takes.",
            metavar="NAME",
            in_folder=True,
            decides=("data_key",),
            panel=MODEL,
        ),
    ] = None
    data_shape: Annotated[
        tuple[int, ...] | None,
        Setting(
            help="Shape of one point, for data that are flat or lack an axis: 1x28x28. The entries"
            " keep their order.",
            metavar="SHAPE",
            read=parse.shape,
            in_folder=True,
            decides=("data_shape",),
            panel=MODEL,
        ),
    ] = None
    data_scale: Annotated[
        float | None,
        Setting(
            help="Factor to multiply the data by, such as 1/255 for pixels.",
            metavar="X",
            read=parse.factor,
            in_folder=True,
            decides=("data_scale",),
            panel=MODEL,
        ),
    ] = None
    points: Annotated[
        Count | None,
        Setting(
            help="Number of points, drawn without replacement. They are the same at every"
            " checkpoint.",
            metavar="N",
            default=DEFAULT_POINTS,
            in_folder=True,
            decides=("point_indices",),
            panel=MODEL,
            is_common=True,
        ),
    ] = None
    seed: Annotated[
        Annotated[int, Interval(ge=0, le=_LARGEST_SEED)] | None,
        Setting(
            help="Random seed.",
            metavar="S",
            default=0,
            in_folder=True,
            decides=("seed",),
            panel=MODEL,
        ),
    ] = None
    layers: Annotated[
        tuple[str, ...],
        Setting(
            help="Modules to analyze, such as 'h.*,!h.*.attn'. Separate several names with commas;"
            " * also matches dots, and !GLOB excludes. Repeatable. Default: every Linear, Bilinear,"
            " Conv and ConvTranspose that runs.",
            metavar="GLOB",
            completes=LAYERS,
            read=parse.globs,
            in_folder=True,
            decides=("layers",),
            panel=MEASURE,
            is_common=True,
        ),
    ] = ()
    exclude: Annotated[
        tuple[str, ...],
        Setting(
            help="Modules to exclude, separated by commas. Repeatable.",
            metavar="GLOB",
            completes=LAYERS,
            read=parse.globs,
            in_folder=True,
            decides=("layers",),
            panel=MEASURE,
        ),
    ] = ()
    wrt: Annotated[
        str | None,
        Setting(
            help="Differentiate with respect to this module's output. Name an embedding, several"
            " modules (with commas or globs), or previous: the nearest earlier layer. Default: the"
            " network's input.",
            metavar="NAME",
            completes=LAYERS,
            read=parse.joined,
            in_folder=True,
            decides=("wrt",),
            panel=MEASURE,
            is_common=True,
        ),
    ] = None
    positions: Annotated[
        str | None,
        Setting(
            help="Analyze single tokens or pixels: each, same, first, last, last-all or last-each."
            " To draw N positions, add the number to each, same or last-each: each:8. Default: all,"
            " the whole Jacobian.",
            metavar="KIND",
            completes=("each", "same", "first", "last", "last-all", "last-each"),
            in_folder=True,
            decides=("positions",),
            panel=MEASURE,
            is_common=True,
        ),
    ] = None
    residual: Annotated[
        bool | None,
        Setting(
            help="Measure J - 1, the part that a block adds to its input, for layers whose output"
            " and source have the same shape.",
            flags=("--residual/--no-residual",),
            in_folder=True,
            decides=("residual",),
            panel=MEASURE,
        ),
    ] = None
    pooled: Annotated[
        bool | None,
        Setting(
            help="Also compute the ranks of the mean of J and of the mean of its square, J^T J,"
            " over all points (and positions).",
            flags=("--pooled/--no-pooled",),
            in_folder=True,
            decides=("pooled",),
            panel=MEASURE,
        ),
    ] = None
    feature_axis: Annotated[
        tuple[str, ...],
        Setting(
            help="Axis of the outputs that holds the features, if the default is wrong. Axis 0"
            " holds the points, and -1 is the last axis. Use NAME=AXIS for single modules."
            " Repeatable.",
            metavar="AXIS",
            read=parse.axes,
            in_folder=True,
            decides=("feature_axis",),
            panel=MEASURE,
        ),
    ] = ()
    atol: Atol = ()
    rtol: Rtol = ()
    input_metric: Annotated[
        Literal["identity", "data"] | None,
        Setting(
            help="Metric of the tensor that is varied: identity, or data, its covariance over the"
            " whole data set.",
            metavar="NAME",
            default="identity",
            in_folder=True,
            decides=("input_metric", "n_cov"),
            panel=MEASURE,
        ),
    ] = None
    allow_small_cov: Annotated[
        bool,
        Setting(
            panel=MEASURE,
            help="Allow --input-metric data even if the data set has no more points"
            " than directions.",
        ),
    ] = False
    allow_unsaved: Annotated[
        bool,
        Setting(
            help="Analyze a network even if parts of it (random features, masks) are drawn when it"
            " is built and not stored in any checkpoint. They are then drawn with a fixed seed, and"
            " the column message names them.",
            decides=("unsaved",),
            panel=MODEL,
        ),
    ] = False
    noise: Annotated[
        Noise | None,
        Setting(
            help="Noise standard deviation for gaussian_information.",
            metavar="S",
            default=1.0,
            in_folder=True,
            decides=("noise",),
            panel=MEASURE,
        ),
    ] = None
    method: Annotated[
        Literal["exact", "interval"] | None,
        Setting(
            help="exact computes all singular values; interval bounds each rank with a stated"
            " probability, from products with the Jacobian only, for layers too large for exact.",
            metavar="NAME",
            default="exact",
            in_folder=True,
            decides=("method",),
            panel=MEASURE,
        ),
    ] = None
    confidence: Annotated[
        Annotated[float, Interval(ge=0.5, le=1 - 1e-6)] | None,
        Setting(
            help="With --method interval: probability with which each row's interval holds."
            f" Default: {DEFAULT_CONFIDENCE}.",
            metavar="X",
            advice="A confidence is at least 0.5 and below 1, such as 0.95 or 0.99.",
            in_folder=True,
            decides=("confidence",),
            panel=MEASURE,
        ),
    ] = None
    width: Annotated[
        Annotated[float, Gt(0), Lt(1)] | None,
        Setting(
            help="With --method interval: stop at a point once its own interval is this narrow, as"
            " a share of max_rank, such as 2%. Default: stop when more products gain little.",
            metavar="X",
            read=parse.share,
            advice="A width is between 0 and 1, or a percentage such as 2%.",
            in_folder=True,
            decides=("width",),
            panel=MEASURE,
        ),
    ] = None
    products: Annotated[
        Annotated[int, Ge(20)] | None,
        Setting(
            help="With --method interval: maximum number of products with a layer's Jacobian per"
            f" point. Default: {DEFAULT_PRODUCTS}.",
            metavar="N",
            advice="Give at least 20: fewer say almost nothing.",
            in_folder=True,
            decides=("products",),
            panel=MEASURE,
        ),
    ] = None
    measures: Annotated[
        Literal["all", "counts"] | None,
        Setting(
            help="all, or counts to skip the measures that need every singular value"
            f" ({', '.join(name for name in AVERAGED if name not in CHOICES['counts'])}), which are"
            " slow if many are close to zero; their columns stay empty.",
            metavar="NAME",
            default="all",
            in_folder=True,
            decides=("measures",),
            panel=MEASURE,
        ),
    ] = None
    preset: Annotated[
        Preset | None,
        Setting(
            help="Settings of published work: patel2024, feng2022 or numpy. Other options override"
            " them. The settings are atol 0.01, hidden layers and 128 points (patel2024); a 16 x 16"
            " patch in the middle of the image and rtol 0.0096 (feng2022); rtol eps (numpy).",
            metavar="NAME",
            completes=tuple(Preset),
            read=parse.preset,
            in_folder=True,
            only_chooses=True,
            panel=MEASURE,
            is_common=True,
        ),
    ] = None
    input_slice: Annotated[
        str | None,
        Setting(
            help="Vary only this part of each point, in numpy notation (':,8:24,8:24') or as"
            " center:16.",
            metavar="INDEX",
            in_folder=True,
            decides=("slices",),
            panel=MEASURE,
        ),
    ] = None
    output_slice: Annotated[
        str | None,
        Setting(
            help="Use only this part of each output, such as '-1,:' for the last token.",
            metavar="INDEX",
            in_folder=True,
            decides=("slices",),
            panel=MEASURE,
        ),
    ] = None
    sigma_1: Annotated[
        Literal["slice", "full"] | None,
        Setting(
            help="With a slice, the largest singular value that --rtol refers to: that of the slice"
            " (slice), or that of the whole Jacobian (full), which is then computed too.",
            metavar="NAME",
            default="slice",
            in_folder=True,
            decides=("slices",),
            panel=MEASURE,
        ),
    ] = None
    beside: Annotated[
        tuple[Literal["activations", "weights"], ...],
        Setting(
            help="Add columns that need no Jacobian: activations (soft ranks of each layer's"
            " outputs over the points and, with --labels-key, within each class), weights (soft"
            " ranks and the norm of each layer's weight), or activations,weights.",
            metavar="NAME",
            read=parse.globs,
            panel=MEASURE,
            in_folder=True,
            decides=("beside", "information_point_indices"),
        ),
    ] = ()
    information: Annotated[
        bool | None,
        Setting(
            help="Add bounds, in nats, on I(X;T) for each layer and, with labels, on I(T;Y).",
            flags=("--information/--no-information",),
            in_folder=True,
            in_inspect=False,
            decides=("information_point_indices",),
            panel=MEASURE,
        ),
    ] = None
    information_points: Annotated[
        Annotated[int, Ge(2)] | None,
        Setting(
            help="Number of points for --information and --beside activations. Default:"
            f" {DEFAULT_INFORMATION_POINTS}, or all if there are fewer.",
            metavar="N",
            in_folder=True,
            decides=("information_point_indices",),
            panel=MEASURE,
        ),
    ] = None
    information_noise: Annotated[
        Positive | None,
        Setting(
            help="Noise variance of T for --information, as a share of tr Cov(T). Default: the"
            " square of --noise.",
            metavar="X",
            in_folder=True,
            in_inspect=False,
            decides=("information_noise",),
            panel=MEASURE,
        ),
    ] = None
    labels_key: Annotated[
        str | None,
        Setting(
            help="Array of labels in the data file; adds loss and accuracy at each checkpoint.",
            metavar="NAME",
            in_folder=True,
            in_inspect=False,
            decides=("labels_key",),
            panel=MEASURE,
        ),
    ] = None
    device: Annotated[
        str | None,
        Setting(
            help="auto, cpu, cuda or cuda:K; several separated by commas, or all for every GPU,"
            " with one process each.",
            metavar="NAME",
            completes=("auto", "cpu", "cuda", "all"),
            default="auto",
            read=parse.device,
            is_shared=False,
            panel=RUNNING,
            is_common=True,
        ),
    ] = None
    memory: Annotated[
        Annotated[int, Ge(LEAST_MEMORY)] | None,  # bytes
        Setting(
            help="Memory budget on top of weights and points, such as 2GiB. Default: a quarter of"
            " the free memory.",
            metavar="SIZE",
            read=parse.size,
            advice="Give at least 16MiB: anything less is too little.",
            is_shared=False,
            panel=RUNNING,
            is_common=True,
        ),
    ] = None
    dtype: Annotated[
        Literal["float64", "float32"] | None,
        Setting(
            help="Precision of the Jacobian: float64 or float32.",
            metavar="NAME",
            default="float64",
            read=parse.dtype,
            in_folder=True,
            decides=("dtype",),
            panel=RUNNING,
        ),
    ] = None
    pattern: Annotated[
        str | None,
        Setting(
            help="Use only checkpoints whose name matches; step_*/a.pt selects one file in each"
            " folder.",
            metavar="GLOB",
            in_folder=True,
            only_chooses=True,
            panel=CHECKPOINTS,
        ),
    ] = None
    steps: Annotated[
        StepRange | None,
        Setting(
            help="Use only steps from A to B, inclusive. With C, use every C steps, starting from"
            " A.",
            metavar="A:B[:C]",
            read=parse.steps,
            is_shared=False,
            panel=CHECKPOINTS,
            is_common=True,
        ),
    ] = None
    every: Annotated[
        Count | None,
        Setting(
            help="Use only every K-th checkpoint.",
            metavar="K",
            is_shared=False,
            needs_whole_series=True,
            panel=CHECKPOINTS,
        ),
    ] = None
    last: Annotated[
        Count | None,
        Setting(
            help="Use only the last K checkpoints.",
            metavar="K",
            is_shared=False,
            needs_whole_series=True,
            panel=CHECKPOINTS,
        ),
    ] = None
    weights: Annotated[
        str | None,
        Setting(
            help="Which weights to use if a file holds several: raw, ema, or a key in the file."
            " Training continues with the raw weights; ema is their average over training.",
            metavar="NAME",
            completes=("raw", "ema"),
            default="raw",
            in_folder=True,
            decides=("weights",),
            panel=CHECKPOINTS,
            is_common=True,
        ),
    ] = None
    step_regex: Annotated[
        str | None,
        Setting(
            help="Regular expression that finds the step in a name; its only group, or its group"
            " named step, is the number.",
            metavar="REGEX",
            decides=("step_regex",),
            panel=CHECKPOINTS,
        ),
    ] = None
    step_pattern: Annotated[
        str | None,
        Setting(
            help="Literal text that finds the step in a name, with {step} for the number, such as"
            " run_{step}_v2.",
            metavar="TEXT",
            read=parse.pattern_with_step,
            in_folder=True,
            decides=("step_regex",),
            panel=CHECKPOINTS,
        ),
    ] = None
    step_from: Annotated[
        Literal["contents", "name", "epoch"] | None,
        Setting(
            help="Where to read steps from: contents, name or epoch. Default: the file's contents,"
            " else those of files next to it, else its name.",
            metavar="SOURCE",
            in_folder=True,
            decides=("counting", "step_from"),
            panel=CHECKPOINTS,
        ),
    ] = None
    output: Annotated[
        Path | None,
        Setting(
            help="Write the table to a .csv, .tsv, .jsonl or .parquet file; - is CSV on stdout."
            " With --shard, FILE may be a folder. Default: a table on a terminal, CSV in a pipe.",
            metavar="FILE",
            read=parse.path,
            flags=("--output", "-o"),
            in_python=False,
            in_inspect=False,
            is_shared=False,
            panel=OUTPUT,
            is_common=True,
        ),
    ] = None
    overwrite: Annotated[
        bool,
        Setting(
            help="Discard earlier results in FILE. Without it, rerunning the command resumes.",
            in_python=False,
            in_inspect=False,
            is_shared=False,
            panel=OUTPUT,
            is_common=True,
        ),
    ] = False
    spectra: Annotated[
        Path | None,
        Setting(
            help="Keep the singular values of every point, for rethreshold. FOLDER gets one file"
            " per checkpoint. Every matrix then needs an SVD, so that the values can be counted at"
            " any tolerance.",
            metavar="FOLDER",
            read=parse.path,
            in_python=False,
            in_inspect=False,
            panel=OUTPUT,
            is_common=True,
        ),
    ] = None
    on_error: Annotated[
        Literal["stop", "skip"] | None,
        Setting(
            help="What to do if a checkpoint cannot be read or run: stop, or skip it (its row says"
            " why).",
            metavar="WHAT",
            default="stop",
            in_inspect=False,
            panel=CHECKPOINTS,
        ),
    ] = None
    shard: Annotated[
        Shard | None,
        Setting(
            help="Compute only part I of N, with I from 0 to N-1; auto reads both from Slurm, or"
            " from RANK and WORLD_SIZE. Combine the parts with localrank merge.",
            metavar="I/N",
            read=parse.shard,
            in_python=False,
            in_inspect=False,
            is_shared=False,
            panel=RUNNING,
        ),
    ] = None
    cache: Annotated[
        Path | None,
        Setting(
            help="Folder for downloads; it holds at most two checkpoints at a time. Default:"
            " localrank in the system's cache folder.",
            metavar="DIR",
            read=parse.path,
            panel=CHECKPOINTS,
        ),
    ] = None
    keep_downloads: Annotated[
        bool,
        Setting(
            help="Keep all downloads for later runs; localrank cache lists and removes them.",
            flags=("--keep",),
            panel=CHECKPOINTS,
        ),
    ] = False
    follow: Annotated[
        bool,
        Setting(
            help="Watch a run; analyze each checkpoint once it is complete. Stop at --until, or"
            " on Ctrl-C.",
            in_python=False,
            in_inspect=False,
            is_shared=False,
            panel=CHECKPOINTS,
            is_common=True,
        ),
    ] = False
    until: Annotated[
        int | None,
        Setting(
            help="With --follow: stop once this step is done in every series.",
            metavar="STEP",
            in_python=False,
            in_inspect=False,
            is_shared=False,
            panel=CHECKPOINTS,
        ),
    ] = None
    plan: Annotated[
        Path | None,
        Setting(
            help="Analyze only the checkpoints listed in a plan file of localrank submit; they must"
            " not have changed since.",
            metavar="FILE",
            read=parse.path,
            in_python=False,
            in_inspect=False,
            is_shared=False,
            panel=RUNNING,
        ),
    ] = None
    quiet: Annotated[
        bool,
        Setting(
            help="Hide notes and the progress bar.",
            flags=("--quiet", "-q"),
            in_python=False,
            is_shared=False,
            panel=OUTPUT,
            is_common=True,
        ),
    ] = False
    verbose: Annotated[
        bool,
        Setting(
            help="Show how each layer is computed and how long it takes.",
            flags=("--verbose", "-v"),
            in_python=False,
            in_inspect=False,
            is_shared=False,
            panel=OUTPUT,
        ),
    ] = False
    debug: Debug = False
    trust_model: Annotated[
        bool,
        Setting(
            help="Run the code that a series' own localrank.toml names. Dangerous if the folder is"
            " not your own.",
            panel=DANGER,
            is_common=True,
        ),
    ] = False
    trust_pickle: Annotated[
        bool,
        Setting(
            help="Run the code in pickles that cannot be read without it. Dangerous: such a file"
            " can do anything you can.",
            panel=DANGER,
            is_common=True,
        ),
    ] = False

    hidden: bool = False  # leaves out the last layer; only presets set it

    @property
    def part(self) -> Part:
        """The part of each series to analyze."""
        return Part(self.steps, self.every or 1, self.last)

    @property
    def skips_errors(self) -> bool:
        """Whether to skip a checkpoint that cannot be read or run."""
        return self.on_error == "skip"


@dataclass(frozen=True)
class InspectOptions:
    """The options of `localrank inspect` besides those of analyze."""

    as_json: Annotated[
        bool, Setting(help="Print JSON to stdout.", flags=("--json",), is_common=True)
    ] = False
    timed: Annotated[
        bool | None,
        Setting(
            help="Time a few products (in a small network, a few points) to estimate how long"
            " analyze takes.",
            flags=("--time/--no-time",),
            default=True,
            is_common=True,
        ),
    ] = None


@dataclass(frozen=True)
class SubmitOptions:
    """The options of `localrank submit` besides those of analyze."""

    cluster: Annotated[
        Literal["local", "slurm"] | None,
        Setting(
            help="Where the workers run: local (processes on this machine) or slurm.",
            metavar="NAME",
            default="local",
            panel=_LOCAL,
            is_common=True,
        ),
    ] = None
    workers: Annotated[
        Count | None,
        Setting(
            help="Number of local workers; cores, memory and GPUs are divided among them. Default:"
            " one per GPU, else one per core.",
            metavar="N",
            panel=_LOCAL,
            is_common=True,
        ),
    ] = None
    dry_run: Annotated[
        bool,
        Setting(
            help="Submit nothing; print the shell script that would run, with the plan, an sbatch"
            " array and a merge.",
            panel=_SLURM,
            is_common=True,
        ),
    ] = False
    partition: Annotated[
        str | None,
        Setting(help="Slurm partition.", metavar="NAME", panel=_SLURM, is_common=True),
    ] = None
    time: Annotated[
        Count,  # minutes
        Setting(
            help="Time limit per task, in minutes or as 1:30:00; unfinished work is requeued.",
            metavar="LIMIT",
            default=60,
            read=parse.minutes,
            panel=_SLURM,
            is_common=True,
        ),
    ] = 60
    gpus_per_task: Annotated[
        Annotated[int, Ge(0), Le(1)] | None,
        Setting(help="GPUs per task.", metavar="N", panel=_SLURM, is_common=True),
    ] = None
    cpus_per_task: Annotated[
        Count | None, Setting(help="CPU cores per task.", metavar="N", panel=_SLURM)
    ] = None
    mem: Annotated[
        str | None, Setting(help="Memory per task, such as 8GB.", metavar="SIZE", panel=_SLURM)
    ] = None
    max_parallel: Annotated[
        Count | None,
        Setting(help="Maximum number of tasks at once.", metavar="N", panel=_SLURM),
    ] = None
    max_tasks: Annotated[
        Count,
        Setting(help="Maximum number of tasks in total.", metavar="N", default=64, panel=_SLURM),
    ] = 64
    minutes_per_task: Annotated[
        Positive | None,
        Setting(
            help="Group checkpoints so that a task takes about this long, judging by the time that"
            " a point takes on this machine.",
            metavar="X",
            panel=_SLURM,
        ),
    ] = None
    setup: Annotated[
        tuple[str, ...],
        Setting(
            help="Shell line to run before each task, such as module load. Repeatable.",
            metavar="LINE",
            panel=_SLURM,
        ),
    ] = ()
    wait: Annotated[
        bool,
        Setting(
            help="Wait until the jobs end, and show a progress bar.", panel=_SLURM, is_common=True
        ),
    ] = False


@dataclass(frozen=True)
class MergeOptions:
    """The options of `localrank merge`."""

    tables: Annotated[
        tuple[Path, ...],
        Setting(
            help="A folder with the tables of all shards, or the tables themselves.",
            metavar="FOLDER|FILES",
            is_argument=True,
            read=parse.paths,
        ),
    ]
    output: Annotated[
        Path | None,
        Setting(
            help="A .csv, .tsv, .jsonl or .parquet file.",
            metavar="FILE",
            read=parse.path,
            flags=("--output", "-o"),
        ),
    ] = None
    partial: Annotated[
        bool, Setting(help="Merge the finished parts, and list the missing ones.")
    ] = False
    overwrite: Overwrite = False
    plan: Annotated[
        Path | None,
        Setting(
            help="A plan file of localrank submit. Require everything that it lists, then remove"
            " the parts next to it.",
            metavar="FILE",
            read=parse.path,
        ),
    ] = None
    debug: Debug = False


@dataclass(frozen=True)
class RethresholdOptions:
    """The options of `localrank rethreshold`."""

    spectra: Annotated[
        Path,
        Setting(
            help="The folder that analyze --spectra FOLDER wrote.",
            metavar="FOLDER",
            is_argument=True,
            read=parse.path,
        ),
    ]
    atol: Atol = ()
    rtol: Rtol = ()
    noise: Annotated[
        Noise | None,
        Setting(
            help="Noise standard deviation for gaussian_information. Default: as in the analysis.",
            metavar="S",
        ),
    ] = None
    output: Annotated[
        Path | None,
        Setting(
            help="A .csv, .tsv, .jsonl or .parquet file. Default: a table on a terminal, CSV in a"
            " pipe.",
            metavar="FILE",
            read=parse.path,
            flags=("--output", "-o"),
        ),
    ] = None
    overwrite: Overwrite = False
    quiet: NoNotes = False
    debug: Debug = False


@dataclass(frozen=True)
class CompressOptions:
    """The options of `localrank compress` beside those that it shares with analyze."""

    budget: Annotated[
        tuple[Annotated[float, Gt(0), Lt(1)], ...],
        Setting(
            help="Share of weights to keep, counting only layers that can be factored; separate"
            " several with commas: 0.5,0.3.",
            metavar="SHARE",
            panel=_COMPRESSION,
            is_common=True,
            read=parse.budgets,
            advice="Give a share between 0 and 1, such as 0.5.",
        ),
    ] = ()
    max_loss_increase: Annotated[
        parse.LossLimit | None,
        Setting(
            help="Instead of --budget: keep the fewest weights for which the loss increases by"
            " less than LIMIT, including 1.65 standard errors. LIMIT is relative to the loss (1%)"
            " or in nats (0.02nats).",
            metavar="LIMIT",
            panel=_COMPRESSION,
            is_common=True,
            read=parse.loss_limit,
        ),
    ] = None
    eval_data: Annotated[
        str | None,
        Setting(
            help="Held-out data, in the form of --data: half for selection, half for reporting."
            " Without it, --data is split: half for calibration, a quarter for selection, a"
            " quarter for reporting.",
            metavar="SPEC",
            panel=_COMPRESSION,
            is_common=True,
            read=parse.data,
        ),
    ] = None
    keep: Annotated[
        tuple[str, ...],
        Setting(
            help="Layers to leave as they are, separated by commas; * also matches dots. The budget"
            " does not include them. Repeatable.",
            metavar="GLOB",
            panel=_COMPRESSION,
            completes=LAYERS,
            read=parse.globs,
        ),
    ] = ()
    metric: Annotated[
        Literal["auto", "fisher", "logit"] | None,
        Setting(
            help="Metric of the output: fisher, logit, or auto, which tries these, no metric, and"
            " the baselines, and keeps what diverges least from the original on the selection"
            " split.",
            metavar="NAME",
            panel=_COMPRESSION,
            default="auto",
        ),
    ] = None
    dense: Annotated[
        bool,
        Setting(
            help="Also write low-rank weights under the old names, at full size.",
            panel=_COMPRESSION,
        ),
    ] = False
    # Other names than those of analyze, which it does not offer.
    out: Annotated[
        Path | None,
        Setting(
            help="Folder for the weights, load.py, compress.json, layers.csv and budgets.csv.",
            metavar="OUT",
            panel=OUTPUT,
            is_common=True,
            read=parse.path,
            flags=("--output", "-o"),
        ),
    ] = None
    replaces: Annotated[
        bool,
        Setting(help="Overwrite earlier results in OUT.", flags=("--overwrite",), panel=OUTPUT),
    ] = False


# The options of analyze that `localrank compress` offers too.
OF_COMPRESS = {
    "checkpoints", "model", "model_arg", "activation", "data", "data_key", "data_shape",
    "data_scale", "seed", "labels_key", "allow_unsaved", "device", "memory", "weights", "cache",
    "quiet",
    "debug", "trust_model", "trust_pickle",
}  # fmt: skip


@dataclass(frozen=True)
class MonitorOptions:
    """The options of `localrank_cli.Monitor` beside those of analyze."""

    output: Annotated[
        Path,
        Setting(
            help="A .csv, .tsv, .jsonl or .parquet file. A resumed training run adds to it.",
            metavar="FILE",
            is_argument=True,
            read=parse.path,
        ),
    ]
    every: Annotated[
        int | str | None,
        Setting(
            help="Measure every K steps, or with log at steps 0, 1, 2, 5, 10, 20, 50 and so on.",
            metavar="K",
            default="log",
            read=parse.pace,
        ),
    ] = None
    steps: Annotated[
        tuple[Annotated[int, Ge(0)], ...],
        Setting(help="The steps to measure at, instead of every.", metavar="STEP"),
    ] = ()
    max_share: Annotated[
        Annotated[float, Gt(0), Lt(1)] | None,
        Setting(
            help="Skip a step that would raise the measurements above this share of the training"
            " time, such as 0.05. Default: skip none.",
            metavar="X",
            read=parse.share,
            advice="A share is between 0 and 1, or a percentage such as 5%.",
        ),
    ] = None
    run: Annotated[
        str | None,
        Setting(
            help="Name of the run in the table. Default: the folder of the file.",
            metavar="NAME",
        ),
    ] = None
    on_error: Annotated[
        Literal["warn", "raise"] | None,
        Setting(
            help="What to do at a step that cannot be measured: warn, and write a row that says"
            " why; or raise.",
            metavar="WHAT",
            default="warn",
        ),
    ] = None
    overwrite: Overwrite = False
    quiet: Annotated[bool, Setting(help="Do not print, at the end, how long measuring took.")] = (
        False
    )


@dataclass(frozen=True)
class ReproduceOptions:
    """The options of `localrank reproduce`."""

    experiment: Annotated[
        Literal["gaussian", "mnist", "vib", "patel2024", "generalization", "compression"],
        Setting(
            help="gaussian: a linear teacher of rank 3; mnist: digits; both with and without weight"
            " decay. vib: the variational information bottleneck on Gaussian variables, over beta."
            " patel2024: the published training on digits, compared with its published end values."
            " generalization: whether a low rank goes with a small generalization gap, in a sweep"
            " of small networks. compression: rank versus the fewest weights that keep the"
            " accuracy.",
            metavar="EXPERIMENT",
            is_argument=True,
        ),
    ]
    out: Annotated[
        Path | None,
        Setting(
            help="Folder for checkpoints, ranks.csv, verdict.txt and picture.png. Default:"
            " reproduce_EXPERIMENT.",
            metavar="DIR",
            read=parse.path,
        ),
    ] = None
    quick: Annotated[bool, Setting(help="Train for fewer steps, and check the same claims.")] = (
        False
    )
    full: Annotated[bool, Setting(help="For compression: train for all steps. Default: fewer.")] = (
        False
    )
    seeds: Annotated[
        Count | None,
        Setting(
            help="Number of networks of each kind to train. Default: 1 for mnist, vib and"
            " patel2024, else 3.",
            metavar="N",
        ),
    ] = None
    mnist: Annotated[
        Path | None,
        Setting(
            help="The digits for mnist and patel2024: an .npz archive (images and labels, or"
            " Keras's mnist.npz), or the original train-images-idx3-ubyte, gzipped or not, with the"
            " label file in the same folder.",
            metavar="FILE",
            read=parse.path,
        ),
    ] = None
    workers: Annotated[
        Count | None,
        Setting(
            help="Train the generalization networks in N processes on this machine. Default: 1.",
            metavar="N",
        ),
    ] = None
    shard: Annotated[
        Shard | None,
        Setting(
            help="Train only part I of N of the generalization networks, without a verdict. When"
            " all parts are done, run again without --shard.",
            metavar="I/N",
            read=parse.shard,
        ),
    ] = None
    steps: Annotated[
        Count | None,
        Setting(
            help="Number of training steps for patel2024. Default: the published 1,000,000.",
            metavar="N",
        ),
    ] = None
    quiet: Annotated[
        bool, Setting(help="Hide notes and the progress bar.", flags=("--quiet", "-q"))
    ] = False
    debug: Debug = False

    @property
    def folder(self) -> Path:
        """The folder for the results."""
        return self.out or Path(f"reproduce_{self.experiment}")


def check_options(options: AnalyzeOptions) -> None:
    """Check options against each other, without opening a file.

    Raises:
        UsageError: If some of them exclude one another.
    """
    if not options.checkpoints:
        raise UsageError("no checkpoints were named.", "Name a folder of checkpoints.")
    if options.until is not None and not options.follow:
        raise UsageError("--until without --follow.", "Give both, or choose steps with --steps.")
    if options.step_regex is not None and options.step_pattern is not None:
        raise UsageError(
            "--step-regex and --step-pattern: both define how steps are found.", "Give one of them."
        )
    refused = [
        one.flag
        for one in options_of(AnalyzeOptions)
        if one.setting.needs_whole_series and getattr(options, one.name) != one.unset
    ]
    if options.follow and refused:
        raise UsageError(
            f"--follow with {' and '.join(refused)}: it is unknown which checkpoints are still to"
            " come.",
            "Choose steps with --steps A:B:C.",
        )
    if options.follow and options.shard is not None:
        raise UsageError(
            "--follow with --shard: a series that grows cannot be divided.", "Give one of them."
        )


def check_compress(options: CompressOptions) -> None:
    """Check the options of compress against each other.

    Raises:
        UsageError: If the target or the folder is missing, or the target is given twice.
    """
    if bool(options.budget) == (options.max_loss_increase is not None):
        raise UsageError(
            "compress takes either --budget or --max-loss-increase.",
            "Give --budget 0.5, or --max-loss-increase 1%.",
        )
    # As files of weights are named.
    names = Counter(f"{share:g}" for share in dict.fromkeys(options.budget))
    for name, count in names.items():
        if count > 1:
            raise UsageError(
                f"--budget: {count} shares are {name} to six digits, and their files of weights"
                " would have the same name.",
                "Give each share once.",
            )
    if options.out is None:
        raise UsageError(
            "-o is missing: there is no folder to write to.", "Name a folder with -o OUT."
        )
