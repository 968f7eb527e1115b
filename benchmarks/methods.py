"""Local rank by localrank, as users write it today, and as a careful user would write it.

Each method returns the rank of every layer at every point, so that counts can be compared matrix by
matrix. The baselines run in the dtype of the network that they are given.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import jacfwd, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

ATOL = 0.01
COUNTS = "localrank --measures counts"
Counts = list[list[int]]  # by layer and point
Method = Callable[[nn.Module, Tensor, tuple[str, ...]], Counts]


class _Found(Exception):  # noqa: N818  # not an error: stops the forward pass early
    pass


def _up_to(model: nn.Module, layers: tuple[str, ...]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Return the layers' outputs as a function of one point."""

    def function(point: Tensor) -> tuple[Tensor, ...]:
        found: list[Tensor] = []

        def hook(_module: nn.Module, _args: object, output: Tensor) -> None:
            found.append(output.flatten())
            if len(found) == len(layers):
                raise _Found

        handles = [model.get_submodule(name).register_forward_hook(hook) for name in layers]
        try:
            model(point.unsqueeze(0))
        except _Found:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return tuple(found)

    return function


def _one(model: nn.Module, layer: str) -> Callable[[Tensor], Tensor]:
    function = _up_to(model, (layer,))
    return lambda point: function(point)[0]


def _by_svd(jacobians: Tensor) -> list[int]:
    """Return the ranks of Jacobians, (points, n_out, ...)."""
    counts: list[int] = (torch.linalg.svdvals(jacobians.flatten(2)) > ATOL).sum(dim=1).tolist()
    return counts


def _by_gram(jacobians: Tensor) -> list[int]:
    """Return the ranks of Jacobians in float64, (points, n_out, ...), by their Gram matrices."""
    flat = jacobians.flatten(2)
    tall = flat.mT if flat.shape[1] < flat.shape[2] else flat
    eigenvalues = torch.linalg.eigvalsh(tall.mT @ tall)
    counts: list[int] = (eigenvalues > ATOL**2).sum(dim=1).tolist()
    return counts


def loop(model: nn.Module, points: Tensor, layers: tuple[str, ...]) -> Counts:
    """Loop over torch.autograd.functional.jacobian and matrix_rank."""
    found = []
    for layer in layers:
        function = _one(model, layer)
        ranks = []
        for point in points:
            jacobian = torch.autograd.functional.jacobian(function, point)
            ranks.append(int(torch.linalg.matrix_rank(jacobian.flatten(1), atol=ATOL)))
        found.append(ranks)
    return found


def jacrev_svd(model: nn.Module, points: Tensor, layers: tuple[str, ...]) -> Counts:
    """Take vmap(jacrev) of each layer, and svdvals."""
    return [_by_svd(vmap(jacrev(_one(model, layer)))(points)) for layer in layers]


def jacrev_chunks(model: nn.Module, points: Tensor, layers: tuple[str, ...]) -> Counts:
    """Take jacrev of each layer and point in chunks of rows, where all of them do not fit."""
    return [
        [_by_svd(jacrev(_one(model, layer), chunk_size=256)(point)[None])[0] for point in points]
        for layer in layers
    ]


def jacfwd_rank(model: nn.Module, points: Tensor, layers: tuple[str, ...]) -> Counts:
    """Take vmap(jacfwd) of each layer, and matrix_rank, as the paper's first author does."""
    found = []
    for layer in layers:
        with sdpa_kernel(SDPBackend.MATH):  # forward mode knows no other kernel
            jacobians = vmap(jacfwd(_one(model, layer)))(points)
        ranks: list[int] = torch.linalg.matrix_rank(jacobians.flatten(2), atol=ATOL).tolist()
        found.append(ranks)
    return found


def careful(model: nn.Module, points: Tensor, layers: tuple[str, ...]) -> Counts:
    """Take all layers from one vmap(jacrev), and the eigenvalues of float64 Gram matrices."""
    return [_by_gram(one) for one in vmap(jacrev(_up_to(model, layers)))(points)]


