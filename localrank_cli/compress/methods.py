"""The ways to choose factors and ranks: those that whiten, and the baselines.

The error of a layer that runs at many positions is a sum over these if the errors at two of them
are unrelated, and larger where they agree. On one conv net with average pooling the sum was 3 to 21
times below the mean squared first-order change of log p that truncation makes, most in the last
convolution. Neither way to count is right for every network, so both are candidates, and the
selection split decides.
"""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from localrank_cli.compress.allocation import Choice, allocate, uniform
from localrank_cli.compress.matrix import matrix_of, shape_of
from localrank_cli.compress.moments import METRICS, Metric, Moments
from localrank_cli.compress.replace import Replacement
from localrank_cli.compress.whitening import Factors, RootOf, factorize
from localrank_cli.errors import ModelError

Sides = tuple[Tensor | None, Tensor | None]  # metrics of a layer's outputs and of its inputs


@dataclass(frozen=True)
class Method:
    """A way to factor layers and to divide the budget among them.

    Args:
        title: The name in tables.
        sides: The metrics under which the factors of a layer are the best.
        is_global: Whether ranks are allocated by error; else all layers have one ratio, and the
            network's last one stays dense.
        by_position: Whether a layer's error counts at each position at which it runs.
        metric: That of the network's output, where there is one.
    """

    title: str
    sides: Callable[[Moments], Sides]
    is_global: bool = True
    by_position: bool = False
    metric: Metric | None = None


def _plain(_: Moments) -> Sides:
    return None, None


def _inputs(moments: Moments) -> Sides:
    return None, moments.covariance


def _fisher(moments: Moments) -> Sides:
    return moments.gradient("fisher"), moments.covariance


def _logit(moments: Moments) -> Sides:
    return moments.gradient("logit"), moments.covariance


# Of two that give the same network, as where every layer runs at one position, the first is tried.
OURS: dict[str, Method] = {
    "fisher": Method("two-sided, Fisher metric", _fisher, by_position=True, metric="fisher"),
    "logit": Method("two-sided, logit metric", _logit, by_position=True, metric="logit"),
    "fisher-mean": Method(
        "two-sided, Fisher metric, mean over positions", _fisher, metric="fisher"
    ),
    "logit-mean": Method("two-sided, logit metric, mean over positions", _logit, metric="logit"),
    "inputs": Method("input covariance", _inputs),
}
BASELINES: dict[str, Method] = {
    "uniform": Method("uniform ratio, plain SVD", _plain, is_global=False),
    "energy": Method("weight energy", _plain),
    "svd-llm": Method("SVD-LLM, uniform ratio", _inputs, is_global=False),
    # arXiv 2207.00112: the rows of the weight, by the root of their summed Fisher information.
    "fwsvd": Method("FWSVD", lambda moments: (moments.row_fisher, None)),
}
METHODS = OURS | BASELINES


def candidates(metric: Metric | None) -> tuple[str, ...]:
    """Return the names of our methods, or of those with a metric of the output."""
    return tuple(name for name, one in OURS.items() if metric in {None, one.metric})


