"""Train the sample networks and write each one as a series of checkpoints.

The README beside this file says what they show. Each folder gets `step_N.safetensors`, its inputs,
`metrics.csv`, `localrank.toml` and, in its README, what stands below the mark.

One thread; `torch.manual_seed` sets the initial weights and a seeded CPU generator the order of
the batches: a second run with the same torch on the same processor writes the same bytes (the
archives carry no time of day). Elsewhere sums are rounded differently, training amplifies that,
and figures agree about as well as those of two seeds do.

The ranks in the READMEs come from the closed form of a ReLU network written out below, not from
the package, so that they can be held against what the package says.
"""

import argparse
import csv
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

N_TRAIN, N_TEST, N_KEPT = 9_000, 1_000, 1_000  # digits; how many of the training ones are kept
N_POINTS = 64  # points at which the READMEs' ranks are measured: the default of the package
MOMENTUM = 0.9
LANDMARK = 0.99  # the first checkpoint with this training accuracy starts the late phase
WATCH_EVERY = 10  # steps between two looks at the training accuracy until then
MARK = "<!-- What follows is written by make_samples.py. -->\n"

DIGITS_TOML = """\
data = "digits.npz"
data-key = "images"
data-scale = 0.00392156862745098  # 1/255
activation = "relu"
atol = 0.01
"""


@dataclass(frozen=True)
class Recipe:
    """How one series is trained and kept."""

    name: str  # of its folder
    widths: tuple[int, ...]  # inputs, hidden layers, outputs
    learning_rate: float
    weight_decay: float  # on weights and biases, as torch.optim.SGD applies it
    batch: int
    steps: int
    seed: int
    save_at: tuple[int, ...]  # steps; with digits the landmark comes on top
    measures: tuple[str, ...]  # columns of the README's table
    toml: str  # localrank.toml


MNIST = Recipe(
    name="mnist_mlp",
    widths=(784, 100, 100, 100, 10),
    learning_rate=0.05,
    weight_decay=1e-3,
    batch=128,
    steps=10_500,  # 150 epochs of 70 full batches
    seed=3,
    save_at=(0, 20, 40, 60, 80, 120, 200, 400, 800, 1400, 2000, 3000, 4000, 5000, 7000, 10_500),
    measures=("atol=0.01", "atol=0.1", "effective rank"),
    toml="# Shows the late fall of the rank with weight decay.\n" + DIGITS_TOML,
)
MNIST_NO_DECAY = replace(
    MNIST,
    name="mnist_mlp_no_decay",
    weight_decay=0.0,
    save_at=(0, 60, 200, 800, 3000, 10_500),
    toml="# The control to mnist_mlp: the same without weight decay, no late fall.\n" + DIGITS_TOML,
)
GAUSSIAN = Recipe(
    name="gaussian_teacher",
    widths=(32, 64, 64, 10),
    learning_rate=0.005,
    weight_decay=5e-3,
    batch=64,
    steps=12_000,
    seed=0,
    save_at=(0, 30, 100, 200, 300, 500, 800, 1400, 2000, 3000, 4500, 6000, 8500, 12_000),
    measures=("rtol=0.1", "atol=0.01", "effective rank"),
    toml="# A known answer: layers 2 and 3 end at rank 3, the rank of the teacher.\n"
    'data = "inputs.npz"\nactivation = "relu"\nrtol = 0.1\n',
)
RECIPES = {recipe.name: recipe for recipe in (MNIST, MNIST_NO_DECAY, GAUSSIAN)}


@dataclass(frozen=True)
class Task:
    """What a network is trained on."""

    train: tuple[Tensor, Tensor]  # inputs (N, n_in) float32; labels (N,) or targets (N, n_out)
    test: tuple[Tensor, Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]  # of outputs and labels or targets
    score: Callable[[Tensor, Tensor], Tensor]
    score_name: str  # accuracy or error
    data_file: str  # its name in the series
    arrays: dict[str, Any]  # what it holds, by name
    inputs: Tensor  # (2000, n_in): the inputs in it, as the network takes them


def digits_task(path: Path | None) -> Task:
    """Return the task of telling digits apart: the first 9,000 to train, the next 1,000 to test.

    Args:
        path: .npz with `images` uint8 (N, 28, 28) and `labels` (N,), N >= 10,000.

    Raises:
        SystemExit: There is no such file or it does not hold the digits.
    """
    error = "make_samples.py: error:"
    total = N_TRAIN + N_TEST
    if path is None:
        raise SystemExit(f"{error} the MNIST series need --mnist FILE")
    if not zipfile.is_zipfile(path):
        raise SystemExit(f"{error} {'not an .npz archive' if path.exists() else 'no file'}: {path}")
    with np.load(path, allow_pickle=False) as file:
        if not {"images", "labels"} <= set(file.files):
            raise SystemExit(f"{error} no arrays `images` and `labels` in {path}")
        images, labels = file["images"][:total], file["labels"][:total]
    if images.shape != (total, 28, 28) or images.dtype != np.uint8 or labels.shape != (total,):
        raise SystemExit(f"{error} not at least {total} digits, uint8 (N, 28, 28), in {path}")
    images = images.reshape(total, 784)
    x = torch.from_numpy(images).float() / 255
    y = torch.from_numpy(labels.astype(np.int64))
    kept = np.r_[:N_KEPT, N_TRAIN:total]
    return Task(
        train=(x[:N_TRAIN], y[:N_TRAIN]),
        test=(x[N_TRAIN:], y[N_TRAIN:]),
        loss=nn.functional.cross_entropy,
        score=lambda output, label: (output.argmax(1) == label).double().mean(),
        score_name="accuracy",
        data_file="digits.npz",
        arrays={"images": images[kept], "labels": labels[kept].astype(np.uint8)},
        inputs=x[kept],
    )


