"""What calibration data say about each layer: covariances of inputs, second moments of gradients.

Everything is summed in float64, batch by batch, so only the sums are held in memory.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from localrank_cli.compress.matrix import rows_in, rows_out, shape_of
from localrank_cli.errors import SettingsError, readable

Metric = Literal["fisher", "logit"]
METRICS: tuple[Metric, ...] = ("fisher", "logit")
_DOUBLE = 8  # bytes
_ENTRIES = 2**22  # float64 values of products of single points that are held at once


class Moments:
    """The sums over calibration data of one layer."""

    def __init__(self, module: nn.Module) -> None:
        shape = shape_of(module)
        self.count = 0  # rows: points times positions
        self.n_points = 0
        self.mean = torch.zeros(shape.n_in, dtype=torch.float64)
        self._scatter = torch.zeros(shape.n_in, shape.n_in, dtype=torch.float64)
        self._gradients = {
            metric: torch.zeros(shape.n_out, shape.n_out, dtype=torch.float64) for metric in METRICS
        }
        self._row_fisher = torch.zeros(shape.n_out, dtype=torch.float64)

    @property
    def is_finite(self) -> bool:
        """Whether all inputs and gradients were finite."""
        # Whatever is not finite in a column is not finite on the diagonal.
        sums = (self._scatter, *self._gradients.values())
        return all(bool(torch.isfinite(one.diagonal()).all()) for one in sums)

    @property
    def covariance(self) -> Tensor:
        """The covariance of the inputs about their mean, (in, in)."""
        return self._scatter / self.count

    def about_zero(self) -> "Moments":
        """Return the same with a mean of 0, for a layer without a bias that could hold the mean."""
        found = copy.copy(self)
        found._scatter = self._scatter + self.count * self.mean.outer(self.mean)  # noqa: SLF001  # of this class
        found.mean = torch.zeros_like(self.mean)
        return found

    @property
    def positions(self) -> float:
        """The mean number of positions at which the layer runs for one point."""
        return self.count / self.n_points

    @property
    def row_fisher(self) -> Tensor:
        """The mean over points of the squared gradients of each row of the weight, (out,)."""
        return self._row_fisher / self.n_points

    def gradient(self, metric: Metric) -> Tensor:
        """Return E[g g^T] of the gradients with respect to the pre-activation, (out, out)."""
        return self._gradients[metric] / self.count

    def add_inputs(self, rows: Tensor) -> None:
        """Add inputs, (points, positions, in)."""
        self.n_points += rows.shape[0]
        flat = rows.flatten(0, 1).to("cpu", torch.float64)
        # Chan, Golub & LeVeque (1983): the sums of two parts, each about its own mean.
        total = self.count + flat.shape[0]
        mean = flat.mean(dim=0)
        centred = flat - mean
        shift = mean - self.mean
        self._scatter.addmm_(centred.T, centred)
        self._scatter.addr_(shift, shift, alpha=self.count * flat.shape[0] / total)
        self.mean += shift * (flat.shape[0] / total)
        self.count = total

    def add_gradients(self, metric: Metric, inputs: Tensor, rows: Tensor) -> None:
        """Add gradients, (points, positions, out), at inputs of (points, positions, in)."""
        flat = rows.flatten(0, 1).to("cpu", torch.float64)
        self._gradients[metric].addmm_(flat.T, flat)
        if metric == "fisher":
            self._row_fisher += _row_squares(inputs.to("cpu"), rows.to("cpu"))


def _row_squares(inputs: Tensor, gradients: Tensor) -> Tensor:
    """Return the squared lengths of the rows of each point's gradient of the weight, summed.

    That gradient is g^T x over the positions, and row i of it has the squared length
    g_i^T (x x^T) g_i: whichever of the two matrices is smaller is computed.
    """
    n_positions, n_in = inputs.shape[1:]
    n_out = gradients.shape[2]
    found = torch.zeros(n_out, dtype=torch.float64)
    size = max(1, _ENTRIES // min(n_positions**2, n_in * n_out))
    for some, of_some in zip(inputs.split(size), gradients.split(size), strict=True):
        x, g = some.double(), of_some.double()
        if n_positions**2 <= n_in * n_out:
            found += ((x @ x.mT) @ g * g).sum(dim=(0, 1))
        else:
            found += (g.mT @ x).square().sum(dim=(0, 2))
    return found


@dataclass(frozen=True)
class Draw:
    """What a backward pass starts from: the output's gradient, drawn for a metric."""

    has_classes: bool  # whether the output holds logits of classes on its last axis

    def __call__(self, metric: Metric, output: Tensor, generator: torch.Generator) -> Tensor:
        """Return a gradient whose outer products have the metric as their expectation."""
        if metric == "logit" or not self.has_classes:
            # Without classes the output is the mean of a normal distribution of variance 1.
            return torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
        shares = output.detach().double().softmax(dim=-1).cpu()
        flat = shares.flatten(0, -2)
        drawn = torch.multinomial(flat, 1, generator=generator)
        # The gradient of log p(y), y drawn from the network's own distribution.
        return (torch.zeros_like(flat).scatter_(1, drawn, 1.0) - flat).view_as(shares).to(output)


