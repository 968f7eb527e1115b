"""Intervals of networks of real size, and how often intervals of planted matrices hold.

`intervals.py resnet` and `intervals.py gpt2` print the interval of one layer at one point, its CPU
seconds and its largest memory, with planted weights: Haar factors and singular values j^-0.7,
scaled to the Frobenius norm of He's initialization. `intervals.py coverage FILE.png` draws the
picture of the documentation. One thread.
"""

import math
import resource
import sys
import time
from pathlib import Path

import torch
from real import _gpt2, _image, _resnet18, _tokens
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
PRODUCTS = {"resnet": 240, "gpt2": 600}
_MISS = "#c03020"
TARGETS = {"resnet": "1.5 % of d in 60 CPU s", "gpt2": "a width of at most 10 in 60 CPU s"}


def plant(model: nn.Module) -> None:
    """Replace the singular values of every matrix with the planted ones."""
    random = torch.Generator("cpu").manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() < 2:
            continue
        rows = parameter.shape[0]
        columns = parameter.numel() // rows
        short = min(rows, columns, 4096)
        values = torch.arange(1, short + 1).double() ** -0.7
        left, right = (
            torch.linalg.qr(torch.randn(size, short, generator=random, dtype=torch.float64))[0]
            for size in (rows, columns)
        )
        matrix = left * values @ right.T
        norm = math.sqrt(2 * rows)  # of entries of variance 2 / columns
        parameter.data = (matrix * (norm / matrix.norm())).view_as(parameter).to(parameter.dtype)


def measure(case: str) -> None:
    """Print the interval of one layer, and what it took."""
    from localrank_cli.intervals.layer import Bounds, Purpose, layer_evidence
    from localrank_cli.jacobian.engine import Modes
    from localrank_cli.layers.select import Selection
    from localrank_cli.spectrum.layer import Request
    from localrank_cli.spectrum.tolerance import Tolerance

    torch.manual_seed(0)
    model = (_resnet18 if case == "resnet" else _gpt2)(False)
    if case == "gpt2":  # the embeddings are left: they are varied, not applied
        layers = [block.mlp.c_fc for block in model.transformer.h[:2]]
        layers += [block.attn for block in model.transformer.h[:2]]
        for layer in layers:
            plant(layer)
        selection = Selection(("transformer.h.1.mlp.c_fc",), wrt="transformer.wte")
        points = _tokens(64)(model)[:1]
    else:
        plant(model)
        names = [name for name, one in model.named_modules() if isinstance(one, nn.Conv2d)]
        third = [name for name in names if "stages.2." in name]
        selection = Selection((third[1],))
        points = _image(model)[:1]
    model = model.double().eval()
    points = points.double() if points.is_floating_point() else points
    tolerances = (Tolerance(rtol=0.1),)
    purpose = Purpose("", 0, 1, Bounds(0.95, 0.0, PRODUCTS[case]), tolerances, 1.0)
    started = time.process_time()
    (found,) = layer_evidence(model, points, Request(selection, is_chosen=True), purpose, Modes())
    seconds = time.process_time() - started
    one = found.evidence.interval(0, relative=True)
    assert one is not None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{found.layer} ({found.n_out} x {found.n_in}), rtol 0.1: {one.low:g}..{one.high:g},"
        f" {found.evidence.points[0].n_products} products, {seconds:.1f} CPU s, {peak:.2f} GiB"
        f" (target: {TARGETS[case]})"
    )


def coverage(target: Path) -> None:
    """Draw the intervals of planted matrices and their ranks."""
    sys.path.insert(0, str(ROOT))
    from localrank_cli.figures.look import Look, depth_colours, head, new_figure, saved, styled
    from tests.intervals.planted import SPECTRA, cells

    rtols = (0.5, 0.1, 0.01, 1e-3, 1e-4)
    found: list[tuple[float, float, float]] = []
    for number, name in enumerate(SPECTRA):
        for index, rtol in enumerate(rtols):
            for seed in range(2):
                key = 100_000 + 100 * number + 10 * index + seed
                (cell,) = cells(name, (300, 200), [rtol], key, products=200)
                found.append((cell.true, cell.found.low, cell.found.high))
    found.sort()
    misses = sum(not low <= true <= high for true, low, high in found)
    with styled():
        figure = new_figure(Look(), 7.2, 3.8)
        axes = figure.subplots()
        (held,) = depth_colours(1)
        for place, (true, low, high) in enumerate(found):
            holds = low <= true <= high
            axes.vlines(place, low, high, color=held if holds else _MISS, linewidth=1.6)
            # Of a miss the bar may be as short as the dot.
            colour, size = ("black", 2.5) if holds else (_MISS, 6)
            axes.plot(place, true, ".", color=colour, markersize=size)
        axes.set_xlabel("matrix, in order of its true rank")
        axes.set_ylabel("rank")
        title = f"{len(found)} planted matrices 300 x 200, confidence 0.95: {misses} missed"
        head(figure, Look(), title, ("dots: the true ranks", "red: outside its interval"))
        target.write_bytes(saved(figure, ".png"))
    print(f"{misses} of {len(found)} miss")


def main() -> None:
    """Run what the command line names."""
    torch.set_num_threads(1)
    if sys.argv[1] == "coverage":
        coverage(Path(sys.argv[2]))
    else:
        measure(sys.argv[1])


if __name__ == "__main__":
    main()