@dataclass(frozen=True)
class Factored:
    """Every layer's factors by one method.

    With `has_last` the last of the layers is the network's: it matters most, and a baseline of one
    ratio keeps it. Where the network's last one is dense anyway, to keep another wastes weights.
    """

    method: Method
    layers: Mapping[str, nn.Module]  # in the order in which they run
    factors: Mapping[str, Factors]
    means: Mapping[str, Tensor]
    positions: Mapping[str, float]
    has_last: bool = True

    def ranks(self, budget: int) -> dict[str, int | None] | None:
        """Return each layer's rank within a number of weights, None where it stays dense.

        Returns:
            None where the method has no ranks for so few weights.
        """
        shapes = [shape_of(module) for module in self.layers.values()]
        found: Sequence[int | None] | None
        if self.method.is_global:
            found = allocate([self._choice(name) for name in self.layers], budget)
        else:
            found = uniform(shapes, budget, keeps_last=self.has_last)
        return None if found is None else dict(zip(self.layers, found, strict=True))

    def why_none(self, budget: int) -> str:
        """Return why a method has no ranks for a number of weights."""
        if not self.has_last:
            return "with one ratio for all layers, some would have no rank"
        *others, last = ((name, shape_of(module)) for name, module in self.layers.items())
        if not others:
            return f"{last[0]} is the only layer, and the last one stays dense"
        if budget <= last[1].weights:
            return f"the last layer, {last[0]}, stays dense and has {last[1].weights} weights"
        return f"{last[0]} stays dense, and with one ratio for the others, some would have no rank"

    def predicted(self, ranks: Mapping[str, int | None]) -> float:
        """Return the sum of the layers' errors at some ranks, as the method sees them."""
        return float(
            sum(
                self._scale(name) * float(self.factors[name].errors[rank])
                for name, rank in ranks.items()
                if rank is not None
            )
        )

    def replacements(self, ranks: Mapping[str, int | None]) -> dict[str, Replacement]:
        """Return what takes the place of each layer that does not stay dense."""
        return {
            name: Replacement(*self.factors[name].at(rank), self.means[name])
            for name, rank in ranks.items()
            if rank is not None
        }

    def _choice(self, name: str) -> Choice:
        shape = shape_of(self.layers[name])
        errors = self.factors[name].errors[1 : shape.most + 1].numpy()
        return Choice(shape, self._scale(name) * errors)

    def _scale(self, name: str) -> float:
        return self.positions[name] if self.method.by_position else 1.0


def factor_all(
    layers: Mapping[str, Any], moments: MutableMapping[str, Moments], done: Callable[[str], None]
) -> dict[str, Factored]:
    """Return every layer's factors by every method, up to the largest rank that saves weights.

    They are of the dtype of the layer; `done` is called with the name of each layer. The sums of
    each layer are taken out of `moments`, so that their memory is free.

    Raises:
        ModelError: If the sums of a layer are not finite.
    """
    bad = [name for name, one in moments.items() if not one.is_finite]
    if bad:
        raise ModelError(
            f"{', '.join(bad)}: on the calibration data, the inputs or the gradients with"
            " respect to the outputs are not finite.",
            "Check the data. If they are finite, something after these layers has no gradient at"
            " some points (a square root at 0, say): leave the layers as they are with"
            f" {' '.join(f'--keep {name}' for name in bad)}.",
        )
    means = {name: one.mean for name, one in moments.items()}
    positions = {name: one.positions for name, one in moments.items()}
    factors: dict[Callable[[Moments], Sides], dict[str, Factors]] = {}
    for name, module in layers.items():
        one, right_root_of = moments.pop(name), RootOf()
        for method in METHODS.values():
            of_sides = factors.setdefault(method.sides, {})
            if name not in of_sides:  # the plain SVD has two methods
                left, right = method.sides(one)
                most = shape_of(module).most
                found = factorize(
                    matrix_of(module), most, left=left, right=right, right_root_of=right_root_of
                )
                of_sides[name] = found.to(module.weight.dtype)
        done(name)
    return {
        name: Factored(method, layers, factors[method.sides], means, positions)
        for name, method in METHODS.items()
    }


def factor_bytes(module: Any) -> int:
    """Return the bytes of the factors of a layer by every method."""
    shape = shape_of(module)
    kinds = len({method.sides for method in METHODS.values()})
    entries: int = shape.most * (shape.n_out + shape.n_in) * module.weight.element_size()
    return kinds * (entries + min(shape.n_out, shape.n_in) * torch.float64.itemsize)


def work_bytes(module: nn.Module) -> int:
    """Return the bytes that factoring a layer takes: two metrics, their roots, and an SVD.

    A metric is held with its damped copy while the root is computed. The SVD takes the weighted
    matrix, a copy of it, its two factors, and as much again as the larger one to work with.
    """
    shape = shape_of(module)
    metrics = shape.n_in**2 + shape.n_out**2
    return torch.float64.itemsize * (3 * metrics + 6 * shape.weights)


def factor_work(module: nn.Module) -> float:
    """Return how long factoring a layer by every method takes, in no unit.

    An SVD takes as long as sixteen roots of the same size.
    """
    shape = shape_of(module)
    kinds = len({method.sides for method in METHODS.values()})
    roots = shape.n_in**3 + len(METRICS) * shape.n_out**3
    return kinds * shape.weights * min(shape.n_out, shape.n_in) + roots / 16