def groups(layers: Mapping[str, nn.Module], memory: int) -> Iterator[dict[str, nn.Module]]:
    """Yield layers whose sums fit in a number of bytes together, in order.

    Raises:
        SettingsError: If those of one layer alone do not fit.
    """
    group: dict[str, nn.Module] = {}
    taken = 0
    for name, module in layers.items():
        needed = moment_bytes(module)
        if needed > memory:
            raise SettingsError(
                f"layer {name!r}: its covariances need {readable(needed)}, but the budget is"
                f" {readable(memory)}.",
                "Give more --memory, or leave the layer as it is with --keep.",
            )
        if group and taken + needed > memory:
            yield group
            group, taken = {}, 0
        group[name] = module
        taken += needed
    if group:
        yield group


def moment_bytes(module: nn.Module) -> int:
    """Return the bytes that the sums of a layer take; products are added to them in place."""
    shape = shape_of(module)
    return _DOUBLE * (shape.n_in**2 + len(METRICS) * shape.n_out**2)


def collect(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Tensor],
    draw: Draw,
    forward: Callable[[nn.Module, Tensor], Tensor],
    seed: int,
) -> dict[str, Moments]:
    """Return the sums of some layers over batches of points.

    To be called within `analysis_setting`. Each call draws the same gradients, so that layers may
    be taken in groups.
    """
    found = {name: Moments(module) for name, module in layers.items()}
    generator = torch.Generator().manual_seed(seed)
    for batch in batches:
        with torch.enable_grad(), _watched(layers, found, len(batch)) as current:
            output = forward(model, batch)
            for index, metric in enumerate(METRICS):
                current.metric = metric
                start = draw(metric, output, generator)
                if not output.requires_grad:  # none of these layers reaches the output
                    continue
                is_last = index == len(METRICS) - 1
                torch.autograd.backward(output, start, retain_graph=not is_last)
    return found


def _by_point(rows: Tensor, n_points: int) -> Tensor:
    """Return rows, (first, second, length), with the points on their first axis.

    It may be the second, as where sequences have the time first, or points and positions may be one
    axis, as in windows.
    """
    first, second, length = rows.shape
    if first == n_points or first * second % n_points:
        return rows
    return rows.transpose(0, 1) if second == n_points else rows.reshape(n_points, -1, length)


@dataclass
class _Current:
    metric: Metric = "fisher"


@contextmanager
def _watched(
    layers: Mapping[str, nn.Module], found: Mapping[str, Moments], n_points: int
) -> Iterator[_Current]:
    """Add what layers receive, and the gradients of what they return, while a batch runs."""
    current = _Current()

    def after(
        name: str,
        module: nn.Module,
        args: Sequence[Any],
        keywords: Mapping[str, Any],
        output: Tensor,
    ) -> Tensor:
        """Add a layer's inputs, and return an output whose gradients are added too."""
        (inputs,) = (*args, *keywords.values())
        # Copied, since what follows may overwrite it in place.
        rows = _by_point(rows_in(module, inputs.detach()), n_points).clone()
        found[name].add_inputs(rows)
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        output = output.clone()
        output.register_hook(
            lambda gradient: found[name].add_gradients(
                current.metric, rows, _by_point(rows_out(module, gradient), n_points)
            )
        )
        return output

    handles = [
        module.register_forward_hook(partial(after, name), with_kwargs=True)
        for name, module in layers.items()
    ]
    try:
        yield current
    finally:
        for handle in handles:
            handle.remove()