def careful_forward(model: nn.Module, points: Tensor, layers: tuple[str, ...]) -> Counts:
    """Do the same by forward mode, a point at a time: fewer passes where outputs are wide."""
    found: Counts = [[] for _ in layers]
    for point in points:
        with sdpa_kernel(SDPBackend.MATH):
            jacobians = _columns(_up_to(model, layers), point)
        for counts, jacobian in zip(found, jacobians, strict=True):
            counts.extend(_by_gram(jacobian[None]))
    return found


def _columns(function: Callable[[Tensor], tuple[Tensor, ...]], point: Tensor) -> list[Tensor]:
    """Return the Jacobians of one point, transposed: (n_in, n_out) each, 64 columns at a time."""
    units = torch.eye(point.numel(), dtype=point.dtype).reshape(-1, *point.shape)

    def along(direction: Tensor) -> tuple[Tensor, ...]:
        tangents: tuple[Tensor, ...] = torch.func.jvp(function, (point,), (direction,))[1]
        return tangents

    parts = [vmap(along)(some) for some in units.split(64)]
    return [torch.cat(columns) for columns in zip(*parts, strict=True)]


def by_hand(model: nn.Module, points: Tensor, layers: tuple[str, ...]) -> Counts:
    """Multiply the weights and slopes of a plain MLP, and take the Gram matrices' eigenvalues."""
    jacobians = dict(_chain(model, points))
    return [_by_gram(jacobians[layer]) for layer in layers]


def _chain(model: nn.Module, points: Tensor) -> Iterator[tuple[str, Tensor]]:
    hidden, jacobian = points, None
    for name, module in model.named_children():
        if isinstance(module, nn.Linear):
            weight = module.weight
            whole = weight.expand(len(points), -1, -1) if jacobian is None else weight @ jacobian
            yield name, whole
            hidden, jacobian = module(hidden), whole
        else:
            if isinstance(module, nn.ReLU):
                slope = (hidden > 0).to(hidden.dtype)
            else:
                assert isinstance(module, nn.Tanh)
                slope = 1 - torch.tanh(hidden).square()
            assert jacobian is not None
            hidden, jacobian = module(hidden), slope.unsqueeze(2) * jacobian


def localrank(model: nn.Module, points: Tensor, layers: tuple[str, ...]) -> Counts:
    """Compute all measures in float64, with the certificate and near_tol."""
    return _localrank(model, points, layers, "all")


def localrank_counts(model: nn.Module, points: Tensor, layers: tuple[str, ...]) -> Counts:
    """Do the same without the effective rank: `--measures counts`."""
    return _localrank(model, points, layers, "counts")


def _localrank(model: nn.Module, points: Tensor, layers: tuple[str, ...], measures: str) -> Counts:
    from localrank_cli.layers.select import Selection
    from localrank_cli.measures.layer import reduce_points
    from localrank_cli.measures.points import point_measures
    from localrank_cli.measures.table import CHOICES, demand_of
    from localrank_cli.spectrum.layer import Request, layer_spectra
    from localrank_cli.spectrum.tolerance import Tolerance

    tolerances, names = (Tolerance(atol=ATOL),), CHOICES[measures]
    request = Request(Selection(layers), demand=demand_of(tolerances, names=names))
    spectra = layer_spectra(model, points, request)
    for spectrum in spectra:
        reduce_points(point_measures(spectrum, tolerances, 1.0, names))
    return [(spectrum.values > ATOL).sum(dim=1).tolist() for spectrum in spectra]


METHODS: dict[str, Method] = {
    "localrank": localrank,
    COUNTS: localrank_counts,
    "loop": loop,
    "jacrev": jacrev_svd,
    "jacrev_chunks": jacrev_chunks,
    "jacfwd": jacfwd_rank,
    "careful": careful,
    "careful_forward": careful_forward,
    "by_hand": by_hand,
}
# Written for float64: a Gram matrix in float32 cannot resolve the tolerance.
FLOAT64_ONLY = frozenset({"localrank", COUNTS, "careful", "careful_forward", "by_hand"})
