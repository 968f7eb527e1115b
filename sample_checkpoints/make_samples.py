"""Train the sample networks and write each one as a series of checkpoints.

The README beside this file says what they show. Each folder gets `step_N.safetensors`, its inputs,
`metrics.csv`, `localrank.toml` and, in its README, the part below the mark.

One thread; `torch.manual_seed` sets the initial weights and a seeded CPU generator the order of
the batches: a second run with the same torch on the same processor writes the same bytes (the
archives carry no time of day). Elsewhere sums are rounded differently, training amplifies that,
and figures agree about as well as those of two seeds do.

The ranks in the READMEs come from the closed form of a ReLU network written out below, not from
the package, so that they can be held against what the package says.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from localrank_cli.errors import LocalrankError
from localrank_cli.experiments import gaussian, mnist
from localrank_cli.experiments.series import SeriesText, reproducibly, train_series
from localrank_cli.experiments.training import MOMENTUM, Recipe, Task

N_POINTS = 64  # points at which the READMEs' ranks are measured: the default of the package
MARK = "<!-- What follows is written by make_samples.py. -->\n"

DIGITS_TOML = """\
data = "digits.npz"
data-key = "images"
data-scale = 0.00392156862745098  # 1/255
activation = "relu"
atol = 0.01
"""


@dataclass(frozen=True)
class Sample:
    """One series beside this file."""

    name: str  # of its folder
    recipe: Recipe
    measures: tuple[str, ...]  # columns of the README's table
    text: str  # localrank.toml


MNIST = Sample(
    name="mnist_mlp",
    recipe=mnist.RECIPE,
    measures=("atol=0.01", "atol=0.1", "effective rank"),
    text="# Shows the late fall of the rank with weight decay.\n" + DIGITS_TOML,
)
MNIST_NO_DECAY = Sample(
    name="mnist_mlp_no_decay",
    recipe=replace(mnist.RECIPE, weight_decay=0.0, save_at=(0, 60, 200, 800, 3000, 10_500)),
    measures=MNIST.measures,
    text="# The control for mnist_mlp: the same without weight decay, and no late fall.\n"
    + DIGITS_TOML,
)
GAUSSIAN = Sample(
    name="gaussian_teacher",
    recipe=gaussian.RECIPE,
    measures=("rtol=0.1", "atol=0.01", "effective rank"),
    text="# A known answer: layers 2 and 3 end at rank 3, the rank of the teacher.\n"
    'data = "inputs.npz"\nactivation = "relu"\nrtol = 0.1\n',
)
SAMPLES = {sample.name: sample for sample in (MNIST, MNIST_NO_DECAY, GAUSSIAN)}


@dataclass(frozen=True)
class Material:
    """The training data of a network, and the part that its folder keeps."""

    task: Task
    text: SeriesText
    inputs: Tensor  # (2000, n_in): the inputs that are kept, as the network takes them


def material(sample: Sample, digits: Path | None) -> Material:
    """Draw or read what a sample is trained on.

    Args:
        sample: The series.
        digits: The user's file of digits, or None.

    Returns:
        The material.

    Raises:
        SystemExit: The digits are needed, and there is no file of them.
    """
    if sample is GAUSSIAN:
        task = gaussian.gaussian_task(sample.recipe.seed)
        inputs = task.train[0]
        return Material(task, SeriesText(sample.text, "inputs.npz", {"x": inputs.numpy()}), inputs)
    if digits is None:
        raise SystemExit("make_samples.py: error: the MNIST series need --mnist FILE")
    task, arrays = mnist.digits_task(digits)
    inputs = torch.from_numpy(arrays["images"].copy()).float() / 255
    return Material(task, SeriesText(sample.text, "digits.npz", arrays), inputs)


@torch.no_grad()
def spectra(net: nn.Sequential, points: Tensor) -> list[Tensor]:
    """Return the singular values of J_l = W_l D_(l-1) W_(l-1) ... D_1 W_1, (points, r_l) per layer.

    D_l is diagonal: 1 where unit l of the point is active, else 0. J_1 = W_1 is given only once.
    """
    out, jacobian, values = points, torch.eye(points.shape[1], dtype=points.dtype)[None], []
    for layer in net:
        if isinstance(layer, nn.Linear):
            out = nn.functional.linear(out, layer.weight.double(), layer.bias.double())
            jacobian = layer.weight.double() @ jacobian
            values.append(torch.linalg.svdvals(jacobian))
        else:
            jacobian = (out > 0).unsqueeze(2) * jacobian
            out = out.relu()
    return values


def describe(values: list[Tensor], measure: str) -> str:
    """Return the mean over points per layer: of the effective rank, or the count above tol."""
    kind, _, number = measure.partition("=")
    means = []
    for sigma in values:
        if kind == "effective rank":
            share = sigma / sigma.sum(1, keepdim=True)
            per_point = torch.exp(-torch.xlogy(share, share).sum(1))
        else:
            tolerance = float(number) * (sigma[:, :1] if kind == "rtol" else 1.0)
            per_point = (sigma > tolerance).sum(1).double()
        means.append(f"{per_point.mean().item():.1f}")
    return " / ".join(means)


def write_series(sample: Sample, given: Material, folder: Path) -> None:
    """Train one network and fill its folder."""
    drawn = torch.randperm(len(given.inputs), generator=torch.Generator().manual_seed(0))
    points = given.inputs[drawn[:N_POINTS]].double()
    score = given.task.score_name
    table = [["step", "loss", f"train_{score}", f"test_{score}", *sample.measures]]
    for row, net in train_series(sample.recipe, given.task, given.text, folder):
        values = spectra(net, points)
        table.append(row + [describe(values, measure) for measure in sample.measures])
        print(f"{sample.name}:", *table[-1], flush=True)
    write_readme(sample.recipe, table, folder / "README.md")


def write_readme(recipe: Recipe, table: list[list[str]], path: Path) -> None:
    """Keep the text above the mark; write the recipe and the table of results below it."""
    text = f"""{path.read_text(encoding="utf-8").partition(MARK)[0]}{MARK}
## Recipe

MLP {"-".join(map(str, recipe.widths))}, ReLU, torch's default initial weights, seed {recipe.seed}.
SGD, momentum {MOMENTUM}, constant learning rate {recipe.learning_rate}, weight decay
{recipe.weight_decay}, batch {recipe.batch}, {recipe.steps:,} steps.

## Results

Loss and train figures over the whole training set; ranks of layers 1 to {len(recipe.widths) - 1},
each the mean over {N_POINTS} points drawn from the inputs kept here.

"""
    rows = [table[0], ["---:"] * len(table[0]), *table[1:]]
    text += "".join(f"| {' | '.join(row)} |\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def main() -> None:
    """Make the series that the command line asks for, next to this file."""
    parser = argparse.ArgumentParser(description="Train the sample networks.")
    parser.add_argument("--mnist", type=Path, metavar="FILE", help="digits, .npz: images, labels")
    parser.add_argument("--only", choices=SAMPLES, help="make this series alone")
    args = parser.parse_args()
    chosen = [sample for name, sample in SAMPLES.items() if args.only in {None, name}]
    try:
        given = [material(sample, args.mnist) for sample in chosen]
    except LocalrankError as error:
        raise SystemExit(f"make_samples.py: error: {error}") from error
    with reproducibly():
        for sample, one in zip(chosen, given, strict=True):
            write_series(sample, one, Path(__file__).parent / sample.name)


if __name__ == "__main__":
    main()