def gaussian_task(seed: int) -> Task:
    """Return 2,000 noisy pairs of a teacher of rank 3 to train and as many to test."""
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(10, 3, generator=generator) @ torch.randn(3, 32, generator=generator)
    x = torch.randn(4_000, 32, generator=generator)
    y = x @ teacher.T / 96**0.5 + 0.1 * torch.randn(4_000, 10, generator=generator)
    return Task(
        train=(x[:2_000], y[:2_000]),
        test=(x[2_000:], y[2_000:]),
        loss=nn.functional.mse_loss,
        score=lambda output, target: (output - target).square().sum() / target.square().sum(),
        score_name="error",
        data_file="inputs.npz",
        arrays={"x": x[:2_000].numpy()},
        inputs=x[:2_000],
    )


def mlp(widths: tuple[int, ...]) -> nn.Sequential:
    """Return a ReLU network with torch's default initial weights; its last layer is linear."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield indices (size,) of one batch after another, each epoch its full batches only."""
    while True:
        yield from torch.randperm(n, generator=generator)[: n // size * size].view(-1, size)


def training(recipe: Recipe, task: Task) -> Iterator[tuple[int, nn.Sequential]]:
    """Train by SGD with momentum at a constant learning rate.

    Yields:
        The step and the live network, at `recipe.save_at` and, with digits, at the landmark.
    """
    torch.manual_seed(recipe.seed)
    net = mlp(recipe.widths)
    optimiser = torch.optim.SGD(
        net.parameters(), recipe.learning_rate, MOMENTUM, weight_decay=recipe.weight_decay
    )
    x, y = task.train
    order = batches(len(x), recipe.batch, torch.Generator().manual_seed(recipe.seed))
    watching = task.score_name == "accuracy"
    for step in range(recipe.steps + 1):
        reached = False
        if watching and step % WATCH_EVERY == 0:
            with torch.no_grad():
                reached = task.score(net(x), y).item() >= LANDMARK
            watching = not reached
        if reached or step in recipe.save_at:
            yield step, net
        batch = next(order)
        optimiser.zero_grad()
        torch.autograd.backward(task.loss(net(x[batch]), y[batch]))
        optimiser.step()


@torch.no_grad()
def spectra(net: nn.Sequential, points: Tensor) -> list[Tensor]:
    """Return the singular values of J_l = W_l D_(l-1) W_(l-1) ... D_1 W_1, (points, r_l) per layer.

    D_l is diagonal: 1 where unit l of the point is active, else 0. J_1 = W_1 stands only once.
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


def write_series(recipe: Recipe, task: Task, folder: Path) -> None:
    """Train one network and fill its folder; checkpoints of an earlier run are removed."""
    for old in folder.glob("step_*.safetensors"):
        old.unlink()
    (folder / "localrank.toml").write_text(recipe.toml, encoding="utf-8")
    np.savez_compressed(folder / task.data_file, **task.arrays)
    drawn = torch.randperm(len(task.inputs), generator=torch.Generator().manual_seed(0))
    points = task.inputs[drawn[:N_POINTS]].double()
    (x, y), (test_x, test_y) = task.train, task.test
    header = ["step", "loss", f"train_{task.score_name}", f"test_{task.score_name}"]
    table = [[*header, *recipe.measures]]
    for step, net in training(recipe, task):
        save_file(net.state_dict(), folder / f"step_{step}.safetensors", {"step": str(step)})
        with torch.no_grad():
            out = net(x)
            numbers = [task.loss(out, y), task.score(out, y), task.score(net(test_x), test_y)]
        values = spectra(net, points)
        row = [str(step), *(f"{number.item():.6g}" for number in numbers)]
        table.append(row + [describe(values, measure) for measure in recipe.measures])
        print(f"{recipe.name}:", *table[-1], flush=True)
    with (folder / "metrics.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(row[: len(header)] for row in table)
    write_readme(recipe, table, folder / "README.md")


def write_readme(recipe: Recipe, table: list[list[str]], path: Path) -> None:
    """Keep what stands above the mark; write the recipe and the table of results below it."""
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
    parser.add_argument("--only", choices=RECIPES, help="make this series alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [recipe for name, recipe in RECIPES.items() if args.only in {None, name}]
    tasks = [gaussian_task(r.seed) if r is GAUSSIAN else digits_task(args.mnist) for r in chosen]
    for recipe, task in zip(chosen, tasks, strict=True):
        write_series(recipe, task, Path(__file__).parent / recipe.name)


if __name__ == "__main__":
    main()
